"""A steady rate of triggers, and how often it could not be kept."""

import threading
import time
from collections.abc import Callable

from adclick_edge.errors import UsageError

__all__ = ["Pace"]


class Pace:
    """Ticks at ``rate_hz`` from the first `wait` on.

    Whoever comes too late for ticks gets the next one that is still to come: those in between are counted as missed,
    neither made up for in a burst nor hidden by a slower clock.
    """

    def __init__(
        self,
        rate_hz: float,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], bool] | None = None,
    ) -> None:
        """``sleep`` waits for seconds and returns True if it was stopped. UsageError for a rate that is none."""
        if not 0 < rate_hz <= 10_000:
            raise UsageError(f"a rate of {rate_hz} frames per second; allowed are more than 0 up to 10000")
        self._period_ns = 1e9 / rate_hz
        self._clock = clock
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._start_ns: int | None = None
        self._tick = 0
        self.missed = 0

    def wait(self) -> int | None:
        """Wait for the next tick and return its time (clock), or None after `stop`."""
        if self._stopped.is_set():
            return None
        now = self._clock()
        if self._start_ns is None:
            self._start_ns = now
            return now
        self._tick += 1
        late = int((now - self._start_ns) // self._period_ns) - self._tick
        if late >= 1:  # less than a period late is still this tick
            self.missed += late
            self._tick += late
        due_ns = self._start_ns + round(self._tick * self._period_ns)
        while (left_ns := due_ns - self._clock()) > 0:
            if self._sleep(left_ns / 1e9):
                return None
        return due_ns

    def stop(self) -> None:
        """End a `wait`, from any thread."""
        self._stopped.set()
