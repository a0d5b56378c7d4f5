"""The daemon's side of a shared-memory ring: payloads copied out, whole or not at all.

Why a copy: a file under /dev/shm that its owner truncates takes the pages of every mapping with it, and the next access
is a SIGBUS that ends the daemon; names there cannot be sealed against it (only memfds can, which have no name). A
`pread` meets a short read instead. Copying a frame of 1920 x 1080 RGB takes half a millisecond, resizing it more than ten
times as long; and for those ten times the slot could be overwritten under the resize.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adclick_edge.errors import ProtocolError
from adclick_edge.line.protocol import RingSlot
from adclick_edge.line.ring_layout import (
    HEADER,
    RECORD,
    SHM_FOLDER,
    Geometry,
    is_ring_name,
    parse_header,
    record_at,
)

__all__ = ["RingReader"]


class _OpenFile:
    """A descriptor with the number of threads that read from it right now; only touched under the reader's lock."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.dropped = False

    def close_if_unused(self) -> None:
        if self.dropped and self.users == 0:
            os.close(self.fd)


class RingReader:
    """Reads slots of any number of rings; thread-safe, with one scratch buffer per thread.

    At most ``max_open`` files are kept open, the longest unused is closed first, and so is every one whose name is gone.
    ``max_payload_bytes`` bounds the scratch buffers.
    """

    def __init__(self, *, max_open: int = 64, max_payload_bytes: int = 160_000_000, folder: Path = SHM_FOLDER) -> None:
        self._folder = folder
        self._max_open = max_open
        self._max_payload_bytes = max_payload_bytes
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        self._scratch = threading.local()

    def view(self, slot: RingSlot) -> memoryview:
        """The payload, read-only: a copy that was whole when it was made, valid until this thread's next `view`.

        Raises ProtocolError: ``bad_frame`` where the slot holds another frame by now, ``too_large``, and ``bad_message``
        for a file that is no ring of this user's (or root's), does not hold what it promises, or is not there.
        """
        whole = memoryview(b"")
        for part in self.parts(slot, max(1, slot.size_bytes)):
            whole = part
        return whole

    def parts(self, slot: RingSlot, part_bytes: int) -> Iterator[memoryview]:
        """The payload piece by piece, each valid until the next and in the processor's cache still: a third of the time of
        `view` for whoever needs each once. Errors as of `view`; only when it ends without one was the payload whole.
        """
        if slot.size_bytes > self._max_payload_bytes:
            raise ProtocolError(
                "too_large", f"ring {slot.name}: {slot.size_bytes} bytes, over the limit of {self._max_payload_bytes}"
            )
        scratch = self._scratch_of(part_bytes)
        with self._file(slot.name) as fd:
            at = _geometry(fd, slot).data_at(slot.slot)
            _check_unchanged(fd, slot, "before it was read; release a slot only when its verdict came")
            for start in range(0, slot.size_bytes, part_bytes):
                part = scratch[: min(part_bytes, slot.size_bytes - start)]
                done = 0
                while done < len(part):
                    count = os.preadv(fd, [part[done:]], at + start + done)
                    if count == 0:
                        raise _refused(slot.name, "it was truncated")
                    done += count
                yield part.toreadonly()
            _check_unchanged(fd, slot, "while it was read; release a slot only when its verdict came")

    def still(self, slot: RingSlot) -> bool:
        """Whether the slot still holds the frame that its header names, and not a later one."""
        try:
            with self._file(slot.name) as fd:
                return _generation_and_size(fd, slot.slot) == (slot.generation, slot.size_bytes)
        except ProtocolError:
            return False

    def close(self) -> None:
        """Close the files; one that another thread reads from right now follows when it is done."""
        with self._lock:
            for name in list(self._open):
                self._drop(name)

    @property
    def open_files(self) -> int:
        with self._lock:
            return len(self._open)

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        """The ring's descriptor, kept open for as long as the block runs."""
        with self._lock:
            file = self._opened(name)
            file.users += 1
        try:
            yield file.fd
        finally:
            with self._lock:
                file.users -= 1
                file.close_if_unused()

    def _opened(self, name: str) -> _OpenFile:
        file = self._open.get(name)
        # A name can come back on another file (of a camera that was restarted and uses fixed names), whose generations
        # may be those of the old one: never read a file whose name is gone.
        if file is not None and os.fstat(file.fd).st_nlink:
            self._open.move_to_end(name)
            return file
        for gone in [n for n, f in self._open.items() if not os.fstat(f.fd).st_nlink]:
            self._drop(gone)
        file = self._open[name] = _OpenFile(_open_ring(self._folder, name))
        while len(self._open) > self._max_open:
            self._drop(next(iter(self._open)))
        return file

    def _drop(self, name: str) -> None:
        file = self._open.pop(name)
        file.dropped = True
        file.close_if_unused()

    def _scratch_of(self, size_bytes: int) -> memoryview:
        buffer: bytearray | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < size_bytes:
            # A new one rather than a resized one: the thread may still hold a view of the old.
            buffer = self._scratch.buffer = bytearray(size_bytes)
        return memoryview(buffer)[:size_bytes]


def _open_ring(folder: Path, name: str) -> int:
    if not is_ring_name(name):
        raise _refused(name, "this is no ring's name")
    try:
        # O_NONBLOCK: opening a FIFO would wait for its other end.
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(name, f"{folder / name} cannot be opened ({error.strerror})") from error
    problem = _problem(os.fstat(fd))
    if problem:
        os.close(fd)
        raise _refused(name, problem)
    return fd


def _problem(found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return "it is not a plain file"
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}; run camera and daemon as the same user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):o}); make it with mode 600"
    return None


def _geometry(fd: int, slot: RingSlot) -> Geometry:
    # Read anew for each frame: it costs a microsecond, and a file can be rewritten in place.
    geometry = parse_header(os.pread(fd, HEADER.size, 0), os.fstat(fd).st_size, slot.name)
    if slot.slot >= geometry.slots or slot.size_bytes > geometry.slot_bytes:
        raise _refused(
            slot.name,
            f"slot {slot.slot} with {slot.size_bytes} bytes is asked for, but there are {geometry.slots} slots of "
            f"{geometry.slot_bytes} bytes",
        )
    return geometry


def _check_unchanged(fd: int, slot: RingSlot, when: str) -> None:
    generation, size_bytes = _generation_and_size(fd, slot.slot)
    if slot.generation % 2 or slot.generation == 0:
        raise _refused(slot.name, f"generation {slot.generation} is asked for, that of no whole frame")
    if generation != slot.generation:
        raise ProtocolError(
            "bad_frame",
            f"ring {slot.name}: slot {slot.slot} was reused (generation {slot.generation}, now {generation}) {when}",
        )
    if size_bytes != slot.size_bytes:
        raise _refused(slot.name, f"slot {slot.slot} holds {size_bytes} bytes, {slot.size_bytes} are asked for")


def _generation_and_size(fd: int, slot: int) -> tuple[int, int]:
    data = os.pread(fd, RECORD.size, record_at(slot))
    generation, size_bytes = RECORD.unpack(data.ljust(RECORD.size, b"\0"))
    return generation, size_bytes


def _refused(name: str, what: str) -> ProtocolError:
    return ProtocolError("bad_message", f"ring {name}: {what}; the camera must make a new ring or send without one")
