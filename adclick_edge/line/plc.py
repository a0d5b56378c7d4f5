"""From verdicts to a reject line: the smallest PLC-facing program, to be adapted.

::

    python -m adclick_edge.line.plc ipc:///tmp/adclick/line.ipc --name cam1 --folder parts --output /tmp/reject \\
        --delay-parts 2

Nothing passes that is not known to be good: whatever has no verdict at the ejector is rejected, and whenever this
program fails, ends or is not sure, the line stands at reject. What a killed program leaves behind only hardware can
decide: let the output rest at reject (a normally closed relay, or a PLC's watchdog on this line).
"""

import argparse
import contextlib
import heapq
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from adclick_edge.errors import AdclickError, LineError, UsageError
from adclick_edge.line.camera_client import CameraClient
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.sources.folder import FolderSource
from adclick_edge.runtime.decision import Verdict

__all__ = ["FileOutput", "RejectLine", "RejectOutput", "main"]

REJECT: frozenset[Verdict] = frozenset({"ng", "uncertain", "not_inspected"})
MOST_PARTS = 4096
"""Between camera and ejector."""
JOIN_S = 5.0
CONNECT_S = 5.0

log = logging.getLogger(__name__)


class RejectOutput(Protocol):
    """One line to the machine. ``set`` raises OSError when it cannot."""

    def set(self, reject: bool) -> None: ...


class FileOutput:
    """Writes 1 (reject) or 0 to a file such as /sys/class/gpio/gpio17/value."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, reject: bool) -> None:
        with open(self._path, "w") as f:
            f.write("1" if reject else "0")


class RejectLine:
    """Brings each part's verdict to the ejector. Use it in a ``with``; the line stands at reject before and after.

    Call `part_arrived` for each trigger, in the order of the parts, and `verdict` for each verdict, from any threads.
    With ``delay_parts`` n, a part is at the ejector when the n-th after it arrives at the camera; the line then keeps its
    level until the next part. With ``delay_ms`` it is there so long after its trigger; the line is at reject for
    ``pulse_ms`` for a part to be rejected (for as long as any pulse lasts), and at pass between. Give exactly one of them.

    A part without a verdict when it gets there is rejected (counted in ``unknown``). So is everything from the moment the
    output fails, a part to be rejected has passed, or more than 4096 parts are on the way: then `fault` says why, and the
    line stays at reject until a new object is made.
    """

    def __init__(
        self,
        output: RejectOutput,
        *,
        delay_parts: int | None = None,
        delay_ms: float | None = None,
        pulse_ms: float = 100.0,
        reject: Collection[Verdict] = REJECT,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if (delay_parts is None) == (delay_ms is None):
            raise UsageError("state the way to the ejector either in parts or in milliseconds")
        if (delay_parts is not None and delay_parts < 1) or (delay_ms or 0) < 0 or not pulse_ms > 0:
            raise UsageError("at least one part lies between camera and ejector, and a pulse takes some time")
        if "ok" in reject or not {"ng", "not_inspected"} <= set(reject):
            raise UsageError("ng and not_inspected are always rejected, ok never is; only uncertain can be chosen")
        self._output = output
        self._delay_parts = delay_parts
        self._delay_ns = round((delay_ms or 0) * 1e6)
        self._pulse_ns = round(pulse_ms * 1e6)
        self._reject = frozenset(reject)
        self._clock = clock
        self._changed = threading.Condition()
        self._verdicts: dict[int, Verdict] = {}
        self._on_the_way: list[tuple[int, int]] = []
        """(when at the ejector, seq) of parts, by time; with ``delay_parts`` the time is the number of the part."""
        self._arrived = 0
        self._pulse_ends_ns: int | None = None
        self._level: bool | None = None
        self._closing = False
        self.fault: str | None = None
        self.passed = self.rejected = self.unknown = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RejectLine":
        with self._changed:
            self._set(True)
            if self.fault is not None:
                raise LineError(f"the reject line cannot be set: {self.fault}")
        if self._delay_parts is None:
            self._thread = threading.Thread(target=self._keep_time, name="reject-line", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._set(True)
        if self._thread is not None:
            self._thread.join(JOIN_S)

    @property
    def on_the_way(self) -> int:
        """Parts between camera and ejector."""
        with self._changed:
            return len(self._on_the_way)

    def part_arrived(self, seq: int, at_ns: int | None = None) -> None:
        """A part is at the camera (at ``at_ns``, monotonic), and was triggered as ``seq``."""
        with self._changed:
            if len(self._on_the_way) >= MOST_PARTS:
                self._fail(f"{MOST_PARTS} parts are on the way to the ejector")
                return
            if self._delay_parts is None:
                due = (self._clock() if at_ns is None else at_ns) + self._delay_ns
                heapq.heappush(self._on_the_way, (due, seq))
                self._changed.notify_all()
                return
            heapq.heappush(self._on_the_way, (self._arrived + self._delay_parts, seq))
            while self._on_the_way and self._on_the_way[0][0] <= self._arrived:
                self._set(self._judge(heapq.heappop(self._on_the_way)[1]))
            self._arrived += 1

    def verdict(self, verdict: CameraVerdict) -> None:
        with self._changed:
            self._verdicts[verdict.seq] = verdict.verdict
            if len(self._verdicts) > MOST_PARTS:  # of parts that were not reported, or had left already
                del self._verdicts[next(iter(self._verdicts))]

    def tick(self) -> int | None:
        """Do what is due by the clock, and return when something is due next; only with ``delay_ms``."""
        with self._changed:
            return self._tick()

    def _tick(self) -> int | None:
        now = self._clock()
        while self._on_the_way and self._on_the_way[0][0] <= now:
            due, seq = heapq.heappop(self._on_the_way)
            if self._judge(seq):
                if now - due >= self._pulse_ns:
                    self._fail(f"a part to be rejected passed the ejector {(now - due) / 1e6:.0f} ms ago")
                self._pulse_ends_ns = max(due, now) + self._pulse_ns
        if self._pulse_ends_ns is not None and now >= self._pulse_ends_ns:
            self._pulse_ends_ns = None
        self._set(self._pulse_ends_ns is not None)
        times = [self._on_the_way[0][0]] if self._on_the_way else []
        if self._pulse_ends_ns is not None:
            times.append(self._pulse_ends_ns)
        return min(times, default=None)

    def _judge(self, seq: int) -> bool:
        verdict = self._verdicts.pop(seq, None)
        self.unknown += verdict is None
        reject = verdict is None or verdict in self._reject
        self.rejected += reject
        self.passed += not reject
        return reject

    def _set(self, reject: bool) -> None:
        level = reject or self.fault is not None or self._closing
        if level == self._level:
            return
        try:
            self._output.set(level)
            self._level = level
        except Exception as error:  # whatever the output is made of
            self._level = None
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        if self.fault is None:
            log.error("the reject line stays at reject: %s", why)
            self.fault = why
            with contextlib.suppress(Exception):
                self._output.set(True)
                self._level = True

    def _keep_time(self) -> None:
        with self._changed:
            while not self._closing:
                try:
                    due = self._tick()
                except Exception as error:  # nothing may end this thread with the line at pass
                    self._fail(f"{type(error).__name__}: {error}")
                    due = None
                self._changed.wait(None if due is None else max(0.0, (due - self._clock()) / 1e9))


def main(arguments: list[str] | None = None) -> int:
    """Frames of a folder stand in for the camera's; put your own in the place of the `FolderSource`."""
    parser = argparse.ArgumentParser(prog="python -m adclick_edge.line.plc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("endpoint")
    parser.add_argument("--name", required=True, help="the camera's name in line.toml")
    parser.add_argument("--folder", type=Path, required=True, help="pictures to replay")
    parser.add_argument("--rate", type=float, default=5.0, help="parts per second")
    parser.add_argument("--output", type=Path, required=True, help="file that 1 (reject) or 0 is written to")
    parser.add_argument("--delay-parts", type=int, help="parts between camera and ejector")
    parser.add_argument("--delay-ms", type=float, help="or the time between them")
    parser.add_argument("--pulse-ms", type=float, default=100.0)
    parser.add_argument("--pass-uncertain", action="store_true", help="let parts pass that the model is not sure of")
    options = parser.parse_args(arguments)
    reject: Collection[Verdict] = REJECT - {"uncertain"} if options.pass_uncertain else REJECT
    line: RejectLine | None = None
    try:
        source = FolderSource(options.folder, options.rate)
        line = RejectLine(
            FileOutput(options.output),
            delay_parts=options.delay_parts,
            delay_ms=options.delay_ms,
            pulse_ms=options.pulse_ms,
            reject=reject,
        )
        with line, CameraClient(options.endpoint, options.name, on_verdict=line.verdict) as camera:
            if not camera.wait_connected(CONNECT_S):
                print(
                    f"not connected to {options.endpoint} yet, so all is rejected: {camera.last_error}", file=sys.stderr
                )
            for frame in source:
                if frame.pixels is not None:
                    line.part_arrived(camera.trigger(frame.pixels, part=frame.name[-64:]))
                if line.fault is not None:
                    raise LineError(f"the reject line failed: {line.fault}")
    except AdclickError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        if line is not None:
            print(
                f"{line.passed} passed, {line.rejected} rejected, {line.unknown} of them without a verdict; "
                f"{line.on_the_way} had not reached the ejector"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
