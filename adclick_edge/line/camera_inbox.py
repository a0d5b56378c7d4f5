"""Verdicts on their way to the camera program: bounded, oldest dropped, every drop counted."""

import threading
from collections import deque

from adclick_edge.line.camera_verdict import CameraVerdict

__all__ = ["VerdictInbox"]


class VerdictInbox:
    def __init__(self, size: int) -> None:
        self._waiting: deque[CameraVerdict] = deque()
        self._size = size
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self.overflow = 0

    def put(self, verdict: CameraVerdict) -> None:
        with self._changed:
            if len(self._waiting) >= self._size:
                self._waiting.popleft()
                self.overflow += 1
            self._waiting.append(verdict)
            self._changed.notify()

    def take(self, timeout_s: float | None = None) -> CameraVerdict | None:
        """The oldest verdict, waited for up to ``timeout_s`` (None: until `close`); None if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed, timeout_s)
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """No verdict comes any more; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
