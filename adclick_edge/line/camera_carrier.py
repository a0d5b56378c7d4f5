"""How a frame travels: through shared memory or in a message. Either way it is copied exactly once on this side."""

from typing import Literal, NamedTuple

from adclick_edge.errors import LineError
from adclick_edge.line.camera_picture import Picture
from adclick_edge.line.camera_ring import FrameRing
from adclick_edge.line.camera_verdict import LocalReason
from adclick_edge.line.protocol import RingSlot, Welcome
from adclick_edge.runtime.decision import Reason

__all__ = ["Carried", "Carrier", "Transport", "Uncarried"]

Transport = Literal["auto", "message", "ring"]
"""``ring``: frames lie in shared memory, for a daemon on the same host only. ``auto``: where that pays and works."""

RING_FROM_BYTES = 1 << 16
"""Smaller frames are copied into a message as fast."""
SPARE_SLOTS = 2


class Carried(NamedTuple):
    """One of the two is set."""

    slot: RingSlot | None
    payload: bytes | None


class Uncarried(NamedTuple):
    reason: LocalReason
    why: str


class Carrier:
    def __init__(self, camera: str, transport: Transport) -> None:
        self._transport = transport
        self._ring = FrameRing(camera)
        self._ring_trouble: str | None = None
        self._ring_proven = False

    @property
    def ring_trouble(self) -> str | None:
        """Why shared memory is not used since the last welcome, though it would be."""
        return self._ring_trouble

    def welcomed(self) -> None:
        self._ring_trouble = None
        self._ring_proven = False

    def ring_answered(self, reason: Reason | LocalReason | None) -> None:
        """How the daemon answered a frame in shared memory.

        One that can read none at all (another mount of /dev/shm, say) is sent messages, where the transport is ``auto``.
        """
        if reason != "bad_frame":
            self._ring_proven = True
        elif not self._ring_proven:
            self._ring_trouble = "the daemon could use no frame in shared memory; frames go in messages"

    def carry(self, picture: Picture, welcome: Welcome) -> Carried | Uncarried:
        """Copy a picture to where it is sent from."""
        if picture.nbytes > welcome.max_payload_bytes:
            return Uncarried(
                "refused", f"a frame of {picture.nbytes} bytes; the daemon takes {welcome.max_payload_bytes}"
            )
        only_ring = self._transport == "ring"
        if only_ring and not welcome.local:
            return Uncarried(
                "refused", "the daemon is on another host, where the transport ring cannot be used; use auto"
            )
        pays = self._transport == "auto" and welcome.local and picture.nbytes >= RING_FROM_BYTES
        if only_ring or (pays and self._ring_trouble is None):
            try:
                slot = self._ring.put(picture, welcome.credits + SPARE_SLOTS, wait=only_ring)
            except LineError as error:
                if only_ring:
                    return Uncarried("refused", str(error))
                self._ring_trouble, slot = str(error), None
            if slot is not None:
                return Carried(slot, None)
            if only_ring:
                return Uncarried("no_credit", "no slot of the ring is free")
        return Carried(None, picture.tobytes())

    def release(self, slot: RingSlot) -> None:
        self._ring.release(slot)

    def close(self) -> None:
        self._ring.close()
