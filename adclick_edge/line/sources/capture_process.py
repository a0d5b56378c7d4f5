"""The owner's end of a capture process."""

import contextlib
import mmap
import os
import select
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adclick_edge.errors import LineError
from adclick_edge.line.sources.capture_wire import SLOTS, Captured, Failed, decode

__all__ = ["CaptureProcess", "LiveFrame"]

REAP_S = 2.0
MESSAGE_BYTES = 4096


class CaptureProcess:
    """One run of ``command`` with two descriptors appended: a socket for messages and a memory for frames.

    The memory is anonymous, so that nothing is left of it whoever is killed.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """OSError if it cannot be started."""
        self.dropped = 0
        """Frames that found no free slot."""
        self._memory: mmap.mmap | None = None
        self._memory_fd = os.memfd_create("adclick-capture", os.MFD_CLOEXEC)
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(self._memory_fd)],
                pass_fds=(theirs.fileno(), self._memory_fd),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the owner, whose end is the process's
            )
        except BaseException:
            self._link.close()
            os.close(self._memory_fd)
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float, stop_fd: int) -> "LiveFrame | None":
        """The next frame, or None after the timeout or when ``stop_fd`` is readable.

        Raises LineError when the process failed or is gone.
        """
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(stop_fd, select.POLLIN)
        ready = dict(poll.poll(timeout_s * 1e3))
        if self._link.fileno() not in ready:
            return None
        try:
            data = self._link.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(REAP_S)
            raise LineError(f"the capture process ended with code {self._process.returncode}")
        message = decode(data)
        if isinstance(message, Failed):
            raise LineError(message.why)
        self.dropped = message.dropped
        return LiveFrame(self, self._pixels(message), message.slot, message.captured_ns)

    def free(self, slot: int) -> None:
        with contextlib.suppress(OSError):  # the process is gone, and its slots with it
            self._link.send(bytes([slot]), socket.MSG_DONTWAIT)

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver; it ends when that lets go
            self._process.wait(REAP_S)
        self._link.close()
        os.close(self._memory_fd)

    def _pixels(self, message: Captured) -> NDArray[np.uint8]:
        if self._memory is None:
            self._memory = mmap.mmap(self._memory_fd, SLOTS * message.slot_bytes, prot=mmap.PROT_READ)
        shape = (message.height, message.width, message.channels)
        flat = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), message.slot * message.slot_bytes)
        pixels = flat.reshape(shape)
        return pixels[:, :, 0] if message.channels == 1 else pixels


@dataclass(frozen=True, eq=False, slots=True)
class LiveFrame:
    """A frame that still lies in the process's memory; exactly one of `take` and `drop` must be called."""

    process: CaptureProcess
    pixels: NDArray[np.uint8]
    slot: int
    captured_ns: int

    def take(self) -> NDArray[np.uint8]:
        """A copy, uint8 [H,W,3] BGR or [H,W]."""
        pixels = self.pixels.copy()
        self.process.free(self.slot)
        return pixels

    def drop(self) -> None:
        self.process.free(self.slot)
