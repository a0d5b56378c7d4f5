"""What a capture process and its owner say to each other, beside the pixels in their shared memory."""

import msgspec

__all__ = ["SLOTS", "Captured", "Failed", "decode", "encode"]

SLOTS = 3
"""One being filled, one that is the newest, one being copied by the owner."""


class Captured(msgspec.Struct, frozen=True, tag="captured"):
    """A frame uint8 [height, width, channels] lies in ``slot`` of a memory whose slots are ``slot_bytes`` apart."""

    slot: int
    slot_bytes: int
    height: int
    width: int
    channels: int
    captured_ns: int
    dropped: int
    """Frames since the start that found no free slot."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    why: str


_decoder: msgspec.msgpack.Decoder[Captured | Failed] = msgspec.msgpack.Decoder(Captured | Failed)


def encode(message: Captured | Failed) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Captured | Failed:
    return _decoder.decode(data)
