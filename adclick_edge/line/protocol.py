"""What cameras and the daemon say to each other: msgpack headers, typed and bounded; payloads stay untouched.

docs/protocol.md is the same for people who write a client in another language. A message is one ZeroMQ message of one
part (the header) or two (a frame's header and its pixels). Camera: DEALER. Daemon: ROUTER.

::

    camera -> daemon   hello  frame  heartbeat  bye
    daemon -> camera   welcome  credit  verdict  heartbeat  error  bye
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from adclick_edge.errors import ProtocolError
from adclick_edge.runtime.decision import Reason, Verdict

__all__ = [
    "BITS_PER_PIXEL",
    "ENCODED",
    "MAX_HEADER_BYTES",
    "MAX_REGIONS",
    "PROTOCOL_VERSION",
    "Bye",
    "CameraMessage",
    "Credit",
    "DaemonMessage",
    "ErrorCode",
    "ErrorMessage",
    "FrameHeader",
    "Heartbeat",
    "Hello",
    "PixelFormat",
    "Region",
    "RingSlot",
    "VerdictMessage",
    "Welcome",
    "decode_camera_message",
    "decode_daemon_message",
    "encode",
]

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 4096
MAX_REGIONS = 8
"""Blobs in a verdict on the wire; the daemon counts the others."""

PixelFormat = Literal[
    "mono8", "mono16", "rgb8", "bgr8", "bayer_rg8", "bayer_gr8", "bayer_gb8", "bayer_bg8", "jpeg", "png"
]
ENCODED = frozenset({"jpeg", "png"})
BITS_PER_PIXEL = {
    "mono8": 8,
    "mono16": 16,
    "rgb8": 24,
    "bgr8": 24,
    "bayer_rg8": 8,
    "bayer_gr8": 8,
    "bayer_gb8": 8,
    "bayer_bg8": 8,
}

ErrorCode = Literal[
    "bad_message",  # bytes that are no message of this protocol
    "version",  # a protocol version this daemon does not speak
    "unknown_session",  # say hello first (also after the daemon was restarted)
    "unknown_camera",  # line.toml does not name this camera
    "not_allowed",  # this key may not be this camera
    "replaced",  # another connection said hello under this camera's name
    "no_credit",  # more frames under way than were granted; the frame was answered with not_inspected(overload)
    "bad_sequence",  # a sequence number that was used before; the frame was not taken
    "too_large",  # a payload above the limit the daemon stated in its welcome
    "bad_frame",  # why a frame was answered with not_inspected(bad_frame)
]

U64 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
ShortText = Annotated[str, Meta(max_length=64)]
LongText = Annotated[str, Meta(max_length=1000)]
Side = Annotated[int, Meta(ge=1, le=1 << 20)]
Milliseconds = Annotated[float, Meta(ge=0, le=3_600_000)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Unknown keys are ignored, so that a newer peer may add some; ``v`` changes when old peers would misunderstand."""

    v: int = PROTOCOL_VERSION


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """First message of a camera on each connection."""

    camera: Name
    session: U64
    """Drawn at random when the camera program starts; sequence numbers count within it."""
    next_seq: U64
    """Sequence number of the next trigger. What lies between the last frame received and this was lost on the way."""
    unanswered: U64 = 0
    """Triggers of this session given up without a verdict from any daemon."""
    boot_id: ShortText | None = None
    """The host's boot id where the camera stamps frames with this host's monotonic clock (Linux: CLOCK_MONOTONIC)."""
    software: ShortText = ""


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    """Answer to a hello: the camera may send ``credits`` frames."""

    daemon: U64
    """Drawn at random when the daemon starts; another value means that it was restarted."""
    credits: Annotated[int, Meta(ge=1, le=4096)]
    deadline_ms: Milliseconds
    """Within which a frame is answered that states no deadline of its own."""
    heartbeat_ms: Milliseconds
    """Send a heartbeat when nothing else was sent for so long; a peer silent for four times this is gone."""
    max_payload_bytes: U64
    local: bool = False
    """Daemon and camera share a host, so that frames may lie in a shared-memory ring."""


class Credit(_Message, frozen=True, kw_only=True, tag="credit"):
    """So many more frames may be sent, beyond the one that each verdict gives back."""

    credits: Annotated[int, Meta(ge=1, le=4096)]


class RingSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Where a frame's payload lies in shared memory, instead of in a second message part."""

    name: Annotated[str, Meta(pattern=r"^adclick-[A-Za-z0-9_.-]{1,100}\Z")]
    """File under /dev/shm."""
    slot: Annotated[int, Meta(ge=0, le=4095)]
    generation: U64
    """Of the slot when the frame was written; another one found there means that the slot was reused."""
    size_bytes: U64


class FrameHeader(_Message, frozen=True, kw_only=True, tag="frame"):
    """One trigger. Raw pixels are rows of ``stride_bytes`` (0: packed), top row first; mono16 is little-endian."""

    seq: U64
    format: PixelFormat
    width: Side
    height: Side
    stride_bytes: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    bit_depth: Annotated[int, Meta(ge=8, le=16)] = 16
    """Bits that a camera fills of mono16 and of 16-bit PNG; ignored for other formats."""
    deadline_ms: Milliseconds | None = None
    """Answer within this of the receipt (of ``sent_ns`` where daemon and camera share a clock)."""
    sent_ns: U64 | None = None
    """Monotonic clock of the camera's host."""
    code: ShortText | None = None
    """Chooses the product (change-over); without it the camera's own is taken."""
    part: ShortText | None = None
    """Serial number or the like, repeated in the verdict."""
    ring: RingSlot | None = None


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """Box of a blob in pixels of the frame, and its largest raw value."""

    left: int
    top: int
    width: int
    height: int
    peak: float


class VerdictMessage(_Message, frozen=True, kw_only=True, tag="verdict"):
    """The one answer to a frame; it gives the frame's credit back."""

    seq: U64
    verdict: Verdict
    reason: Reason | None = None
    score: float | None = None
    lower: float | None = None
    upper: float | None = None
    product: ShortText | None = None
    bundle_version: ShortText | None = None
    part: ShortText | None = None
    stage_ms: dict[str, float] = {}
    """Milliseconds from the receipt: per stage of the computation, and ``waiting`` and ``total`` in the daemon."""
    regions: tuple[Region, ...] = ()
    regions_found: int = 0


class Heartbeat(_Message, frozen=True, kw_only=True, tag="heartbeat"):
    sent_ns: U64
    """Sender's monotonic clock, for logs."""


class ErrorMessage(_Message, frozen=True, kw_only=True, tag="error"):
    code: ErrorCode
    message: LongText
    seq: U64 | None = None


class Bye(_Message, frozen=True, kw_only=True, tag="bye"):
    """The sender leaves on purpose. A daemon has answered everything before it says so."""

    reason: LongText = ""


CameraMessage = Hello | FrameHeader | Heartbeat | Bye
DaemonMessage = Welcome | Credit | VerdictMessage | Heartbeat | ErrorMessage | Bye

T = TypeVar("T", bound=CameraMessage | DaemonMessage)

_encoder = msgspec.msgpack.Encoder()
_from_camera: msgspec.msgpack.Decoder[CameraMessage] = msgspec.msgpack.Decoder(CameraMessage)
_from_daemon: msgspec.msgpack.Decoder[DaemonMessage] = msgspec.msgpack.Decoder(DaemonMessage)


class _Probe(msgspec.Struct):
    v: int


_probe = msgspec.msgpack.Decoder(_Probe)


def encode(message: CameraMessage | DaemonMessage) -> bytes:
    """The header's bytes. ProtocolError if they would exceed `MAX_HEADER_BYTES`."""
    data = _encoder.encode(message)
    if len(data) > MAX_HEADER_BYTES:
        raise ProtocolError(
            "bad_message",
            f"a {type(message).__name__} of {len(data)} bytes exceeds {MAX_HEADER_BYTES}; shorten its texts",
        )
    return data


def decode_camera_message(header: bytes | memoryview) -> CameraMessage:
    """What a camera sent. ProtocolError with the code ``bad_message`` or ``version``, whatever the bytes."""
    return _decode(header, _from_camera)


def decode_daemon_message(header: bytes | memoryview) -> DaemonMessage:
    """What a daemon sent. ProtocolError with the code ``bad_message`` or ``version``, whatever the bytes."""
    return _decode(header, _from_daemon)


def _decode(header: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T]) -> T:
    size = len(header)
    if size > MAX_HEADER_BYTES:
        raise ProtocolError("bad_message", f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are allowed")
    try:
        message = decoder.decode(header)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(*_why(header, error)) from error
    if message.v != PROTOCOL_VERSION:
        raise ProtocolError(*_version_problem(message.v))
    return message


def _why(header: bytes | memoryview, error: Exception) -> tuple[str, str]:
    """A header of another version may not decode at all; then the version is what to say."""
    try:
        found = _probe.decode(header).v
    except (msgspec.DecodeError, RecursionError, ValueError):
        found = PROTOCOL_VERSION
    if found != PROTOCOL_VERSION:
        return _version_problem(found)
    return "bad_message", f"no message of this protocol: {error}"[:1000]


def _version_problem(found: int) -> tuple[str, str]:
    return "version", f"protocol version {found}; this side speaks {PROTOCOL_VERSION}: update the older side"
