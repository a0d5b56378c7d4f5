import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_bundles import (
    SIDE,
    LineBundles,
    bad_frame,
    copied,
    good_frame,
    line_config,
    make_line_bundles,
    version,
    with_golden_frames_of_another,
    without_thresholds,
    zipped,
)

from adclick_edge.bundle import read_bundle, write_bundle
from adclick_edge.data.resize import fit
from adclick_edge.errors import AdclickError, EngineError, LineError
from adclick_edge.line.engines import Turns, open_cpu_engine
from adclick_edge.line.models import Models
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.engine import Engine, Maps
from adclick_edge.runtime.inspector import Inspection, Inspector
from adclick_edge.runtime.regions import Regions, store_regions

SHAPE = (SIDE, SIDE)
IGNORED_CORNER = Regions(ignore=(((0.0, 0.0), (0.2, 0.0), (0.2, 0.2)),))


@pytest.fixture(scope="module")
def bundles(make_once: Callable[[str, Callable[[Path], object]], Path]) -> LineBundles:
    return make_line_bundles(make_once("line_bundles_root", lambda path: path.mkdir()) / "bundles")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Models]]:
    """``opened(nut=folder, ...)``: models of these products, closed at the end of the test."""
    made: list[Models] = []

    def make(*, open_engine: Any = open_cpu_engine, max_batch: int = 2, codes: Any = None, **paths: Path) -> Models:
        config = line_config(tmp_path / "state", max_batch, codes, **paths)
        models = Models(config, threads=1, open_engine=open_engine)
        made.append(models)
        models.open()
        return models

    yield make
    for models in made:
        models.close()


def judge(models: Models, *frames: np.ndarray, product: str = "nut") -> list[Inspection]:
    with models.using(product) as model:
        return model.judge(frames, [str(n) for n in range(len(frames))], [f.shape[:2] for f in frames])


def verdicts(models: Models, product: str = "nut") -> list[str]:
    return [found.verdict.verdict for found in judge(models, good_frame(7), bad_frame(8), product=product)]


class Spy:
    """Opens engines that can be told to fail, and that say which batches they ran."""

    def __init__(self) -> None:
        self.opened: list[Path] = []
        self.batches: list[int] = []
        self.fail: Callable[[Path], bool] = lambda folder: False

    def __call__(self, folder: Path, threads: int) -> Engine:
        engine = open_cpu_engine(folder, threads)
        self.opened.append(folder)
        inner = engine.run

        def run(frames: Any, bank: Any, **options: Any) -> Maps:
            self.batches.append(len(frames))
            if self.fail(folder):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return inner(frames, bank, **options)

        engine.run = run  # type: ignore[method-assign]
        return engine


def test_a_defect_is_ng_and_its_box_is_in_pixels_of_the_frame_as_it_came(
    bundles: LineBundles, opened: Callable[..., Models]
) -> None:
    models = opened(nut=bundles.nut)
    with models.using("nut") as model:
        good, bad = model.judge([good_frame(7), bad_frame(8)], ["a", "b"], [(640, 480), (640, 480)])
        assert (model.product, model.version) == ("nut", version(bundles.nut))
        assert (model.input_size, model.tiled) == (SHAPE, False)
    assert (good.verdict.verdict, bad.verdict.verdict) == ("ok", "ng")
    assert bad.verdict.bundle_version == version(bundles.nut)
    assert {"features", "residual", "segment"} <= set(bad.verdict.stage_ms)
    blob = bad.verdict.regions[0]
    assert blob.left <= 0.6 * 480 <= blob.left + blob.width <= 480
    assert blob.top <= 0.4 * 640 <= blob.top + blob.height <= 640
    assert blob.height > SIDE


def test_frames_resized_before_are_judged_as_frames_resized_by_the_inspector(
    bundles: LineBundles, opened: Callable[..., Models]
) -> None:
    frames = [good_frame(3, 200), bad_frame(4, 150)]
    with Inspector.open(bundles.nut, threads=1) as inspector:
        expected = inspector.inspect(frames, ["a", "b"])
    with opened(nut=bundles.nut).using("nut") as model:
        found = model.judge([fit(f, SHAPE) for f in frames], ["a", "b"], [f.shape[:2] for f in frames])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.map, theirs.map)
        assert ours.verdict.regions == theirs.verdict.regions
        assert (ours.verdict.verdict, ours.verdict.score) == (theirs.verdict.verdict, theirs.verdict.score)


def test_tiled_products_take_frames_as_large_as_they_are(bundles: LineBundles, opened: Callable[..., Models]) -> None:
    models = opened(tiled=bundles.tiled, nut=bundles.nut)
    assert models.input_size("tiled") is None
    assert models.input_size("nut") == SHAPE
    (found,) = judge(models, bad_frame(1, 150), product="tiled")
    assert found.map.shape == (38, 38)
    with models.using("tiled") as model, pytest.raises(LineError, match="decode it again"):
        model.judge([good_frame(1, SIDE)], ["a"], [(150, 150)])


def test_frames_of_another_size_are_refused_not_resized_again(
    bundles: LineBundles, opened: Callable[..., Models]
) -> None:
    models = opened(nut=bundles.nut)
    with models.using("nut") as model:
        for frame in (good_frame(1, 96), good_frame(1)[:, :, 0], good_frame(1)[:-1]):
            with pytest.raises(LineError, match=r"cam/7: decoded to .* takes \[64, 64, 3\]; decode it again"):
                model.judge([good_frame(1), frame], ["cam/6", "cam/7"], [SHAPE, SHAPE])


def test_products_with_the_same_graphs_share_one_engine(bundles: LineBundles, opened: Callable[..., Models]) -> None:
    spy = Spy()
    models = opened(nut=bundles.nut, bolt=bundles.bolt, tiled=bundles.tiled, open_engine=spy)
    assert len(spy.opened) == 1
    scores = {product: judge(models, good_frame(9), product=product)[0].verdict.score for product in ("nut", "bolt")}
    for product, score in scores.items():
        with Inspector.open(getattr(bundles, product), threads=1) as alone:
            assert alone.inspect([good_frame(9)], ["a"])[0].verdict.score == score
    assert scores["nut"] != scores["bolt"]
    assert models.swap("bolt", bundles.bolt).ok
    assert len(spy.opened) == 1


def test_products_with_other_graphs_do_not(bundles: LineBundles, opened: Callable[..., Models], tmp_path: Path) -> None:
    spy = Spy()
    models = opened(nut=bundles.nut_other_weights, bolt=bundles.bolt, open_engine=spy)
    assert len(spy.opened) == 2
    assert verdicts(models) == ["ok", "ng"]


def test_every_batch_size_was_run_before_the_first_frame(bundles: LineBundles, opened: Callable[..., Models]) -> None:
    spy = Spy()
    opened(nut=bundles.nut, open_engine=spy, max_batch=5)
    assert {1, 2, 3, 4, 5} == set(spy.batches)


def test_the_product_of_a_frame(bundles: LineBundles, opened: Callable[..., Models]) -> None:
    models = opened(nut=bundles.nut, bolt=bundles.bolt, codes={"bolt": ("4711", "4712")})
    assert models.product_for("cam-nut", None) == "nut"
    assert models.product_for("cam-nut", "4712") == "bolt"
    with pytest.raises(LineError, match=r"no product of line\.toml has the code '4713'"):
        models.product_for("cam-nut", "4713")
    with pytest.raises(LineError, match=r"no product of line\.toml has the code ''"):
        models.product_for("cam-nut", "")
    with pytest.raises(LineError, match="names no camera 'cam-9'"):
        models.product_for("cam-9", None)


def test_products_that_are_not_served(bundles: LineBundles, opened: Callable[..., Models]) -> None:
    models = opened(nut=bundles.nut)
    for call in (models.input_size, models.shadowed, lambda p: judge(models, good_frame(0), product=p)):
        with pytest.raises(LineError, match="no product 'screw' is served; served: nut"):
            call("screw")
    for outcome in (models.swap("screw", bundles.nut), models.rollback("screw"), models.shadow("screw", bundles.nut)):
        assert not outcome.ok
        assert "no product 'screw' is served" in outcome.message
    with pytest.raises(LineError, match="open already"):
        models.open()
    with models.using("nut") as model:
        held = model
    models.close()
    models.close()
    assert models.tally() == {}
    with pytest.raises(LineError, match="the models are closed"):
        judge(models, good_frame(0))
    with pytest.raises(EngineError, match="was unloaded"):
        held.judge([good_frame(0)], ["a"], [SHAPE])
    models.open()
    assert verdicts(models) == ["ok", "ng"]


def test_a_bundle_that_fails_its_checks_stops_the_start_and_leaves_nothing(
    bundles: LineBundles, tmp_path: Path
) -> None:
    wrong = with_golden_frames_of_another(bundles.bolt, tmp_path / "wrong")
    for bolt, error in (
        (wrong, r"wrong: golden frame 000 differs"),
        (tmp_path / "nowhere", "there is no bundle here"),
        (bundles.nut, "holds the product 'nut', not 'bolt'"),
    ):
        spy = Spy()
        models = Models(line_config(tmp_path / "state", nut=bundles.nut, bolt=bolt), threads=1, open_engine=spy)
        with pytest.raises(AdclickError, match=error):
            models.open()
        assert models.tally() == {}
        assert len(models._engines) == 0


def test_a_state_folder_that_cannot_be_written_is_said_at_the_start(bundles: LineBundles, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(LineError, match=r"check `state` of line\.toml"):
        Models(line_config(tmp_path / "state", nut=bundles.nut), threads=1).open()


def test_a_bundle_without_thresholds_serves_at_a_start_and_is_reported(
    bundles: LineBundles, opened: Callable[..., Models], tmp_path: Path
) -> None:
    models = opened(nut=without_thresholds(bundles.nut, tmp_path / "bare"))
    assert verdicts(models) == ["uncertain", "uncertain"]
    (notice,) = models.tally()["nut"].notices
    assert "no thresholds" in notice
    assert "adclick calibrate" in notice


# Thresholds and regions, changed while the line runs


def set_thresholds(path: Path, score: float) -> None:
    with read_bundle(path) as bundle:
        store_calibration(bundle, calibrate([score * s for s in (0.8, 0.9, 1.0)], false_alarms=0.1, source="held_out"))


def set_regions(path: Path, regions: Regions) -> None:
    with read_bundle(path) as bundle:
        store_regions(bundle, regions, (SIDE // 4, SIDE // 4))


@pytest.fixture
def nut(bundles: LineBundles, tmp_path: Path) -> Path:
    return copied(bundles.nut, tmp_path / "nut")


def test_new_thresholds_are_taken_over_while_the_line_runs(nut: Path, opened: Callable[..., Models]) -> None:
    models = opened(nut=nut)
    before = models.tally()["nut"]
    assert models.reload_settings() == []
    set_thresholds(nut, 0.01)
    assert verdicts(models) == ["ok", "ng"]
    assert models.reload_settings() == ["nut"]
    assert verdicts(models) == ["ng", "ng"]
    assert models.reload_settings() == []
    after = models.tally()["nut"]
    assert (after.version, after.notices) == (before.version, ())
    assert after.upper != before.upper
    assert after.upper == judge(models, good_frame(1))[0].verdict.upper


def test_new_thresholds_of_a_zip_too(nut: Path, opened: Callable[..., Models], tmp_path: Path) -> None:
    path = zipped(nut, tmp_path / "nut.zip")
    models = opened(nut=path)
    assert verdicts(models) == ["ok", "ng"]
    set_thresholds(path, 0.01)
    assert models.reload_settings() == ["nut"]
    assert verdicts(models) == ["ng", "ng"]


def test_a_damaged_file_keeps_the_thresholds_in_use_until_it_is_whole(nut: Path, opened: Callable[..., Models]) -> None:
    models = opened(nut=nut)
    whole = (nut / "calibration.json").read_bytes()

    def half_copied(path: Path) -> None:
        path.write_bytes(whole[:-20])

    def of_another_bundle(path: Path) -> None:
        with read_bundle(nut) as bundle:
            bundle.set_calibration({**(bundle.calibration or {}), "bundle_version": "0" * 12})

    for spoil, says in (
        (half_copied, "cannot be read"),
        (lambda path: path.write_bytes(whole.replace(b'"upper":', b'"upper":1')), "checksum"),
        (lambda path: path.unlink(), "calibration.json is gone"),
        (of_another_bundle, "scores differ between bundles"),
    ):
        spoil(nut / "calibration.json")
        for _ in range(2):
            assert models.reload_settings() == []
            (notice,) = models.tally()["nut"].notices
            assert notice.startswith("the thresholds and regions from before are still used: ")
            assert says in notice
            assert verdicts(models) == ["ok", "ng"]
        (nut / "calibration.json").write_bytes(whole)
        assert models.reload_settings() == []
        assert models.tally()["nut"].notices == ()


def test_new_regions_wait_for_thresholds_made_under_them(nut: Path, opened: Callable[..., Models]) -> None:
    models = opened(nut=nut)
    set_regions(nut, IGNORED_CORNER)
    assert models.reload_settings() == []
    (notice,) = models.tally()["nut"].notices
    assert "the regions changed after the thresholds were set" in notice
    assert verdicts(models) == ["ok", "ng"]
    with models.using("nut") as model:
        assert model.settings.regions == Regions()
    set_thresholds(nut, 100.0)
    assert models.reload_settings() == ["nut"]
    assert models.tally()["nut"].notices == ()
    assert verdicts(models) == ["ok", "ok"]
    with models.using("nut") as model:
        assert model.settings.regions == IGNORED_CORNER


def test_regions_that_leave_nothing_are_not_taken(nut: Path, opened: Callable[..., Models]) -> None:
    models = opened(nut=nut)
    with read_bundle(nut) as bundle:
        bundle.set_regions(Regions(roi=(((0.0, 0.0), (0.001, 0.0), (0.0, 0.001)),)))
    set_thresholds(nut, 1.0)
    assert models.reload_settings() == []
    (notice,) = models.tally()["nut"].notices
    assert "leave nothing of the frame to inspect" in notice
    assert verdicts(models) == ["ok", "ng"]


def test_thresholds_of_a_bundle_that_took_the_place_are_not_taken(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models]
) -> None:
    models = opened(nut=nut)
    with read_bundle(bundles.nut_more_rows) as other:
        files = {name: other.read(name) for name in other.manifest.files}
        fields = {
            name: getattr(other.manifest, name)
            for name in other.manifest.__struct_fields__
            if name not in ("schema_version", "version", "files", "adclick_edge_version", "manifest_sha256")
        }
    import msgspec

    write_bundle(nut, msgspec.to_builtins(fields), files)
    assert models.reload_settings() == []
    (notice,) = models.tally()["nut"].notices
    assert "another bundle took its place" in notice
    assert verdicts(models) == ["ok", "ng"]


# A candidate that judges too


def shadow_batch(models: Models, *frames: np.ndarray) -> list[str]:
    found = [inspection.verdict for inspection in judge(models, *frames)]
    names = [str(n) for n in range(len(frames))]
    models.shadow_judge("nut", frames, names, [f.shape[:2] for f in frames], found)
    return [verdict.verdict for verdict in found]


def test_a_candidate_judges_the_same_frames_and_differences_are_counted(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models], tmp_path: Path
) -> None:
    models = opened(nut=nut)
    assert not models.shadowed("nut")
    shadow_batch(models, good_frame(1))
    strict = copied(bundles.nut_more_rows, tmp_path / "strict")
    set_thresholds(strict, 0.01)
    outcome = models.shadow("nut", strict)
    assert (outcome.ok, outcome.version, outcome.previous_version) == (True, version(strict), version(nut))
    assert models.shadowed("nut")
    assert shadow_batch(models, good_frame(1), bad_frame(2)) == ["ok", "ng"]
    assert shadow_batch(models, good_frame(3)) == ["ok"]
    tally = models.tally()["nut"]
    assert (tally.shadow, tally.shadow_frames, tally.shadow_failures) == (version(strict), 3, 0)
    assert tally.shadow_changed == {"ok->ng": 2}
    assert tally.version == version(nut)
    set_thresholds(strict, 100.0)
    assert models.reload_settings() == ["nut"]
    shadow_batch(models, bad_frame(2))
    assert models.tally()["nut"].shadow_changed == {"ok->ng": 2, "ng->ok": 1}
    assert models.shadow("nut", None).ok
    shadow_batch(models, good_frame(3))
    tally = models.tally()["nut"]
    assert (tally.shadow, tally.shadow_frames) == (None, 4)
    assert models.shadow("nut", strict).ok
    assert models.tally()["nut"].shadow_frames == 0


def test_a_candidate_that_fails_never_touches_what_serves(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models]
) -> None:
    spy = Spy()
    models = opened(nut=nut, open_engine=spy)
    assert models.shadow("nut", bundles.nut_other_weights).ok
    assert len(models._engines) == 2
    spy.fail = lambda folder: folder == bundles.nut_other_weights
    for _ in range(4):
        assert shadow_batch(models, good_frame(1), bad_frame(2)) == ["ok", "ng"]
    spy.fail = lambda folder: False
    shadow_batch(models, good_frame(1))
    spy.fail = lambda folder: folder == bundles.nut_other_weights
    for _ in range(4):
        shadow_batch(models, good_frame(1))
    assert models.shadowed("nut")
    assert models.tally()["nut"].notices == ()
    shadow_batch(models, good_frame(1))
    assert not models.shadowed("nut")
    assert shadow_batch(models, good_frame(1), bad_frame(2)) == ["ok", "ng"]
    tally = models.tally()["nut"]
    assert (tally.shadow, tally.shadow_frames, tally.shadow_failures, tally.shadow_changed) == (None, 1, 9, {})
    (notice,) = tally.notices
    assert version(bundles.nut_other_weights) in notice
    assert "illegal memory access" in notice
    models.reload_settings()
    assert len(models._engines) == 1


def test_a_candidate_whose_maps_are_not_finite_has_failed(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models]
) -> None:
    models = opened(nut=nut)
    assert models.shadow("nut", bundles.nut_more_rows).ok
    judge_of = models._entries["nut"].shadow.model  # type: ignore[union-attr]

    def not_finite(frames: Any, *_: Any, **__: Any) -> list[Inspection]:
        from adclick_edge.runtime.decision import not_inspected

        return [Inspection(not_inspected("engine_error", frame="7"), np.full((16, 16), np.nan, np.float32))]

    judge_of.judge = not_finite  # type: ignore[method-assign]
    shadow_batch(models, good_frame(1))
    tally = models.tally()["nut"]
    assert (tally.shadow_failures, tally.shadow_frames, tally.shadow_changed) == (1, 0, {})


def test_candidates_that_cannot_be_compared_are_refused(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models], tmp_path: Path
) -> None:
    models = opened(nut=nut)
    assert models.shadow("nut", bundles.nut_more_rows).ok
    bare = without_thresholds(bundles.nut, tmp_path / "bare")
    for candidate, says in (
        (bundles.nut_larger, "another size"),
        (bundles.bolt, "holds the product 'bolt'"),
        (bare, "every frame would be uncertain"),
        (tmp_path / "nowhere", "no bundle here"),
    ):
        outcome = models.shadow("nut", candidate)
        assert not outcome.ok
        assert says in outcome.message
        assert outcome.version == models.tally()["nut"].shadow == version(bundles.nut_more_rows)
    assert models.tally()["nut"].failed_swaps == 0
    assert models.shadow("nut", bare, force=True).ok
    shadow_batch(models, good_frame(1))
    assert models.tally()["nut"].shadow_changed == {"ok->uncertain": 1}


def test_a_comparison_ends_when_the_candidate_serves_or_frames_change(
    bundles: LineBundles, nut: Path, opened: Callable[..., Models]
) -> None:
    models = opened(nut=nut)
    assert models.shadow("nut", bundles.nut_more_rows).ok
    assert models.swap("nut", bundles.nut_other_weights).ok
    assert models.shadowed("nut")
    assert models.swap("nut", bundles.nut_more_rows).ok
    assert not models.shadowed("nut")
    assert models.tally()["nut"].notices == ()
    assert models.shadow("nut", nut).ok
    outcome = models.swap("nut", bundles.nut_larger)
    assert outcome.ok
    assert not models.shadowed("nut")
    (notice,) = models.tally()["nut"].notices
    assert "frames of another size" in notice
    assert notice in outcome.message


def test_frames_of_the_line_go_before_those_that_check_a_bundle() -> None:
    turns, order = Turns(patience_s=60), list[str]()

    def check() -> None:
        with turns.checking():
            order.append("check")

    def judge() -> None:
        with turns.judging():
            order.append("judge")

    with turns.checking():
        threads = [threading.Thread(target=check) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads.append(threading.Thread(target=judge))
        threads[-1].start()
        deadline = time.monotonic() + 10
        while turns._judges_waiting == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["judge", "check", "check", "check"]


def test_a_check_gets_its_turn_on_a_line_without_a_gap() -> None:
    turns, stop, checked = Turns(patience_s=0.01), threading.Event(), threading.Event()

    def judge() -> None:
        while not stop.is_set():
            with turns.judging():
                deadline = time.monotonic() + 10
                while turns._judges_waiting == 0 and not stop.is_set() and time.monotonic() < deadline:
                    time.sleep(0.001)  # the other one waits before this one ends: never nobody

    def check() -> None:
        with turns.checking():
            checked.set()

    threads = [threading.Thread(target=work) for work in (judge, judge, check)]
    for thread in threads:
        thread.start()
    try:
        assert checked.wait(20)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def test_closing_leaves_no_file_open_and_no_folder_behind(
    bundles: LineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    path = zipped(bundles.nut, tmp_path / "nut.zip")
    before = len(os.listdir("/proc/self/fd"))
    models = Models(line_config(tmp_path / "state", nut=path), threads=1)
    models.open()
    assert verdicts(models) == ["ok", "ng"]
    models.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert list((tmp_path / "scratch").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["bundles"]
