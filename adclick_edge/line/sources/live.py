"""USB and network cameras through OpenCV, in a process of their own that is killed and started anew when it stalls."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence

from adclick_edge.line.sources.capture_process import CaptureProcess, LiveFrame
from adclick_edge.line.sources.pace import Pace
from adclick_edge.line.sources.source import SourceFrame

__all__ = ["LiveSource"]

FIRST_BACK_OFF_S = 0.25
LONGEST_BACK_OFF_S = 10.0
JOIN_S = 10.0
CHILD = "adclick_edge.line.sources.capture_child"


class LiveSource:
    """Frames of ``usb:INDEX`` or an address such as rtsp://..., always the newest: older ones are dropped and counted.

    With ``rate_hz`` a frame is taken at each tick; a tick that finds no new one is counted as missed. Without it, each
    frame comes as the camera gives it. A process that gives no frame for ``stall_s`` (the first one for ``open_s``) is
    killed; one that is gone is started again, for ever, after ``first_back_off_s`` doubling to 10 s. Counts:
    ``missed_ticks``, ``dropped``, ``stalls`` (processes killed), ``restarts`` (all starts but the first); `last_error`
    says why.

    ``command`` takes the place of the process, for other cameras and for tests: two descriptors are appended to it, for
    `capture_child.serve`. Frames are copies; they may be kept.
    """

    def __init__(
        self,
        source: str,
        *,
        rate_hz: float | None = None,
        stall_s: float = 2.0,
        open_s: float = 15.0,
        command: Sequence[str] | None = None,
        first_back_off_s: float = FIRST_BACK_OFF_S,
    ) -> None:
        self._source = source
        self._command = command or [sys.executable, "-m", CHILD, source]
        self._pace = None if rate_hz is None else Pace(rate_hz)
        self._stall_s = stall_s
        self._open_s = open_s
        self._first_back_off_s = first_back_off_s
        self._changed = threading.Condition()
        self._newest: LiveFrame | None = None
        self._closing = False
        self._number = 0
        self._counts = {"missed_ticks": 0, "dropped": 0, "stalls": 0, "restarts": 0}
        self.last_error: str | None = None
        self.process_id: int | None = None
        """Of the latest capture process."""
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="capture-watch", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> dict[str, int]:
        with self._changed:
            counts = dict(self._counts)
        if self._pace is not None:
            counts["missed_ticks"] += self._pace.missed
        return counts

    def __iter__(self) -> Iterator[SourceFrame]:
        return self

    def __next__(self) -> SourceFrame:
        while True:
            if self._pace is not None and self._pace.wait() is None:
                raise StopIteration
            with self._changed:
                if self._pace is None:
                    self._changed.wait_for(lambda: self._newest is not None or self._closing)
                if self._closing:
                    raise StopIteration
                newest, self._newest = self._newest, None
                if newest is None:
                    self._counts["missed_ticks"] += 1
                    continue
                name = f"{self._source}#{self._number}"
                self._number += 1
            pixels = newest.take()
            height, width = pixels.shape[:2]
            if pixels.ndim == 2:
                return SourceFrame(name, newest.captured_ns, "mono8", width, height, pixels=pixels)
            return SourceFrame(name, newest.captured_ns, "bgr8", width, height, pixels=pixels)

    def close(self) -> None:
        with self._changed:
            if not self._closing:
                self._closing = True
                os.close(self._stop_write)  # makes the other end readable
            self._changed.notify_all()
        if self._pace is not None:
            self._pace.stop()
        self._thread.join(JOIN_S)

    # What follows runs in the watching thread.

    def _watch(self) -> None:
        try:
            self._keep_running()
        finally:
            os.close(self._stop_read)

    def _keep_running(self) -> None:
        back_off_s = self._first_back_off_s
        while not self._closing:
            if self._run_process():
                back_off_s = self._first_back_off_s
            with self._changed:
                self._newest = None
                self._changed.wait_for(lambda: self._closing, back_off_s)
                self._counts["restarts"] += not self._closing
            back_off_s = min(2 * back_off_s, LONGEST_BACK_OFF_S)

    def _run_process(self) -> bool:
        """From start to end of one process; True if it gave a frame."""
        process: CaptureProcess | None = None
        frames = 0
        try:
            process = CaptureProcess(self._command)
            self.process_id = process.pid
            while not self._closing:
                limit_s = self._stall_s if frames else self._open_s
                frame = process.wait(limit_s, self._stop_read)
                if frame is not None:
                    frames += 1
                    self._keep(frame)
                elif not self._closing:
                    with self._changed:
                        self._counts["stalls"] += 1
                    self.last_error = f"{self._source}: no frame for {limit_s:g} s; the capture process is killed"
                    break
        except Exception as error:  # whatever the process or its start came to, the next one may do better
            self.last_error = f"{self._source}: {error}"
        finally:
            if process is not None:
                process.kill()
                with self._changed:
                    self._counts["dropped"] += process.dropped
        return frames > 0

    def _keep(self, frame: LiveFrame) -> None:
        with self._changed:
            if self._newest is not None:
                self._newest.drop()
                self._counts["dropped"] += 1
            self._newest = frame
            self._changed.notify_all()
