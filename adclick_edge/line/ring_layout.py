"""The file of a shared-memory ring, byte by byte, as docs/protocol.md states it. All numbers are little-endian.

::

    0             magic  "ADCLRING"
    8             u32 version (1)      12  u32 slots
    16            u64 data_offset      24  u64 slot_bytes      32  u64 writer_pid      40  24 bytes of 0
    64 + 64 s     record of slot s:    u64 generation, u64 size_bytes, 48 bytes of 0
    data_offset + s * slot_bytes       payload of slot s

A generation is odd while the slot is being written and even, and larger than ever before, once it is whole.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from adclick_edge.errors import ProtocolError

__all__ = [
    "HEADER",
    "MAX_SLOTS",
    "MAX_SLOT_BYTES",
    "PAGE_BYTES",
    "RECORD",
    "SHM_FOLDER",
    "Geometry",
    "is_ring_name",
    "parse_header",
    "record_at",
]

SHM_FOLDER = Path("/dev/shm")
MAGIC = b"ADCLRING"
VERSION = 1
MAX_SLOTS = 4096
MAX_SLOT_BYTES = 1 << 31
PAGE_BYTES = 4096
HEADER = struct.Struct("<8sIIQQQ24x")
RECORD = struct.Struct("<QQ")
RECORD_BYTES = 64  # a cache line each

RING_NAME = re.compile(r"adclick-[A-Za-z0-9_.-]{1,100}")


def is_ring_name(name: str) -> bool:
    return RING_NAME.fullmatch(name) is not None


def record_at(slot: int) -> int:
    return HEADER.size + RECORD_BYTES * slot


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True)
class Geometry:
    slots: int
    slot_bytes: int
    """From one slot to the next."""
    data_offset: int
    writer_pid: int
    """For people who look for the process; the lock on the file tells whether it lives."""

    @classmethod
    def for_payloads(cls, slots: int, payload_bytes: int, writer_pid: int) -> "Geometry":
        """Slots that hold ``payload_bytes`` each, on pages of their own."""
        return cls(slots, _pages(payload_bytes), _pages(record_at(slots)), writer_pid)

    @property
    def file_bytes(self) -> int:
        return self.data_at(self.slots)

    def data_at(self, slot: int) -> int:
        return self.data_offset + slot * self.slot_bytes

    def header(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, self.slots, self.data_offset, self.slot_bytes, self.writer_pid)


def parse_header(data: bytes, file_bytes: int, name: str) -> Geometry:
    """The geometry that the first bytes of a ring's file state, which must fit the file. Raises ProtocolError."""
    if len(data) < HEADER.size:
        raise _malformed(name, f"its header ends after {len(data)} bytes")
    magic, version, slots, data_offset, slot_bytes, writer_pid = HEADER.unpack(data)
    if magic != MAGIC:
        raise _malformed(name, "it does not start as a ring")
    if version != VERSION:
        raise _malformed(name, f"its layout has the version {version}; this side knows {VERSION}")
    geometry = Geometry(slots, slot_bytes, data_offset, writer_pid)
    if not 1 <= slots <= MAX_SLOTS or not 1 <= slot_bytes <= MAX_SLOT_BYTES or data_offset < record_at(slots):
        raise _malformed(name, f"{slots} slots of {slot_bytes} bytes from byte {data_offset} on cannot be")
    if geometry.file_bytes > file_bytes:
        raise _malformed(name, f"it has {file_bytes} bytes, its header promises {geometry.file_bytes}")
    return geometry


def _malformed(name: str, what: str) -> ProtocolError:
    return ProtocolError("bad_message", f"ring {name}: {what}; the camera must make a new one")
