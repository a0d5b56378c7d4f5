"""Bundles exchanged while the line runs, and everything that may go wrong meanwhile."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_bundles import (
    SIDE,
    LineBundles,
    bad_frame,
    copied,
    good_frame,
    line_config,
    make_line_bundles,
    version,
    with_a_file_missing,
    with_a_graph_byte_changed,
    with_a_truncated_bank,
    with_golden_frames_of_another,
    with_no_network,
    without_thresholds,
    zipped,
)

from adclick_edge.bundle import read_bundle
from adclick_edge.errors import LineError
from adclick_edge.features.bank import Bank
from adclick_edge.line import model as model_module
from adclick_edge.line import models as models_module
from adclick_edge.line.engines import open_cpu_engine
from adclick_edge.line.models import Models
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.engine import Engine, Maps

SHAPE = (SIDE, SIDE)
STRICT = 0.01


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "REST", 0.0)


@pytest.fixture(scope="module")
def bundles(make_once: Callable[[str, Callable[[Path], object]], Path]) -> LineBundles:
    return make_line_bundles(make_once("line_bundles_root", lambda path: path.mkdir()) / "bundles")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Models]]:
    """``start(nut=folder)``: open models on the same state folder, those started before being closed."""
    made: list[Models] = []

    def make(*, open_engine: Any = open_cpu_engine, **paths: Path) -> Models:
        for models in made:
            models.close()
        models = Models(line_config(tmp_path / "state", **paths), threads=1, open_engine=open_engine)
        made.append(models)
        models.open()
        return models

    yield make
    for models in made:
        models.close()


@pytest.fixture
def nut(bundles: LineBundles, tmp_path: Path) -> Path:
    return copied(bundles.nut, tmp_path / "nut")


def verdicts(models: Models) -> list[str]:
    with models.using("nut") as model:
        found = model.judge([good_frame(7), bad_frame(8)], ["a", "b"], [SHAPE, SHAPE])
    assert {f.verdict.bundle_version for f in found} == {model.version}
    return [f.verdict.verdict for f in found]


def serving(models: Models) -> str:
    (found,) = {models.tally()["nut"].version, _judged_by(models)}
    return found


def _judged_by(models: Models) -> str:
    with models.using("nut") as model:
        (found,) = model.judge([good_frame(1)], ["a"], [SHAPE])
    assert found.verdict.bundle_version is not None
    return found.verdict.bundle_version


def kept_folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "state" / "bundles" / "nut").iterdir()}


def make_strict(path: Path) -> Path:
    """Thresholds under which every frame is ng."""
    with read_bundle(path) as bundle:
        store_calibration(bundle, calibrate([STRICT] * 3, false_alarms=0.1, source="held_out"))
    return path


def test_the_next_batch_is_judged_by_the_new_bundle_and_so_is_the_next_start(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    source = copied(bundles.nut_more_rows, tmp_path / "new")
    outcome = models.swap("nut", source)
    assert (outcome.ok, outcome.version, outcome.previous_version) == (True, version(source), version(nut))
    assert version(source) in outcome.message
    assert outcome.seconds > 0
    tally = models.tally()["nut"]
    assert (tally.version, tally.previous, tally.swaps, tally.failed_swaps) == (version(source), version(nut), 1, 0)
    assert tally.bundle == str(tmp_path / "state" / "bundles" / "nut" / version(source))
    assert verdicts(models) == ["ok", "ng"]
    # What happens to the folder the bundle came from is of no concern any more.
    (source / "features.onnx").write_bytes(b"")
    assert models.reload_settings() == []
    assert models.tally()["nut"].notices == ()
    models = start(nut=nut)
    assert serving(models) == outcome.version
    assert models.tally()["nut"].previous == version(nut)
    assert models.tally()["nut"].notices == ()


def test_zips_can_be_swapped_in(bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path) -> None:
    models = start(nut=nut)
    path = zipped(bundles.nut_more_rows, tmp_path / "new.zip")
    assert models.swap("nut", path).ok
    path.unlink()
    assert serving(models) == version(bundles.nut_more_rows)
    assert list((tmp_path / "state" / "unpacked").iterdir()) == []
    assert serving(start(nut=nut)) == version(bundles.nut_more_rows)


BROKEN: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "altered graph": (with_a_graph_byte_changed, r"features\.onnx was altered"),
    "missing file": (with_a_file_missing, r"segment\.onnx is missing"),
    "truncated bank": (with_a_truncated_bank, "not a readable bank"),
    "golden frames of another network": (with_golden_frames_of_another, "golden frame 000 differs by"),
    "no network": (with_no_network, "ONNX Runtime cannot load it"),
    "no thresholds": (without_thresholds, r"every frame would be uncertain.*adclick calibrate.*force"),
    "nothing there": (lambda _, out: out, "there is no bundle here"),
    "half copied": (lambda _, out: (out.mkdir(), out)[1], r"manifest\.json is missing"),
    "no zip": (lambda _, out: (out.write_bytes(b"PK\x03\x04 cut off"), out)[1], "zip cannot be used"),
    "damaged thresholds": (
        lambda source, out: ((copied(source, out) / "calibration.json").write_bytes(b"{"), out)[1],
        r"calibration\.json: cannot be read",
    ),
    "regions that leave nothing": (
        lambda source, out: (_without_a_cell(copied(source, out)), out)[1],
        "leave nothing of the frame to inspect",
    ),
}


def _without_a_cell(path: Path) -> None:
    with read_bundle(path) as bundle:
        bundle.set_regions({"roi": [[[0, 0], [0.001, 0], [0, 0.001]]], "ignore": []})


def test_a_bundle_that_fails_a_check_changes_nothing(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    import re

    models = start(nut=nut, bolt=bundles.bolt)
    assert models.swap("nut", bundles.nut_more_rows).ok
    before, files = models.tally()["nut"], kept_folders(tmp_path)
    record = (tmp_path / "state" / "serving.json").read_bytes()
    fds = len(os.listdir("/proc/self/fd"))
    for number, (name, (spoil, says)) in enumerate(BROKEN.items(), 1):
        path = spoil(bundles.nut_other_weights, tmp_path / f"broken-{number}")
        outcome = models.swap("nut", path)
        assert not outcome.ok, name
        assert (outcome.version, outcome.previous_version) == (before.version, before.version)
        assert re.search(says, outcome.message), outcome.message
        assert str(path) in outcome.message
        assert "state/bundles" not in outcome.message
        tally = models.tally()["nut"]
        assert (tally.version, tally.failed_swaps, tally.swaps) == (before.version, number, 1)
        assert tally.last_failure is not None
        assert tally.last_failure in outcome.message
        assert verdicts(models) == ["ok", "ng"]
        assert len(models._engines) == 1
        assert kept_folders(tmp_path) == files
    assert models.swap("nut", bundles.bolt).message.endswith("take the bundle of that product")
    assert (tmp_path / "state" / "serving.json").read_bytes() == record
    assert len(os.listdir("/proc/self/fd")) == fds
    assert list((tmp_path / "state" / "unpacked").iterdir()) == []
    assert models.swap("nut", bundles.nut_other_weights).ok
    assert models.tally()["nut"].last_failure is None


def test_a_bundle_without_thresholds_serves_if_forced(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    bare = without_thresholds(bundles.nut_more_rows, tmp_path / "bare")
    assert models.swap("nut", bare, force=True).ok
    assert verdicts(models) == ["uncertain", "uncertain"]
    with read_bundle(models.tally()["nut"].bundle) as bundle:
        store_calibration(bundle, calibrate([2.5] * 3, false_alarms=0.1, source="held_out"))
    assert models.reload_settings() == ["nut"]
    assert verdicts(models) == ["ok", "ng"]


def test_thresholds_made_under_other_regions_are_none(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    path = copied(bundles.nut_more_rows, tmp_path / "new")
    with read_bundle(path) as bundle:
        bundle.set_regions({"roi": [], "ignore": [[[0, 0], [0.2, 0], [0, 0.2]]]})
    outcome = models.swap("nut", path)
    assert not outcome.ok
    assert "the regions changed after the thresholds were set" in outcome.message


def failing_engine(when: Callable[[], bool]) -> Callable[[Path, int], Engine]:
    def open_engine(folder: Path, threads: int) -> Engine:
        engine = open_cpu_engine(folder, threads)
        inner = engine.run

        def run(frames: Any, bank: Any, **options: Any) -> Maps:
            if when():
                raise MemoryError
            return inner(frames, bank, **options)

        engine.run = run  # type: ignore[method-assign]
        return engine

    return open_engine


def test_an_engine_that_fails_in_the_checks_is_not_served(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    failing = threading.Event()
    models = start(nut=nut, open_engine=failing_engine(failing.is_set))
    failing.set()
    for path in (bundles.nut_other_weights, bundles.nut_more_rows):
        outcome = models.swap("nut", path)
        assert not outcome.ok
        assert "MemoryError" in outcome.message
    failing.clear()
    assert verdicts(models) == ["ok", "ng"]
    assert len(models._engines) == 1
    assert kept_folders(tmp_path) == {version(nut)}


def test_a_disk_that_takes_no_record_leaves_the_old_one_serving_here_and_at_the_next_start(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = start(nut=nut)
    assert models.swap("nut", bundles.nut_more_rows).ok
    folders = kept_folders(tmp_path)
    real = models_module.write_serving
    calls = []

    def full_after_the_rename(path: Path, products: Any) -> None:
        real(path, products)
        calls.append(path)
        if len(calls) == 1:
            raise LineError(f"{path}: cannot be written (Input/output error)")

    monkeypatch.setattr(models_module, "write_serving", full_after_the_rename)
    outcome = models.swap("nut", bundles.nut_other_weights)
    assert not outcome.ok
    assert "cannot be written" in outcome.message
    assert serving(models) == version(bundles.nut_more_rows)
    assert kept_folders(tmp_path) == folders
    assert serving(start(nut=nut)) == version(bundles.nut_more_rows)


def test_a_full_disk_refuses_the_swap(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = start(nut=nut)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "bank.safetensors":
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = models.swap("nut", bundles.nut_more_rows)
    assert not outcome.ok
    assert "No space left on device" in outcome.message
    assert kept_folders(tmp_path) == {version(nut)}
    assert verdicts(models) == ["ok", "ng"]


def test_a_start_on_a_full_disk_serves_and_says_that_no_rollback_will_be_possible(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise LineError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("adclick_edge.line.bundle_store.BundleStore.keep", full)
        models = start(nut=nut)
    assert verdicts(models) == ["ok", "ng"]
    assert any("no rollback" in notice for notice in models.tally()["nut"].notices)
    assert models.swap("nut", bundles.nut_more_rows).ok
    assert models.tally()["nut"].previous is None
    assert "no earlier version is kept" in models.rollback("nut").message


# Going back


def test_each_rollback_goes_one_back(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    assert "no earlier version is kept" in models.rollback("nut").message
    assert models.swap("nut", bundles.nut_more_rows).ok
    assert models.swap("nut", bundles.nut_other_weights).ok
    outcome = models.rollback("nut")
    assert (outcome.ok, outcome.version) == (True, version(bundles.nut_more_rows))
    assert outcome.previous_version == version(bundles.nut_other_weights)
    assert serving(models) == outcome.version
    assert models.tally()["nut"].previous == version(nut)
    assert models.rollback("nut").version == version(nut)
    assert serving(models) == version(nut)
    outcome = models.rollback("nut")
    assert not outcome.ok
    assert serving(models) == version(nut)
    assert serving(start(nut=nut)) == version(nut)
    assert models.tally() == {}


def test_a_rollback_needs_nothing_of_the_folder_line_toml_names(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    """The usual way to bring a bank: `adclick bank` onto the folder that serves, then a swap to it."""
    models = start(nut=nut)
    make_strict(nut)
    assert models.reload_settings() == ["nut"]
    first = version(nut)
    for path in sorted(bundles.nut_more_rows.rglob("*")):  # file by file, as `cp -r` would
        if path.is_file():
            (nut / path.relative_to(bundles.nut_more_rows)).write_bytes(path.read_bytes())
    models.reload_settings()
    assert any("another bundle took its place" in notice for notice in models.tally()["nut"].notices)
    assert verdicts(models) == ["ng", "ng"]
    assert models.swap("nut", nut).ok
    assert verdicts(models) == ["ok", "ng"]
    assert models.rollback("nut").ok
    assert serving(models) == first
    assert verdicts(models) == ["ng", "ng"]  # the thresholds it served with last
    models = start(nut=nut)
    assert (serving(models), verdicts(models)) == (first, ["ng", "ng"])


def test_a_copy_that_was_damaged_is_not_gone_back_to(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    assert models.swap("nut", bundles.nut_more_rows).ok
    (tmp_path / "state" / "bundles" / "nut" / version(nut) / "bank.safetensors").write_bytes(b"")
    outcome = models.rollback("nut")
    assert not outcome.ok
    assert "bank.safetensors" in outcome.message
    assert serving(models) == version(bundles.nut_more_rows)


def test_the_last_three_are_kept(bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path) -> None:
    models = start(nut=nut)
    (tmp_path / "state" / "bundles" / "nut" / "notes of the engineer").mkdir()
    order = [bundles.nut_more_rows, bundles.nut_other_weights, bundles.nut_larger]
    for path in order:
        assert models.swap("nut", path).ok
    assert kept_folders(tmp_path) == {*map(version, order), "notes of the engineer"}
    assert models.swap("nut", order[0]).ok
    expected = [*map(version, (order[2], order[1]))]
    assert [models.rollback("nut").version for _ in range(3)] == [*expected, expected[-1]]


def test_the_same_bundle_with_other_thresholds_is_another_one(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    models = start(nut=nut)
    strict = make_strict(copied(nut, tmp_path / "strict"))
    outcome = models.swap("nut", strict)
    assert (outcome.ok, outcome.version, outcome.previous_version) == (True, version(nut), version(nut))
    assert verdicts(models) == ["ng", "ng"]
    assert kept_folders(tmp_path) == {version(nut), f"{version(nut)}-2"}
    assert models.rollback("nut").ok
    assert verdicts(models) == ["ok", "ng"]
    # Thresholds of a copy that does not serve are nobody's business.
    make_strict(tmp_path / "state" / "bundles" / "nut" / f"{version(nut)}-2")
    assert models.reload_settings() == []


# Starting again


def test_what_served_is_lost_or_damaged(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    record, copy = (
        tmp_path / "state" / "serving.json",
        tmp_path / "state" / "bundles" / "nut" / version(bundles.nut_more_rows),
    )
    assert start(nut=nut).swap("nut", bundles.nut_more_rows).ok
    whole = record.read_bytes()
    for damage in (b"", whole[:-9], whole.replace(b'"folder": "', b'"folder": "../')):
        record.write_bytes(damage)
        models = start(nut=nut)
        assert serving(models) == version(nut)
        (notice,) = models.tally()["nut"].notices
        assert "what served before the restart is not known, the bundle of line.toml serves" in notice
        assert not record.exists()
        assert record.with_name("serving.json.damaged").read_bytes() == damage
    record.write_bytes(whole)
    (copy / "bank.safetensors").write_bytes(b"x")
    for _ in range(2):
        models = start(nut=nut)
        assert serving(models) == version(nut)
        (notice,) = models.tally()["nut"].notices
        assert f"version {version(bundles.nut_more_rows)}, which served before the restart, cannot be loaded" in notice
    assert models.swap("nut", bundles.nut_other_weights).ok
    assert models.tally()["nut"].previous == version(nut)
    assert models.tally()["nut"].notices == ()


def test_line_toml_names_another_bundle_than_when_one_was_swapped_in(
    bundles: LineBundles, nut: Path, start: Callable[..., Models]
) -> None:
    assert start(nut=nut).swap("nut", bundles.nut_more_rows).ok
    models = start(nut=bundles.nut_other_weights)
    assert serving(models) == version(bundles.nut_other_weights)
    assert any("line.toml names another bundle" in notice for notice in models.tally()["nut"].notices)
    assert models.rollback("nut").version == version(bundles.nut_more_rows)
    assert serving(start(nut=bundles.nut_other_weights)) == version(bundles.nut_more_rows)


def test_a_product_taken_out_of_line_toml_and_put_back_serves_what_it_served(
    bundles: LineBundles, nut: Path, start: Callable[..., Models]
) -> None:
    assert start(nut=nut, bolt=bundles.bolt).swap("nut", bundles.nut_more_rows).ok
    assert start(bolt=bundles.bolt).swap("bolt", bundles.bolt).ok
    assert serving(start(nut=nut, bolt=bundles.bolt)) == version(bundles.nut_more_rows)


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from line_bundles import line_config
from adclick_edge.line import models as module

state, first, second, where = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]

def die(*_, **__):
    print("dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

models = module.Models(line_config(state, nut=first), threads=1)
models.open()
if where == "copying":
    from adclick_edge.bundle import Bundle
    real = Bundle.read
    Bundle.read = lambda self, name: die() if name == "segment.onnx" else real(self, name)
elif where == "loading":
    module.load_model = die
elif where == "recording":
    replace = os.replace
    os.replace = lambda a, b: die() if str(b).endswith("serving.json") else replace(a, b)
elif where == "recorded":
    real_write = module.write_serving
    module.write_serving = lambda *a: (real_write(*a), die())
elif where == "exchanged":
    module.Models._unload_retired = die
print(models.swap("nut", second).message, flush=True)
"""


@pytest.mark.parametrize("where", ["copying", "loading", "recording", "recorded", "exchanged"])
def test_a_process_killed_in_the_middle_of_a_swap(
    where: str, bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path
) -> None:
    arguments = [str(Path(__file__).parent), str(tmp_path / "state"), str(nut), str(bundles.nut_more_rows), where]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout == "dying\n"
    models = start(nut=nut)
    expected = bundles.nut_more_rows if where in ("recorded", "exchanged") else nut
    assert serving(models) == version(expected)
    assert verdicts(models) == ["ok", "ng"]
    assert models.tally()["nut"].notices == ()
    assert list((tmp_path / "state").rglob(".*")) == []
    assert models.swap("nut", bundles.nut_other_weights).ok
    assert models.rollback("nut").version == version(expected)


# While the line judges


def test_every_batch_is_judged_by_one_version_while_bundles_are_exchanged(
    bundles: LineBundles, nut: Path, start: Callable[..., Models]
) -> None:
    models = start(nut=nut)
    frames = [good_frame(1), bad_frame(2)]
    expected = {}
    for path in (bundles.nut_more_rows, nut):
        assert models.swap("nut", path).ok
        with models.using("nut") as model:
            expected[model.version] = [f.map for f in model.judge(frames, ["a", "b"], [SHAPE, SHAPE])]
    assert not np.array_equal(*[maps[1] for maps in expected.values()])
    seen: list[str] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def line() -> None:
        try:
            while not stop.is_set():
                with models.using("nut") as model:
                    found = model.judge(frames, ["a", "b"], [SHAPE, SHAPE])
                    for one, map_of in zip(found, expected[model.version], strict=True):
                        assert one.verdict.bundle_version == model.version
                        np.testing.assert_array_equal(one.map, map_of)
                seen.append(model.version)
        except BaseException as error:
            errors.append(error)

    def onlooker() -> None:
        try:
            while not stop.is_set():
                models.reload_settings()
                models.input_size("nut")
                assert models.tally()["nut"].version in expected
                time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=line), threading.Thread(target=onlooker)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            source = (bundles.nut_more_rows, bundles.nut)[number % 2]
            outcome = models.rollback("nut") if number % 4 == 3 else models.swap("nut", source)
            assert outcome.ok, outcome.message
            judged = len(seen)
            deadline = time.monotonic() + 20
            while len(seen) < judged + 2 and not errors and time.monotonic() < deadline:
                time.sleep(0.001)
            assert seen[-1] == outcome.version
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert errors == []
    assert set(seen) == set(expected)
    assert models._retired == []


def test_a_batch_under_way_keeps_its_bundle_until_it_is_judged(
    bundles: LineBundles, nut: Path, start: Callable[..., Models]
) -> None:
    models = start(nut=nut)
    swapped: list[Any] = []
    with models.using("nut") as model:
        other = threading.Thread(target=lambda: swapped.append(models.swap("nut", bundles.nut_other_weights)))
        other.start()
        deadline = time.monotonic() + 20
        while models.tally()["nut"].version == version(nut) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert models.tally()["nut"].version == version(bundles.nut_other_weights)
        (found,) = model.judge([bad_frame(1)], ["a"], [SHAPE])
        assert found.verdict.bundle_version == version(nut)
        assert len(models._engines) == 2
        assert swapped == []
    other.join(20)
    assert swapped[0].ok
    assert len(models._engines) == 1


def test_a_batch_that_never_ends_does_not_hold_up_the_next_swap_for_ever(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "DRAIN_S", 0.01)
    models = start(nut=nut)
    with models.using("nut"):
        assert models.swap("nut", bundles.nut_other_weights).ok
        assert models.swap("nut", bundles.nut_more_rows).ok
        assert len(models._retired) == 1
    models.reload_settings()
    assert models._retired == []


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(found) is kind for found in gc.get_objects())


def test_fifty_swaps_leave_memory_files_and_threads_as_they_were(
    bundles: LineBundles, nut: Path, start: Callable[..., Models], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    broken = with_golden_frames_of_another(bundles.nut_other_weights, tmp_path / "broken")
    zip_of_another = zipped(bundles.nut_other_weights, tmp_path / "other.zip")
    banks = alive(Bank)
    models = start(nut=nut)

    def state() -> tuple[int, int, int, int]:
        return (alive(Bank) - banks, len(os.listdir("/proc/self/fd")), threading.active_count(), len(models._engines))

    def swaps(count: int) -> None:
        for number in range(count):
            source = (zip_of_another, bundles.nut_more_rows, bundles.nut_other_weights, broken, nut)[number % 5]
            assert models.swap("nut", source).ok == (source != broken)
            verdicts(models)

    swaps(10)
    before, rss_before = state(), rss_bytes()
    swaps(50)
    assert state() == before
    assert before[0] == before[3] == 1
    assert rss_bytes() - rss_before < 6 << 20
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list((tmp_path / "state" / "unpacked").iterdir()) == []


STEPS = ["more_rows", "other_weights", "larger", "broken", "back", "restart"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.sampled_from(STEPS), max_size=7))
def test_any_sequence_of_changes_ends_where_its_good_ones_lead(
    steps: list[str], bundles: LineBundles, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sequence")
    broken = with_a_graph_byte_changed(bundles.nut_more_rows, folder / "broken")
    chain = [version(bundles.nut)]
    models = Models(line_config(folder / "state", nut=bundles.nut), threads=1)
    models.open()
    try:
        for step in steps:
            if step == "restart":
                models.close()
                models.open()
            elif step == "back":
                assert models.rollback("nut").ok == (len(chain) > 1)
                chain = chain[:-1] or chain
            elif step == "broken":
                assert not models.swap("nut", broken).ok
            else:
                source = getattr(bundles, f"nut_{step}")
                assert models.swap("nut", source).ok
                chain = [*chain, version(source)][-models_module.KEPT_VERSIONS :]
            tally = models.tally()["nut"]
            assert tally.version == chain[-1]
            assert tally.previous == (chain[-2] if len(chain) > 1 else None)
            assert tally.notices == ()
            with models.using("nut") as model:
                (found,) = model.judge([bad_frame(1, model.input_size[0])], ["a"], [model.input_size])
            assert (found.verdict.verdict, found.verdict.bundle_version) == ("ng", chain[-1])
    finally:
        models.close()
