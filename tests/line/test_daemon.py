"""The daemon as a whole, in this process: real bundles, real sockets, real cameras."""

import errno
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import pytest
from line_bundles import LineBundles, bad_frame, good_frame, make_line_bundles

from adclick_edge.bundle import read_bundle
from adclick_edge.commands import serve
from adclick_edge.errors import EngineError, LineError
from adclick_edge.line import daemon as daemon_module
from adclick_edge.line.camera_client import CameraClient
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.config import Camera, Line, LineConfig, Product, Routing, Security
from adclick_edge.line.control import Shadow, Status, Stop, Swap, ask
from adclick_edge.line.curve import SERVER, CameraKeys, allow, new_keys
from adclick_edge.line.daemon import Daemon
from adclick_edge.line.engines import open_cpu_engine
from adclick_edge.line.models import Models
from adclick_edge.line.spool import Spool
from adclick_edge.runtime.engine import Engine, Maps
from adclick_edge.runtime.inspector import Inspector


@pytest.fixture(scope="module")
def bundles(make_once: Callable[[str, Callable[[Path], object]], Path]) -> LineBundles:
    return make_line_bundles(make_once("line_bundles_root", lambda path: path.mkdir()) / "bundles")


def config_of(folder: Path, bundle: Path, **more: Any) -> LineConfig:
    line = Line(
        bind=(f"ipc://{folder}/line.ipc",), http="127.0.0.1:0", state=folder / "state", heartbeat_ms=100, threads=1
    )
    default: dict[str, Any] = {
        "products": {"nut": Product(bundle=bundle)},
        "cameras": {"cam": Camera(product="nut", deadline_ms=20_000, queue=64)},
    }
    return LineConfig(line=line, **{**default, **more})


@contextmanager
def camera_of(config: LineConfig, name: str = "cam", **more: Any) -> Iterator[CameraClient]:
    with CameraClient(config.line.bind[0], name, **more) as camera:
        assert camera.wait_connected(20), camera.last_error
        yield camera


def verdicts_of(camera: CameraClient, count: int) -> dict[int, CameraVerdict]:
    found = {}
    for _ in range(count):
        verdict = camera.verdict(30)
        assert verdict is not None
        found[verdict.seq] = verdict
    return found


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def encoded(frame: np.ndarray, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def test_the_line_judges_as_inspect_does(bundles: LineBundles, tmp_path: Path) -> None:
    """The same scores, verdicts and boxes as `adclick inspect`, however the frame travels."""
    frames = [good_frame(40, 150), bad_frame(41, 150), good_frame(42, 150)]
    with Inspector.open(bundles.nut, threads=1) as inspector:
        expected = [i.verdict for i in inspector.inspect(frames, ["a", "b", "c"])]
    config = config_of(tmp_path, bundles.nut)
    with Daemon(config):
        for transport in ("ring", "message"):
            with camera_of(config, transport=transport) as camera:
                for frame in frames:
                    camera.trigger(frame)
                for frame in frames:
                    camera.trigger(np.ascontiguousarray(frame[:, :, ::-1]), format="bgr8")
                for frame in frames:
                    camera.trigger_encoded(encoded(frame, ".png"), "png", 150, 150)
                found = verdicts_of(camera, 9)
            for seq, verdict in found.items():
                truth = expected[seq % 3]
                assert verdict.score == pytest.approx(truth.score, rel=1e-5)
                assert (verdict.verdict, verdict.regions_found) == (truth.verdict, truth.regions_found)
                assert verdict.thresholds == (truth.lower, truth.upper)
                assert verdict.product == "nut"
                boxes = [(b.left, b.top, b.width, b.height) for b in truth.regions[: len(verdict.regions)]]
                assert [(r.left, r.top, r.width, r.height) for r in verdict.regions] == boxes
                assert set(verdict.stage_ms) >= {"read", "features", "residual", "segment", "waiting", "total"}
        assert expected[1].verdict != expected[0].verdict


class Poisoned:
    """The CPU back end, which cannot stand white frames, nor anything while it is broken."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, frames: np.ndarray, bank: Any, *, exclude_images: Sequence[int] | None = None) -> Maps:
        if self.broken:
            raise EngineError("the device was lost")
        if any(frame.min() > 250 for frame in frames):
            raise RuntimeError("illegal memory access")
        return self._engine.run(frames, bank, exclude_images=exclude_images)


def test_an_engine_that_raises_costs_the_frames_it_cannot_stand(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    engines: list[Poisoned] = []

    def open_poisoned(folder: Path, threads: int) -> Engine:
        engines.append(Poisoned(open_cpu_engine(folder, threads)))
        return engines[-1]  # type: ignore[return-value]

    with Daemon(config, models=Models(config, threads=1, open_engine=open_poisoned)) as daemon:
        with camera_of(config) as camera:
            white = np.full((64, 64, 3), 255, np.uint8)
            for seq in range(30):
                camera.trigger(white if seq % 5 == 0 else good_frame(seq))
            found = verdicts_of(camera, 30)
            assert {seq for seq, v in found.items() if v.reason == "engine_error"} == set(range(0, 30, 5))
            assert all(v.verdict != "not_inspected" for seq, v in found.items() if seq % 5)
            for engine in engines:
                engine.broken = True
            camera.trigger(good_frame(1))
            assert verdicts_of(camera, 1)[30].reason == "engine_error"
            for engine in engines:
                engine.broken = False
            camera.trigger(good_frame(1))
            assert verdicts_of(camera, 1)[31].verdict != "not_inspected"
        tally = daemon.tally().cameras["cam"]
        assert tally.not_inspected == {"engine_error": 7}
        assert tally.balanced()


def test_a_code_changes_the_product_over(bundles: LineBundles, tmp_path: Path) -> None:
    products = {"nut": Product(bundle=bundles.nut), "bolt": Product(bundle=bundles.bolt, codes=("B12",))}
    config = config_of(tmp_path, bundles.nut, products=products)
    with Daemon(config) as daemon, camera_of(config) as camera:
        for seq in range(8):
            camera.trigger(good_frame(seq), code="B12" if seq % 2 else None)
        camera.trigger(good_frame(9), code="C99")
        found = verdicts_of(camera, 9)
        assert [found[seq].product for seq in range(8)] == ["nut", "bolt"] * 4
        assert found[8].reason == "bad_frame"
        versions = {found[0].bundle_version, found[1].bundle_version}
        assert versions == {p.version for p in daemon.tally().products.values()}
        assert len(versions) == 2


def test_frames_of_two_sizes_and_tiled_products(bundles: LineBundles, tmp_path: Path) -> None:
    products = {"nut": Product(bundle=bundles.nut), "tiled": Product(bundle=bundles.tiled)}
    cameras = {"cam": Camera(product="tiled", deadline_ms=20_000, queue=64)}
    config = config_of(tmp_path, bundles.nut, products=products, cameras=cameras)
    frames = [good_frame(1, 100), good_frame(2, 180)]
    with Inspector.open(bundles.tiled, threads=1) as inspector:
        expected = [inspector.inspect([frame], ["a"])[0].verdict.score for frame in frames]
    with Daemon(config), camera_of(config) as camera:
        for frame in frames:
            camera.trigger(frame)
        found = verdicts_of(camera, 2)
        assert [found[seq].score for seq in range(2)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("transport", ["ring", "message"])
def test_uncertain_frames_reach_the_spool_as_they_were(bundles: LineBundles, tmp_path: Path, transport: str) -> None:
    bundle = uncalibrated(bundles.nut, tmp_path / "raw.bundle")
    config = config_of(tmp_path, bundle, routing=Routing(budget_per_hour=100_000, waiting=64, duplicate_similarity=1.0))
    frames = [good_frame(seq, 120) for seq in range(4)]
    with Daemon(config) as daemon, camera_of(config, transport=transport) as camera:
        for seq, frame in enumerate(frames):
            camera.trigger(frame, part=f"P{seq}")
        camera.trigger_encoded(jpeg := encoded(frames[0], ".jpg"), "jpeg", 120, 120)
        found = verdicts_of(camera, 5)
        assert {(v.verdict, v.reason) for v in found.values()} == {("uncertain", "uncalibrated")}
        until(lambda: daemon.tally().routing.queued == 5)
        assert daemon.tally().routing.balanced()
    spool = Spool(tmp_path / "state" / "relabel", 1 << 30)
    stored = {record.seq: spool.take(path) for path, record in spool.records()}
    assert len(stored) == 5
    for seq, frame in enumerate(frames):
        image = cv2.imdecode(np.frombuffer(stored[seq].image, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        np.testing.assert_array_equal(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), frame)
        assert stored[seq].record.part == f"P{seq}"
        assert stored[seq].record.score == pytest.approx(found[seq].score)
    assert (stored[4].image, stored[4].suffix) == (jpeg, ".jpg")


def uncalibrated(source: Path, out: Path) -> Path:
    shutil.copytree(source, out)
    (out / "calibration.json").unlink()
    return out


def test_thresholds_change_while_the_line_runs(bundles: LineBundles, tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles.nut, tmp_path / "nut.bundle")
    config = config_of(tmp_path, bundle)
    with Daemon(config) as daemon, camera_of(config) as camera:
        camera.trigger(good_frame(3))
        before = verdicts_of(camera, 1)[0]
        with read_bundle(bundle) as opened:
            changed = dict(opened.calibration or {})
            changed.update(t_ng=before.score / 2, upper=before.score / 2, lower=before.score / 4)
            opened.set_calibration(changed)
        until(lambda: daemon.tally().products["nut"].upper == pytest.approx(before.score / 2))
        camera.trigger(good_frame(3))
        after = verdicts_of(camera, 1)[1]
        assert before.verdict in ("ok", "uncertain")
        assert after.verdict == "ng"
        assert after.score == pytest.approx(before.score)
        assert after.bundle_version == before.bundle_version


def test_a_candidate_judges_in_the_shadow(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    with Daemon(config) as daemon, camera_of(config) as camera:
        reply = ask(tmp_path / "state", Shadow("nut", str(bundles.nut_more_rows)), 30)
        assert reply.ok, reply.text
        for seq in range(12):
            camera.trigger(bad_frame(seq) if seq % 2 else good_frame(seq))
        served = verdicts_of(camera, 12)
        until(lambda: daemon.tally().products["nut"].shadow_frames == 12)
        tally = daemon.tally().products["nut"]
        assert tally.shadow is not None
        assert {v.bundle_version for v in served.values()} == {tally.version}
        assert tally.shadow != tally.version
        assert sum(tally.shadow_changed.values()) <= 12
        assert ask(tmp_path / "state", Shadow("nut", None), 30).ok
        assert daemon.tally().products["nut"].shadow is None


def test_a_swap_to_another_input_size_between_two_frames(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    with Daemon(config), camera_of(config) as camera:
        stop = threading.Event()

        def trigger() -> None:
            while not stop.wait(0.004):
                camera.trigger(good_frame(1, 100))

        thread = threading.Thread(target=trigger)
        thread.start()
        try:
            for bundle in (bundles.nut_larger, bundles.nut, bundles.nut_larger):
                assert ask(tmp_path / "state", Swap("nut", str(bundle)), 30).ok
        finally:
            stop.set()
            thread.join()
        found = verdicts_of(camera, camera.counts.triggers)
        assert "not_inspected" not in {v.verdict for v in found.values()}
        assert len({v.bundle_version for v in found.values()}) == 2


def test_health_and_metrics(bundles: LineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, bundles.nut)
    with Daemon(config) as daemon, camera_of(config) as camera:
        for seq in range(5):
            camera.trigger(good_frame(seq))
        verdicts_of(camera, 5)

        def get(path: str) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://{daemon.http_address}{path}", timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        assert get("/healthz")[0] == 200
        assert get("/readyz")[0] == 200
        metrics = get("/metrics")[1]
        received = next(line for line in metrics.splitlines() if line.startswith("adclick_line_frames_received_total{"))
        assert float(received.rsplit(" ", 1)[1]) == 5
        assert json.loads(get("/status")[1])["cameras"]["cam"]["received"] == 5
        judge = daemon._judge
        assert judge is not None
        monkeypatch.setattr(daemon_module, "ENGINE_STUCK_S", 0.0)
        judge.busy_since_ns = time.monotonic_ns() - 60_000_000_000
        assert get("/healthz")[0] == 503
        assert get("/readyz")[0] == 503
        judge.busy_since_ns = None
        assert get("/healthz")[0] == 200


def test_control_over_its_socket(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    with Daemon(config) as daemon:
        status = ask(tmp_path / "state", Status(), 10)
        assert status.details["cameras"]["cam"]["received"] == 0
        assert not ask(tmp_path / "state", Swap("screw", str(bundles.nut)), 10).ok
        assert ask(tmp_path / "state", Stop(), 10).ok
        assert daemon.stop_asked.is_set()
    with pytest.raises(LineError):
        ask(tmp_path / "state", Status(), 1)


def test_only_cameras_with_a_key_of_the_list_are_served(bundles: LineBundles, tmp_path: Path) -> None:
    keys, own = tmp_path / "keys", tmp_path / "own"
    new_keys(keys, SERVER)
    public = {name: new_keys(own / name, name) for name in ("cam", "thief")}
    for name in public:
        shutil.copy(keys / f"{SERVER}.public", own / name)
    allow(keys, "cam", public["cam"])
    allow(keys, "other", public["thief"])
    cameras = {name: Camera(product="nut", deadline_ms=20_000) for name in ("cam", "other")}
    config = config_of(tmp_path, bundles.nut, cameras=cameras, security=Security(curve=True, keys=keys))
    with Daemon(config) as daemon:
        with camera_of(config, keys=CameraKeys.load(own / "cam")) as camera:
            camera.trigger(good_frame(1))
            assert not verdicts_of(camera, 1)[0].local
        for given in (CameraKeys.load(own / "thief"), None):
            with CameraClient(config.line.bind[0], "cam", keys=given) as camera:
                assert not camera.wait_connected(0.7)
        assert daemon.tally().strangers.get("not_allowed", 0) >= 1
        assert daemon.tally().cameras["cam"].received == 1


def test_a_shift_goes_on_after_a_restart(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    for _ in range(2):
        with Daemon(config) as daemon, camera_of(config) as camera:
            for seq in range(6):
                camera.trigger(good_frame(seq))
            verdicts_of(camera, 6)
            camera.close()
    record = daemon._shift.running()
    assert record is not None
    assert record.cameras["cam"].received == 12
    assert len(record.restarts) == 1


def test_a_daemon_that_cannot_start_leaves_nothing_behind(bundles: LineBundles, tmp_path: Path) -> None:
    config = config_of(tmp_path, bundles.nut)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with Daemon(config), pytest.raises(LineError, match="state"):
        Daemon(config).start()
    taken = msgspec.structs.replace(config.line, state=tmp_path / "other", bind=("tcp://192.0.2.1:5555",))
    with pytest.raises(LineError, match=r"192\.0\.2\.1"):
        Daemon(msgspec.structs.replace(config, line=taken)).start()
    until(lambda: threading.active_count() == threads)
    assert len(os.listdir("/proc/self/fd")) <= files + 2


def test_a_full_disk_at_the_stop_leaves_nothing_running(
    bundles: LineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, bundles.nut)
    threads = threading.active_count()
    daemon = Daemon(config)
    daemon.start()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(daemon._drift, "save", full)
    daemon.stop()
    until(lambda: threading.active_count() == threads)
    with Daemon(config):  # the state folder is free again
        pass


def test_the_state_folder_is_held_until_everything_is_closed(
    bundles: LineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon, which may wait already, must not meet the one before writing there."""
    config = config_of(tmp_path, bundles.nut)
    daemon = Daemon(config)
    daemon.start()
    close, seen = daemon.models.close, []

    def closing() -> None:
        reply = ask(tmp_path / "state", Swap("nut", str(bundles.nut)), 10)
        seen.append((reply.ok, reply.text))
        with pytest.raises(LineError, match="runs here already"):
            Daemon(config).start()
        close()

    monkeypatch.setattr(daemon.models, "close", closing)
    daemon.stop()
    assert seen == [(False, "the daemon is stopping; nothing was changed")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["front", "judge", "decode-0"])
def test_a_thread_that_ended_is_noticed(bundles: LineBundles, tmp_path: Path, name: str) -> None:
    with Daemon(config_of(tmp_path, bundles.nut)) as daemon:
        assert daemon.ended() == []
        assert daemon.seconds_silent() < 10
        thread = next(t for t in threading.enumerate() if t.name == name)
        cast(Any, thread)._stopping.set()
        until(lambda: daemon.ended() == [name])
        assert daemon.seconds_silent() == float("inf")
        assert daemon.why_not_ready() is not None
    assert daemon.ended() == []


def test_a_thread_that_cannot_be_started_says_so(
    bundles: LineBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(daemon_module.DecodeWorker, "start", refused)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Daemon(config_of(tmp_path, bundles.nut)).start()
    until(lambda: threading.active_count() == threads)


def test_refusals_are_noted_while_others_read_them(bundles: LineBundles, tmp_path: Path) -> None:
    class Gate:
        def refused(self) -> dict[str, int]:
            return {"unknown_key": 2, "mechanism": 1}

        def problem(self) -> None:
            return None

    daemon = Daemon(config_of(tmp_path, bundles.nut))
    daemon._gate = cast(Any, Gate())
    daemon._refused = {"unknown_key": 1}
    reading = iter(daemon._refused.items())
    daemon._note_refusals()
    assert list(reading) == [("unknown_key", 1)]
    assert daemon.tally().strangers == {"key: unknown_key": 2, "key: mechanism": 1}
    daemon._context.term()


def test_serve_ends_when_a_thread_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever supervises it starts it again, instead of a line that answers nothing."""

    class Faulty:
        stop_asked = threading.Event()

        def __init__(self, config: object) -> None:
            pass

        def __enter__(self) -> "Faulty":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ended(self) -> list[str]:
            return ["judge"]

    monkeypatch.setattr(serve, "Daemon", Faulty)
    monkeypatch.setattr(serve, "read_line_file", lambda path: None)
    monkeypatch.setattr(serve, "configure_logs", lambda json: None)
    with pytest.raises(LineError, match="judge"):
        serve.run(tmp_path / "line.toml", None)
