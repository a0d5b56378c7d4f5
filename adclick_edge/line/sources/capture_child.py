"""The process that reads a live camera: ``python -m adclick_edge.line.sources.capture_child usb:0 SOCKET MEMORY``.

OpenCV's reads can hang for ever or take the process with them; here they take nobody else. The owner passes two file
descriptors: a SOCK_SEQPACKET socket and a memfd. The process ends when its owner does.
"""

import contextlib
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adclick_edge.line.sources.capture_wire import SLOTS, Captured, Failed, encode

__all__ = ["Capture", "main", "open_with_opencv", "serve"]

PAGE = mmap.PAGESIZE


class Capture(Protocol):
    """What is used of cv2.VideoCapture."""

    def read(self) -> tuple[bool, NDArray[Any]]: ...


def open_with_opencv(source: str) -> Capture:
    """``usb:INDEX`` or an address such as rtsp://... OSError if it cannot be opened."""
    import cv2

    cv2.setNumThreads(1)
    capture = (
        cv2.VideoCapture(int(source.removeprefix("usb:"))) if source.startswith("usb:") else cv2.VideoCapture(source)
    )
    if not capture.isOpened():
        raise OSError(f"{source}: cannot be opened; check the cable, the address and who else uses the camera")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def serve(open_capture: Callable[[], Capture], socket_fd: int, memory_fd: int) -> int:
    """Read frames until the owner is gone or the camera fails; returns the exit code."""
    link = socket.socket(fileno=socket_fd)
    free = _FreeSlots(link)
    memory: mmap.mmap | None = None
    slot_bytes = dropped = 0
    try:
        capture = open_capture()
        while True:
            done, frame = capture.read()
            if not done:
                raise OSError("the camera gives no more frames")
            captured_ns = time.monotonic_ns()
            pixels = np.ascontiguousarray(frame if frame.ndim == 3 else frame[:, :, None], np.uint8)
            if memory is None or pixels.nbytes > slot_bytes:
                if memory is not None:
                    raise OSError("the camera changed to larger frames")  # begun anew with room for them
                slot_bytes = -(-pixels.nbytes // PAGE) * PAGE
                os.posix_fallocate(memory_fd, 0, SLOTS * slot_bytes)
                memory = mmap.mmap(memory_fd, SLOTS * slot_bytes)
            slot = free.take()
            if slot is None:
                dropped += 1
                continue
            at = slot * slot_bytes
            memory[at : at + pixels.nbytes] = pixels.data.cast("B")
            height, width, channels = pixels.shape
            link.send(encode(Captured(slot, slot_bytes, height, width, channels, captured_ns, dropped)))
    except Exception as error:  # whatever a driver raises: the owner says it and starts another process
        with contextlib.suppress(OSError):
            link.send(encode(Failed(f"{type(error).__name__}: {error}"[:500])))
        return 1


class _FreeSlots:
    """Slots that the owner gave back; ends the process when the owner is gone, also in the middle of a read."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._free = list(range(SLOTS))
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, name="free-slots", daemon=True).start()

    def take(self) -> int | None:
        with self._lock:
            return self._free.pop(0) if self._free else None

    def _receive(self) -> None:
        while data := self._link.recv(1):
            with self._lock:
                self._free.append(data[0])
        os._exit(0)


def main(arguments: list[str]) -> int:
    source, socket_fd, memory_fd = arguments
    return serve(lambda: open_with_opencv(source), int(socket_fd), int(memory_fd))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
