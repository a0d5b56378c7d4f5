import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import DataError, LineError, UsageError
from adclick_edge.line.sources.folder import FolderSource
from adclick_edge.line.sources.genicam import Device, GenicamSource, open_with_harvesters
from adclick_edge.line.sources.live import LiveSource
from adclick_edge.line.sources.pace import Pace
from adclick_edge.line.sources.video import VideoSource

PATIENCE_S = 20.0
FAST_HZ = 10_000.0


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.005)


class Time:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> bool:
        self.now_ns += max(1, round(seconds * 1e9))
        return False


@settings(deadline=None, max_examples=100)
@given(st.floats(0.5, 1000), st.lists(st.floats(0, 5), max_size=40))
def test_ticks_are_kept_or_counted(rate_hz: float, busy_periods: list[float]) -> None:
    time_ = Time()
    pace = Pace(rate_hz, clock=time_.clock, sleep=time_.sleep)
    start_ns = pace.wait()
    assert start_ns == 1_000
    for given_ticks, periods in enumerate(busy_periods, 1):
        time_.now_ns += int(periods * 1e9 / rate_hz)
        tick_ns = pace.wait()
        assert tick_ns is not None
        number = (tick_ns - start_ns) * rate_hz / 1e9
        assert number == pytest.approx(given_ticks + pace.missed, abs=1e-3)
        assert tick_ns <= time_.now_ns < tick_ns + 1.001e9 / rate_hz + 2


def test_a_slow_consumer_misses_ticks_and_gets_no_burst() -> None:
    time_ = Time()
    pace = Pace(10, clock=time_.clock, sleep=time_.sleep)
    pace.wait()
    time_.now_ns += 350_000_000
    assert pace.wait() == 1_000 + 300_000_000
    assert pace.missed == 2
    assert pace.wait() == 1_000 + 400_000_000
    assert pace.missed == 2


def test_a_wait_for_a_tick_can_be_ended() -> None:
    pace = Pace(0.001)
    assert pace.wait() is not None
    threading.Timer(0.05, pace.stop).start()
    began = time.monotonic()
    assert pace.wait() is None
    assert pace.wait() is None
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e6])
def test_rates_are_checked(rate: float) -> None:
    with pytest.raises(UsageError, match="rate"):
        Pace(rate)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name, shade in (("10.png", 10), ("2.jpg", 2), ("deeper/1.bmp", 1)):
        picture = np.full((6, 8, 3), (0, 0, shade), np.uint8)  # BGR
        assert cv2.imwrite(str(folder / name), picture)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_in_natural_order_decoded(pictures: Path) -> None:
    source = FolderSource(pictures, FAST_HZ)
    frames = list(source)
    assert [f.name for f in frames] == ["2.jpg", "10.png", "deeper/1.bmp"]
    assert [(f.format, f.width, f.height, f.encoded) for f in frames] == [("rgb8", 8, 6, None)] * 3
    assert frames[1].pixels is not None
    assert frames[1].pixels[0, 0].tolist() == [10, 0, 0]
    assert frames[0].captured_ns <= frames[1].captured_ns <= time.monotonic_ns()


def test_a_folders_files_untouched(pictures: Path) -> None:
    frames = list(FolderSource(pictures, FAST_HZ, encoded=True))
    assert [f.format for f in frames] == ["jpeg", "png", "rgb8"]
    assert frames[0].encoded == (pictures / "2.jpg").read_bytes()
    assert (frames[0].width, frames[0].height, frames[0].pixels) == (8, 6, None)
    assert frames[2].encoded is None


@pytest.mark.parametrize("encoded", [False, True])
def test_unreadable_pictures_are_passed_over_and_counted(pictures: Path, encoded: bool) -> None:
    (pictures / "3.png").write_bytes((pictures / "10.png").read_bytes()[:-9])
    source = FolderSource(pictures, FAST_HZ, encoded=encoded)
    assert [f.name for f in source] == ["2.jpg", "10.png", "deeper/1.bmp"]
    assert source.counts["unreadable"] == 1
    assert "truncated" in source.faults["3.png"]


def test_a_loop_goes_on_until_closed(pictures: Path) -> None:
    source = FolderSource(pictures, FAST_HZ, loop=True)
    names = [next(source).name for _ in range(7)]
    assert names[:3] == names[3:6]
    source.close()
    assert list(source) == []


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        FolderSource(tmp_path / "none", 1)
    with pytest.raises(DataError, match="no pictures"):
        FolderSource(tmp_path, 1)
    (tmp_path / "a.png").write_bytes(b"no")
    (tmp_path / "b.png").write_bytes(b"no")
    assert list(FolderSource(tmp_path, FAST_HZ)) == []
    with pytest.raises(DataError, match="none of its pictures"):
        next(FolderSource(tmp_path, FAST_HZ, loop=True))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


def test_a_video(video: Path) -> None:
    source = VideoSource(video, FAST_HZ)
    frames = list(source)
    assert [f.name for f in frames] == [f"video.avi#{n}" for n in range(5)]
    assert [(f.format, f.width, f.height) for f in frames] == [("bgr8", 64, 48)] * 5
    assert [round(float(f.pixels.mean()) / 40) for f in frames if f.pixels is not None] == [0, 1, 2, 3, 4]
    assert source.counts["unreadable"] == 0


def test_a_video_loops_and_ends_when_closed(video: Path) -> None:
    source = VideoSource(video, FAST_HZ, loop=True)
    assert [next(source).name[-1] for _ in range(8)] == list("01234012")
    source.close()
    assert list(source) == []


def test_a_video_at_its_own_rate(video: Path) -> None:
    source = VideoSource(video, None)
    first, second = next(source), next(source)
    assert second.captured_ns - first.captured_ns == pytest.approx(40_000_000 * (1 + source.counts["missed_ticks"]))
    source.close()


def test_a_damaged_video_says_what_it_lacks(video: Path) -> None:
    data = video.read_bytes()
    third = [at for at in range(len(data)) if data[at : at + 4] == b"00dc"][2]
    video.write_bytes(data[:third])
    source = VideoSource(video, FAST_HZ)
    assert len(list(source)) + source.counts["unreadable"] == 5
    assert source.counts["unreadable"] >= 1


def test_no_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        VideoSource(tmp_path / "none.avi", 1)
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(DataError, match="not a video"):
        VideoSource(tmp_path / "text.avi", 1)


CAMERA = """
import os, sys, time
import numpy as np
from adclick_edge.line.sources.capture_child import serve

count_file, behaviours = sys.argv[1:3]
start = len(open(count_file).read()) if os.path.exists(count_file) else 0
open(count_file, "a").write("x")
behaviour = (behaviours.split(",") + ["grey"] * 99)[start]

class Camera:
    number = 0
    def read(self):
        self.number += 1
        if self.number == 4:
            if behaviour == "stalls": time.sleep(1000)
            if behaviour == "raises": raise RuntimeError("the driver is upset")
            if behaviour == "dies": os._exit(3)
            if behaviour == "ends": return False, None
            if behaviour == "grows": return True, np.zeros((600, 800, 3), np.uint8)
        time.sleep(0.005)
        return True, np.full((24, 32) if behaviour == "grey" else (24, 32, 3), min(255, self.number), np.uint8)

def open_camera():
    if behaviour == "never opens": time.sleep(1000)
    if behaviour == "cannot be opened": raise OSError("no such camera")
    return Camera()

sys.exit(serve(open_camera, int(sys.argv[3]), int(sys.argv[4])))
"""

Live = Callable[..., LiveSource]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made: list[LiveSource] = []

    def make(behaviour: str, **options: Any) -> LiveSource:
        command = [sys.executable, "-c", CAMERA, str(tmp_path / "starts"), behaviour]
        options = {"stall_s": 0.5, "first_back_off_s": 0.02, **options}
        made.append(LiveSource("fake", command=command, **options))
        return made[-1]

    yield make
    for source in made:
        source.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("capture-")]


def test_a_live_camera_is_started_anew_whatever_it_did(live: Live) -> None:
    source = live("raises,dies,ends,grows,stalls")
    reasons = []
    for restarts in range(1, 6):
        frame = next(source)
        assert (frame.format, frame.width, frame.height) == ("bgr8", 32, 24)
        until(lambda: source.counts["restarts"] == restarts)  # noqa: B023
        reasons.append(source.last_error)
    for reason, expected in zip(
        reasons,
        ("driver is upset", "ended with code 3", "no more frames", "larger frames", "no frame for 0.5 s"),
        strict=True,
    ):
        assert expected in str(reason)
    assert next(source).format == "mono8"
    assert source.counts["stalls"] == 1


def test_only_the_newest_frame_of_a_live_camera_is_given(live: Live) -> None:
    source = live("grey")
    assert next(source).format == "mono8"
    time.sleep(0.3)
    first = next(source)
    second = next(source)
    assert first.pixels is not None
    assert second.pixels is not None
    assert int(first.pixels[0, 0]) > 5
    assert second.pixels[0, 0] >= first.pixels[0, 0] + 1
    assert source.counts["dropped"] > 5
    kept = first.pixels.copy()
    for _ in range(5):
        next(source)
    np.testing.assert_array_equal(first.pixels, kept)


def test_a_live_camera_that_cannot_be_opened_is_tried_for_ever(live: Live) -> None:
    source = live("cannot be opened," * 5)
    until(lambda: source.counts["restarts"] >= 2)
    assert "no such camera" in str(source.last_error)
    threading.Timer(0.05, source.close).start()
    with pytest.raises(StopIteration):
        next(source)


def test_a_live_camera_that_never_opens_is_killed(live: Live) -> None:
    source = live("never opens", open_s=0.3)
    until(lambda: source.counts["stalls"] >= 1)


def test_a_live_camera_at_a_rate(live: Live) -> None:
    source = live("plain", rate_hz=5)
    until(lambda: next(source).width == 32)
    before = source.counts["missed_ticks"]
    times = [next(source).captured_ns for _ in range(3)]
    expected = 2 + source.counts["missed_ticks"] - before
    assert (times[-1] - times[0]) / 2e8 == pytest.approx(expected, abs=1)


def test_the_capture_process_ends_with_its_owner(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CAMERA, str(tmp_path / "starts"), "plain"]
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from adclick_edge.line.sources.live import LiveSource\n"
            f"source = LiveSource('fake', command={command!r})\n"
            "next(source)\n"
            "print(source.process_id, flush=True)\n"
            "time.sleep(1000)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        os.kill(child, 0)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()  # type: ignore[union-attr]
    until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_camera_that_opencv_cannot_open_says_so() -> None:
    source = LiveSource("usb:99", open_s=PATIENCE_S)
    try:
        until(lambda: source.last_error is not None)
        assert "usb:99: cannot be opened" in str(source.last_error)
    finally:
        source.close()


class TimeoutException(Exception):
    """As genicam's is called."""


class FakeBuffer:
    def __init__(self, camera: "FakeCamera", component: SimpleNamespace) -> None:
        self.payload = SimpleNamespace(components=[component])
        self.camera = camera

    def __enter__(self) -> "FakeBuffer":
        self.camera.out += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.camera.out -= 1
        self.payload.components[0].data[:] = 0  # the camera writes to it again


class FakeCamera:
    """Stands in for a Harvester and its ImageAcquirer; the script lists what each fetch does."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.out = self.starts = self.stops = self.destroyed = self.resets = 0

    def open(self) -> Device:
        return Device(self, self.reset)

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        self.stops += 1

    def destroy(self) -> None:
        self.destroyed += 1

    def reset(self) -> None:
        self.resets += 1

    def fetch(self, *, timeout: float) -> FakeBuffer:
        assert 0 < timeout <= 0.5
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return FakeBuffer(self, step)


def component(data_format: str, shape: tuple[int, ...], dtype: type = np.uint8) -> SimpleNamespace:
    data = np.arange(np.prod(shape), dtype=dtype)
    return SimpleNamespace(data=data, width=shape[1], height=shape[0], data_format=data_format)


def test_genicam_frames_are_copied_and_their_buffers_given_back() -> None:
    camera = FakeCamera(
        [
            component("Mono8", (2, 3)),
            component("RGB8", (2, 3, 3)),
            component("BGR8", (2, 3, 3)),
            component("Mono12", (2, 3), np.uint16),
            component("BayerRG8", (2, 3)),
        ]
    )
    source = GenicamSource(camera.open)
    frames = [next(source) for _ in range(5)]
    assert camera.out == 0
    assert [f.format for f in frames] == ["mono8", "rgb8", "bgr8", "mono16", "bayer_rg8"]
    assert [f.bit_depth for f in frames] == [8, 8, 8, 12, 8]
    for frame in frames:
        assert (frame.width, frame.height) == (3, 2)
        assert frame.pixels is not None
        assert frame.pixels.ravel().tolist() == list(range(frame.pixels.size))
    source.close()
    assert (camera.starts, camera.stops, camera.destroyed, camera.resets) == (1, 1, 1, 1)
    assert list(source) == []


def test_a_genicam_device_that_fails_is_opened_anew() -> None:
    camera = FakeCamera(
        [
            component("Mono8", (2, 3)),
            RuntimeError("the link is down"),
            component("Mono8", (2, 3)),
            component("Mono12Packed", (2, 3)),
            component("Mono8", (2, 3)),
        ]
    )
    source = GenicamSource(camera.open, first_back_off_s=0.001)
    for _ in range(2):
        next(source)
    assert "the link is down" in str(source.last_error)
    next(source)
    assert "Mono12Packed is not supported" in str(source.last_error)
    assert (source.counts["restarts"], camera.starts, camera.destroyed) == (2, 3, 2)
    source.close()


def test_a_genicam_device_may_be_silent_only_so_long() -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 0.4
        return now[0]

    silent: list[Any] = [TimeoutException() for _ in range(4)]
    camera = FakeCamera([*silent, component("Mono8", (2, 3)), *silent, component("Mono8", (2, 3))])
    source = GenicamSource(camera.open, stall_s=1.5, clock=later, first_back_off_s=0.001)
    next(source)
    assert (source.counts["stalls"], source.counts["restarts"]) == (1, 1)
    source.close()
    patient = FakeCamera([TimeoutException() for _ in range(50)] + [component("Mono8", (2, 3))])
    source = GenicamSource(patient.open, stall_s=None, clock=later)
    next(source)
    assert source.counts == {"stalls": 0, "restarts": 0, "incomplete": 0}
    source.close()


def test_incomplete_genicam_buffers_are_counted() -> None:
    torn = component("Mono8", (2, 3))
    torn.height = 3
    source = GenicamSource(FakeCamera([torn, component("Mono8", (2, 3))]).open)
    assert next(source).height == 2
    assert source.counts["incomplete"] == 1
    source.close()


def test_genicam_without_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harvesters.core", None)
    with pytest.raises(UsageError, match=r"adclick-edge\[genicam\]"):
        open_with_harvesters(tmp_path / "x.cti", None)


class FakeHarvester:
    devices: tuple[str, ...] = ()
    log: list[object]

    def __init__(self) -> None:
        FakeHarvester.log = []
        self.device_info_list = list(self.devices)

    def add_file(self, path: str) -> None:
        self.log.append(path)

    def update(self) -> None:
        self.log.append("update")

    def create(self, key: object) -> str:
        self.log.append(key)
        return "acquirer"

    def reset(self) -> None:
        self.log.append("reset")


def test_opening_through_harvesters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harvesters.core", SimpleNamespace(Harvester=FakeHarvester))
    producer = tmp_path / "x.cti"
    with pytest.raises(UsageError, match="no such file"):
        open_with_harvesters(producer, None)
    producer.touch()
    with pytest.raises(LineError, match="finds no camera"):
        open_with_harvesters(producer, None)
    assert FakeHarvester.log[-1] == "reset"
    monkeypatch.setattr(FakeHarvester, "devices", ("one",))
    device = open_with_harvesters(producer, "S1")
    assert FakeHarvester.log == [str(producer), "update", {"serial_number": "S1"}]
    device.close()
    assert FakeHarvester.log[-1] == "reset"
    open_with_harvesters(producer, None)
    assert FakeHarvester.log[-1] == 0
