"""What can be asked of the daemon that runs, and what it replies: msgpack, typed and bounded."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

__all__ = [
    "MAX_REPLY_BYTES",
    "MAX_REQUEST_BYTES",
    "Envelope",
    "Reload",
    "Reply",
    "Request",
    "Rollback",
    "Shadow",
    "Status",
    "Stop",
    "Swap",
    "encode_reply",
]

MAX_REQUEST_BYTES = 64 << 10
MAX_REPLY_BYTES = 8 << 20

Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class _Request(msgspec.Struct, frozen=True, tag=str.lower, tag_field="type", forbid_unknown_fields=True):
    pass


class Swap(_Request, frozen=True):
    """Serve this bundle from now on."""

    product: Text
    bundle: Text
    """Absolute path."""
    force: bool = False
    """Also where it has no thresholds, so that every frame would be uncertain."""


class Rollback(_Request, frozen=True):
    """Serve the bundle that was served before."""

    product: Text


class Shadow(_Request, frozen=True):
    """Let a candidate judge too, unheard; None ends it."""

    product: Text
    bundle: Text | None


class Status(_Request, frozen=True):
    """The reply's details are a `LineTally`."""


class Reload(_Request, frozen=True):
    """Look at thresholds and regions again, now."""


class Stop(_Request, frozen=True):
    """Answer what waits, then end."""


Request = Swap | Rollback | Shadow | Status | Reload | Stop


class Reply(msgspec.Struct, frozen=True):
    ok: bool
    text: str = ""
    """For people: what was done, or why not and what to do."""
    details: dict[str, Any] = {}


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    patience_s: Annotated[float, Meta(gt=0, le=86_400)]
    """After so long the sender has gone, and its request must not be carried out any more."""
    request: Request
    v: Annotated[int, Meta(ge=1, le=1)] = 1


def encode_reply(reply: Reply) -> bytes:
    """Bytes of the reply; of one that says so where it is too large or holds what msgpack does not know."""
    try:
        data = msgspec.msgpack.encode(reply)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return msgspec.msgpack.encode(Reply(False, f"the reply cannot be sent: {error}"))
    if len(data) > MAX_REPLY_BYTES:
        return msgspec.msgpack.encode(
            Reply(False, f"the reply has {len(data)} bytes; at most {MAX_REPLY_BYTES} are sent")
        )
    return data
