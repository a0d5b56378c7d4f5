"""A video file as if a camera took it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from adclick_edge.errors import DataError
from adclick_edge.line.sources.pace import Pace
from adclick_edge.line.sources.source import SourceFrame

__all__ = ["VideoSource"]


class VideoSource:
    """Replays every frame of a video file, bgr8, at ``rate_hz`` (None: the file's own rate).

    Each frame is decoded before its tick. A damaged video ends where OpenCV can read no further; how many frames the
    file promised and did not give is counted as ``unreadable``. Raises DataError for a file that holds no video.
    """

    def __init__(self, path: Path, rate_hz: float | None, *, loop: bool = False) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; check the path")
        self._path = path
        self._capture = cv2.VideoCapture(str(path))
        own_hz = self._capture.get(cv2.CAP_PROP_FPS) if self._capture.isOpened() else 0.0
        if not self._capture.isOpened():
            raise DataError(f"{path}: not a video that OpenCV can read; convert it to MP4 or AVI")
        if rate_hz is None and not own_hz > 0:
            self._capture.release()
            raise DataError(f"{path}: states no frame rate; say at which to replay it")
        self._promised = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._pace = Pace(rate_hz if rate_hz is not None else own_hz)
        self._loop = loop
        self._number = 0
        self._unreadable = 0
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        return {"missed_ticks": self._pace.missed, "unreadable": self._unreadable}

    def __iter__(self) -> Iterator[SourceFrame]:
        return self

    def __next__(self) -> SourceFrame:
        with self._lock:
            pixels = self._read()
        tick_ns = None if pixels is None else self._pace.wait()
        if pixels is None or tick_ns is None:
            self.close()
            raise StopIteration
        name = f"{self._path.name}#{self._number}"
        self._number += 1
        return SourceFrame(name, tick_ns, "bgr8", pixels.shape[1], pixels.shape[0], pixels=pixels)

    def close(self) -> None:
        self._pace.stop()
        with self._lock:
            self._capture.release()

    def _read(self) -> NDArray[Any] | None:
        done, pixels = self._capture.read()
        if not done and self._capture.isOpened():
            self._unreadable += max(0, self._promised - self._number)
            if self._loop and self._number:
                self._number = 0
                self._capture.release()
                self._capture.open(str(self._path))
                done, pixels = self._capture.read()
        return pixels if done else None
