"""The camera's side of a shared-memory ring: a file of slots that frames are written to instead of being sent.

A frame's header names slot and generation; the slot is the camera's again once the verdict came. The layout is in
`ring_layout`, the daemon's side in `ring_reader`.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.protocol import RingSlot
from adclick_edge.line.ring_layout import (
    HEADER,
    MAX_SLOT_BYTES,
    MAX_SLOTS,
    RECORD,
    SHM_FOLDER,
    Geometry,
    is_ring_name,
    record_at,
)
from adclick_edge.line.ring_reader import RingReader

__all__ = ["RingReader", "RingWriter", "SlotToken", "remove_leftovers"]

CREATE_ATTEMPTS = 16


@dataclass(frozen=True)
class SlotToken:
    """A slot that is being filled. ``generation`` is the one it will have."""

    slot: int
    generation: int


class RingWriter:
    """A ring of ``slots`` slots for payloads of up to ``slot_bytes`` each; thread-safe; use it in a ``with``.

    The file is /dev/shm/adclick-HINT-RANDOM, readable by its user only, held under an flock as long as the writer lives
    (whatever kills it), and removed by `close`. All its memory is taken here, so that a full /dev/shm is an error now
    and not a bus error at some frame. Files that dead writers left are removed first.
    Raises UsageError for a hint or sizes that cannot be, LineError where the file cannot be made.
    """

    def __init__(self, name_hint: str, slots: int, slot_bytes: int, *, folder: Path = SHM_FOLDER) -> None:
        if not 1 <= slots <= MAX_SLOTS or not 1 <= slot_bytes <= MAX_SLOT_BYTES:
            raise UsageError(
                f"a ring of {slots} slots of {slot_bytes} bytes: there may be 1 to {MAX_SLOTS} of up to {MAX_SLOT_BYTES}"
            )
        if not is_ring_name(f"adclick-{name_hint}-{'0' * 16}"):
            raise UsageError(f"ring name {name_hint!r}: use up to 80 letters, digits, dots, dashes and underscores")
        remove_leftovers(folder)
        self._geometry = Geometry.for_payloads(slots, slot_bytes, os.getpid())
        self._path, self._fd = _create(folder, name_hint)
        try:
            os.pwrite(self._fd, self._geometry.header(), 0)
            os.posix_fallocate(self._fd, 0, self._geometry.file_bytes)
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._map = mmap.mmap(self._fd, self._geometry.file_bytes, flags)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            raise LineError(
                f"{self._path}: {self._geometry.file_bytes} bytes cannot be had ({error.strerror}); "
                f"free or enlarge {folder}, or use fewer slots"
            ) from error
        self._lock = threading.Lock()
        # In the order in which they became free: the one that a slow reader may still look at comes last.
        self._free = deque(range(slots))
        self._generations = [0] * slots
        self._filling: dict[int, memoryview] = {}
        self._sent: set[int] = set()
        self._closed = False

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def slot_bytes(self) -> int:
        """Largest payload that a slot holds: what was asked for, up to a whole page."""
        return self._geometry.slot_bytes

    @property
    def free_slots(self) -> int:
        with self._lock:
            return len(self._free)

    def write(self, data: bytes | bytearray | memoryview) -> RingSlot:
        """Copy ``data`` to a free slot. LineError if it does not fit or no slot is free."""
        view = memoryview(data).cast("B")
        self._check_size(view.nbytes)
        target, token = self.acquire()
        target[: view.nbytes] = view
        return self.commit(token, view.nbytes)

    def acquire(self) -> tuple[memoryview, SlotToken]:
        """A free slot's memory to fill in place, until `commit` or `abandon`. LineError if no slot is free."""
        with self._lock:
            self._check_open()
            if not self._free:
                raise LineError(
                    f"ring {self.name}: all {self._geometry.slots} slots hold frames without a verdict; "
                    "use more slots than credits, or answer for this trigger without sending it"
                )
            slot = self._free.pop()  # the one freed last, which the caches may still hold
            token = SlotToken(slot, self._generations[slot] + 2)
            self._mark(slot, token.generation - 1, 0)
            at = self._geometry.data_at(slot)
            view = memoryview(self._map)[at : at + self._geometry.slot_bytes]
            self._filling[slot] = view
            return view, token

    def commit(self, token: SlotToken, size_bytes: int) -> RingSlot:
        """What to put into the frame's header, now that the first ``size_bytes`` of the slot are written.

        UsageError for a token that is not being filled; LineError for a size beyond the slot's.
        """
        self._check_size(size_bytes)
        with self._lock:
            self._stop_filling(token)
            self._mark(token.slot, token.generation, size_bytes)
            self._sent.add(token.slot)
            return RingSlot(name=self.name, slot=token.slot, generation=token.generation, size_bytes=size_bytes)

    def abandon(self, token: SlotToken) -> None:
        """Give a slot back that will not be committed. UsageError for a token that is not being filled."""
        with self._lock:
            self._stop_filling(token)
            self._free.append(token.slot)

    def release(self, slot: RingSlot) -> None:
        """The slot may be written again: its frame has a verdict, or was given up. A second time does nothing."""
        with self._lock:
            if slot.slot in self._sent and self._generations[slot.slot] == slot.generation and slot.name == self.name:
                self._sent.remove(slot.slot)
                self._free.append(slot.slot)

    def close(self) -> None:
        """Remove the file. Whoever still reads a slot reads on; a second time does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._path.unlink(missing_ok=True)
            for view in self._filling.values():
                _release_view(view)
            self._filling.clear()
            try:
                self._map.close()
            except BufferError:
                del self._map  # unmapped with the last array on it
            os.close(self._fd)

    def __enter__(self) -> "RingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _mark(self, slot: int, generation: int, size_bytes: int) -> None:
        # A system call rather than a store to the mapping: with it the interpreter's lock is dropped and taken again, a
        # full barrier, so that on no processor do pixels overtake the generation that announces or completes them.
        os.pwrite(self._fd, RECORD.pack(generation, size_bytes), record_at(slot))
        self._generations[slot] = generation + generation % 2

    def _stop_filling(self, token: SlotToken) -> None:
        self._check_open()
        if token.slot not in self._filling or self._generations[token.slot] != token.generation:
            raise UsageError(f"ring {self.name}: slot {token.slot} is not being filled; commit or abandon a slot once")
        _release_view(self._filling.pop(token.slot))

    def _check_size(self, size_bytes: int) -> None:
        if not 0 <= size_bytes <= self._geometry.slot_bytes:
            raise LineError(
                f"ring {self.name}: {size_bytes} bytes do not fit a slot of {self._geometry.slot_bytes}; "
                "make the ring with larger slots"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise LineError(f"ring {self.name} is closed; make a new one")


def remove_leftovers(folder: Path = SHM_FOLDER) -> list[str]:
    """Remove rings whose writers died, and return their names. What belongs to others or is no ring is left alone."""
    removed = []
    try:
        names = sorted(filter(is_ring_name, os.listdir(folder)))
    except OSError:
        return []
    for name in names:
        try:
            if _remove_if_dead(folder / name):
                removed.append(name)
        except OSError:
            continue  # another user's, or gone meanwhile, or held by a live writer
    return removed


def _remove_if_dead(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        magic = os.pread(fd, HEADER.size, 0)[:8]
        ring = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and magic in (b"", b"ADCLRING")
        if not ring:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    finally:
        os.close(fd)


def _create(folder: Path, name_hint: str) -> tuple[Path, int]:
    """A new file and its descriptor, which holds the lock that says that the writer lives."""
    for _ in range(CREATE_ATTEMPTS):
        path = folder / f"adclick-{name_hint}-{secrets.token_hex(8)}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno == errno.EEXIST:
                continue
            raise LineError(
                f"{path}: cannot be made ({error.strerror}); check that {folder} is there and may be written"
            ) from error
        # Someone who looks for leftovers may meet the file before it is locked, and removes it.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return path, fd
        os.close(fd)
        path.unlink(missing_ok=True)
    raise LineError(f"{folder}: no ring could be made in {CREATE_ATTEMPTS} attempts; try again")


def _release_view(view: memoryview) -> None:
    # Refused while an array on it is about, whose owner must not write to it any more.
    with contextlib.suppress(BufferError):
        view.release()
