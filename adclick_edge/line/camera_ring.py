"""Frames of one camera in shared memory: a ring made for the first frame, and again for a larger one."""

import threading
from dataclasses import dataclass

from adclick_edge.errors import AdclickError, LineError
from adclick_edge.line.camera_picture import Picture
from adclick_edge.line.protocol import RingSlot
from adclick_edge.line.ring import RingWriter

__all__ = ["FrameRing"]


@dataclass(eq=False, slots=True)
class _Ring:
    writer: RingWriter
    held: int = 0
    """Slots being filled or waited for."""
    retired: bool = False


class FrameRing:
    """`put` from any thread. A slot is held until its trigger is settled.

    Then it may be reused at once, also if the daemon never answered and might still read it: it finds another
    generation after its read, and drops what it read for a trigger that nobody waits for any more.
    """

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._lock = threading.Lock()
        self._rings: list[_Ring] = []
        """The last one is in use; slots of the others are still waited for."""
        self._maker: threading.Thread | None = None
        self._trouble: LineError | None = None
        self._closed = False

    def put(self, picture: Picture, slots: int, *, wait: bool) -> RingSlot | None:
        """Copy a picture into a free slot; None if there is none.

        The memory of a ring takes long to be had (48 MB: 20 ms and more). So for the first picture, and the first that
        is larger, a ring of ``slots`` slots is made in the background, and None is the answer, or it is waited for
        where ``wait`` says so. Raises LineError if the memory cannot be had.
        """
        ring = self._ring_for(picture.nbytes, slots, wait)
        if ring is None:
            return None
        with self._lock:
            if not ring.writer.free_slots:
                return None
            view, token = ring.writer.acquire()
            ring.held += 1
        try:
            picture.fill(view)
            return ring.writer.commit(token, picture.nbytes)
        except BaseException:
            with self._lock:
                if ring in self._rings:
                    ring.writer.abandon(token)
                self._let_go(ring)
            raise

    def release(self, slot: RingSlot) -> None:
        with self._lock:
            for ring in self._rings:
                if slot.name == ring.writer.name:
                    ring.writer.release(slot)
                    self._let_go(ring)
                    return

    def close(self) -> None:
        with self._lock:
            self._closed = True
            maker = self._maker
        if maker is not None:
            maker.join()
        with self._lock:
            for ring in self._rings:
                ring.writer.close()
            self._rings.clear()

    def _ring_for(self, nbytes: int, slots: int, wait: bool) -> _Ring | None:
        while True:
            with self._lock:
                if self._trouble is not None:
                    trouble, self._trouble = self._trouble, None
                    raise trouble
                last = self._rings[-1] if self._rings else None
                if last is not None and last.writer.slot_bytes >= nbytes:
                    return last
                if self._closed:
                    return None
                if self._maker is None:
                    self._maker = threading.Thread(
                        target=self._make, args=(slots, nbytes), name=f"ring-{self._camera}", daemon=True
                    )
                    self._maker.start()
                maker = self._maker
            if not wait:
                return None
            maker.join()

    def _make(self, slots: int, nbytes: int) -> None:
        try:
            writer = RingWriter(self._camera, slots, nbytes)
        except AdclickError as error:
            with self._lock:
                self._trouble, self._maker = LineError(str(error)), None
            return
        with self._lock:
            self._maker = None
            last = self._rings[-1] if self._rings else None
            self._rings.append(_Ring(writer))
            if last is not None:
                last.retired = True
                self._close_if_idle(last)

    def _let_go(self, ring: _Ring) -> None:
        ring.held -= 1
        self._close_if_idle(ring)

    def _close_if_idle(self, ring: _Ring) -> None:
        if ring.retired and ring.held == 0 and ring in self._rings:
            self._rings.remove(ring)
            ring.writer.close()
