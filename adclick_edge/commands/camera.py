"""``adclick camera``"""

import contextlib
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import msgspec

from adclick_edge.console import progress_console
from adclick_edge.errors import UsageError
from adclick_edge.line.camera_carrier import Transport
from adclick_edge.line.camera_client import CameraClient
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.curve import CameraKeys
from adclick_edge.line.sources import FrameSource, SourceFrame

__all__ = ["open_source", "run"]

CONNECT_S = 5.0
"""How long the first trigger waits for the daemon; later ones do not."""
REPORT_S = 10.0
VERDICTS = ("ok", "ng", "uncertain", "not_inspected")
PART_CHARS = 64


def run(
    endpoint: str,
    name: str,
    folder: Path | None,
    video: Path | None,
    usb: int | None,
    rtsp: str | None,
    genicam: Path | None,
    serial: str | None,
    rate: float | None,
    count: int | None,
    loop: bool,
    encoded: bool,
    transport: Transport,
    deadline_ms: float | None,
    code: str | None,
    keys: Path | None,
    stall_s: float,
    json_output: bool,
) -> None:
    """Exit code 1 when nothing could be inspected; KeyboardInterrupt is passed on after the summary. SIGTERM ends the
    source: the summary follows.
    """
    if count is not None and count < 1:
        raise UsageError(f"--count {count}: at least 1 is needed")
    camera_keys = None if keys is None else CameraKeys.load(keys, name)
    source = open_source(folder, video, usb, rtsp, genicam, serial, rate, loop, encoded, stall_s)
    told = _Told(json_output)
    interrupted = False
    try:
        with CameraClient(
            endpoint,
            name,
            deadline_ms=deadline_ms,
            transport=transport,
            on_verdict=told,
            keys=camera_keys,
            queue=1 << 16,
        ) as camera:
            try:
                with _until_sigterm():
                    if not camera.wait_connected(CONNECT_S):
                        _say(f"not connected to {endpoint} yet: {camera.last_error}", "yellow")
                    _replay(source, camera, count, code)
                    camera.drain((deadline_ms or 60_000) / 1e3 + 1)
            except KeyboardInterrupt:
                interrupted = True
    finally:
        source.close()
    counts = camera.counts
    numbers = {verdict: told.verdicts[verdict] for verdict in VERDICTS}
    summary = {
        "triggers": counts.triggers,
        **numbers,
        "reasons": dict(sorted(told.reasons.items())),
        "client": {k: v for k, v in msgspec.to_builtins(counts).items() if k not in ("triggers", "pending")},
        "source": source.counts,
    }
    if json_output:
        print(msgspec.json.encode({"summary": summary}).decode(), flush=True)
    else:
        _print_summary(summary, numbers)
    for file, fault in getattr(source, "faults", {}).items():
        _say(f"no trigger for {file}: {fault}", "yellow")
    if interrupted:
        raise KeyboardInterrupt
    if counts.triggers == told.verdicts["not_inspected"]:
        why = camera.last_error
        _say(f"error: nothing could be inspected{f' ({why})' if why else ''}", "red")
        sys.exit(1)


def open_source(
    folder: Path | None,
    video: Path | None,
    usb: int | None,
    rtsp: str | None,
    genicam: Path | None,
    serial: str | None,
    rate: float | None,
    loop: bool,
    encoded: bool,
    stall_s: float,
) -> FrameSource:
    """The one source that was named. UsageError where it is none or several, or options do not fit it."""
    named = {"--folder": folder, "--video": video, "--usb": usb, "--rtsp": rtsp, "--genicam": genicam}
    chosen = [option for option, value in named.items() if value is not None]
    if len(chosen) != 1:
        raise UsageError(f"name one source of frames: {', '.join(named)} (here: {', '.join(chosen) or 'none'})")
    if encoded and folder is None:
        raise UsageError("--encoded sends the files of a --folder as they are; other sources give raw pixels")
    if loop and folder is None and video is None:
        raise UsageError("--loop is for --folder and --video")
    if serial is not None and genicam is None:
        raise UsageError("--serial chooses among cameras of --genicam")
    if rate is not None and genicam is not None:
        raise UsageError("--rate: the rate of a GenICam camera, and its trigger, are set in the camera")
    stall = stall_s if stall_s > 0 else None
    # Imported here, so that a line without a live camera does not need what they need.
    if folder is not None:
        from adclick_edge.line.sources.folder import FolderSource

        return FolderSource(folder, 10.0 if rate is None else rate, loop=loop, encoded=encoded)
    if video is not None:
        from adclick_edge.line.sources.video import VideoSource

        return VideoSource(video, rate, loop=loop)
    if genicam is not None:
        from adclick_edge.line.sources.genicam import GenicamSource, open_with_harvesters

        return GenicamSource(lambda: open_with_harvesters(genicam, serial), stall_s=stall)
    if stall is None:
        raise UsageError(
            "--stall-s 0: a USB or network camera gives frames without end, so silence is a fault; name a time"
        )
    from adclick_edge.line.sources.live import LiveSource

    return LiveSource(f"usb:{usb}" if usb is not None else str(rtsp), rate_hz=rate, stall_s=stall)


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _until_sigterm() -> Iterator[None]:
    """SIGTERM ends the block, and nothing else: the daemon is told bye, and the summary is printed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _replay(source: FrameSource, camera: CameraClient, count: int | None, code: str | None) -> None:
    report_s = time.monotonic() + REPORT_S
    connection = ""
    number = 0
    while number != count and (frame := next(source, None)) is not None:
        _trigger(camera, frame, code)
        number += 1
        if camera.connection != connection:
            connection = camera.connection
            _say_connection(connection, camera.last_error if connection != "connected" else None)
        if time.monotonic() >= report_s:
            report_s += REPORT_S
            _say(f"{number} triggers, {connection}", "dim")


def _say_connection(connection: str, error: str | None) -> None:
    if connection == "replaced":
        why = "another program connected under this camera's name; stop one of the two, then start this one again"
        _say(f"replaced: {why} (until then it answers not_inspected)", "red")
    else:
        _say(f"{connection}{f': {error}' if error else ''}", "yellow" if error else "green")


def _trigger(camera: CameraClient, frame: SourceFrame, code: str | None) -> None:
    part = frame.name[-PART_CHARS:]
    if frame.encoded is not None:
        kind = "jpeg" if frame.format == "jpeg" else "png"
        camera.trigger_encoded(frame.encoded, kind, frame.width, frame.height, part=part, code=code)  # type: ignore[arg-type]
    elif frame.pixels is not None:
        camera.trigger(frame.pixels, format=frame.format, part=part, code=code, bit_depth=frame.bit_depth)


class _Told:
    """Prints each verdict, in the client's thread for that, and counts."""

    def __init__(self, json_output: bool) -> None:
        self._line: Callable[[CameraVerdict], str] = _json_line if json_output else _line
        self._lock = threading.Lock()
        self.verdicts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def __call__(self, verdict: CameraVerdict) -> None:
        with self._lock:
            self.verdicts[verdict.verdict] += 1
            if verdict.reason is not None:
                self.reasons[verdict.reason] += 1
        print(self._line(verdict), flush=True)


def _json_line(verdict: CameraVerdict) -> str:
    return msgspec.json.encode(verdict).decode()


def _line(verdict: CameraVerdict) -> str:
    what = verdict.verdict + (f" ({verdict.reason})" if verdict.reason else "")
    score = "" if verdict.score is None else f"{verdict.score:.4f}"
    return f"{what:30s}{score:>10s}{verdict.latency_ms:9.1f} ms  {verdict.part}"


def _print_summary(summary: dict[str, object], numbers: dict[str, int]) -> None:
    print(f"{summary['triggers']} triggers: " + ", ".join(f"{number} {name}" for name, number in numbers.items()))
    for title in ("reasons", "client", "source"):
        group = summary[title]
        assert isinstance(group, dict)
        told = [f"{number} {name}" for name, number in group.items() if number and not isinstance(number, dict)]
        if told:
            print(f"{title}: " + ", ".join(told))


def _say(message: str, style: str) -> None:
    progress_console().print(message, style=style, markup=False, soft_wrap=True)
