"""``line.toml``: what the daemon is told, typed. `line_file.py` reads and checks it."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "Alarms",
    "Camera",
    "Limits",
    "Line",
    "LineConfig",
    "OverloadPolicy",
    "Product",
    "Routing",
    "Security",
    "Shift",
]

OverloadPolicy = Literal["reject_newest", "drop_oldest", "block"]
"""What happens to a frame that finds its camera's queue full.

``reject_newest``: it is answered with not_inspected(overload) at once. ``drop_oldest``: the oldest that nobody works on yet
is, and it takes its place. ``block``: there are only as many credits as places, so the camera waits, and answers by itself
for triggers it could not send.
"""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Endpoint = Annotated[str, Meta(pattern=r"^(ipc|tcp)://.+$")]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Line(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[line]``"""

    name: Annotated[str, Meta(min_length=1, max_length=64)] = "line"
    bind: tuple[Endpoint, ...] = ("ipc:///tmp/adclick/line.ipc",)
    """Endpoints that cameras connect to."""
    monitor: Endpoint | None = None
    """Endpoint on which verdicts and tallies are published."""
    http: Annotated[str, Meta(pattern=r"^.+:[0-9]{1,5}$")] | None = "127.0.0.1:8600"
    """host:port of /healthz, /readyz, /metrics, /status."""
    state: Path = Path("state")
    """Folder of what must survive a restart: serving bundles, the shift's counts, the control socket."""
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Threads of the engine; default: all cores but one, at least one."""
    decode_workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 4
    batch_wait_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    """How long a frame may wait for others to share its batch, where the deadlines allow it. Pays on GPUs only."""
    heartbeat_ms: Annotated[int, Meta(ge=20, le=60_000)] = 250
    answer_margin_ms: Annotated[float, Meta(ge=0, le=10_000)] = 5.0
    """A frame that waits is answered with not_inspected(deadline) so long before its deadline."""
    drain_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    """At a stop, how long frames already taken may still be judged."""


class Limits(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[limits]``, checked before a pixel is decoded."""

    max_width: Annotated[int, Meta(ge=1, le=1 << 20)] = 16384
    max_height: Annotated[int, Meta(ge=1, le=1 << 20)] = 16384
    max_pixels: Annotated[int, Meta(ge=1, le=1 << 31)] = 50_000_000
    max_payload_bytes: Annotated[int, Meta(ge=1, le=1 << 31)] = 160_000_000


class Security(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[security]``"""

    curve: bool = False
    """Cameras must prove a key that the allow-list names (`adclick keys`)."""
    keys: Path = Path("keys")
    plain_remote: bool = False
    """Bind addresses other hosts can reach without CURVE. For networks that nobody else is on."""


class Product(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[products.NAME]``"""

    bundle: Path
    codes: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Codes in a frame's header that choose this product."""


class Camera(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[cameras.NAME]``"""

    product: Name
    deadline_ms: Annotated[float, Meta(ge=1, le=3_600_000)] = 500.0
    queue: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Frames that may wait; what comes on top meets the policy."""
    overload: OverloadPolicy = "reject_newest"


class Routing(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[routing]``: which frames operators are asked about."""

    spool: Path | None = None
    """Folder that frames for the relabel queue are handed over in; default: STATE/relabel. """
    budget_per_hour: Annotated[float, Meta(ge=0, le=100_000)] = 60.0
    audit_share: Share = 0.002
    """Share of ok and ng frames queued at random, for audit; within the budget."""
    max_spool_bytes: Annotated[int, Meta(ge=1 << 20)] = 2 << 30
    waiting: Annotated[int, Meta(ge=1, le=256)] = 16
    """Candidates kept in memory, the most useful first, until the budget allows the next."""
    duplicate_similarity: Share = 0.98


class Alarms(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[alarms]``: how far from what the product's good frames showed light, focus, position and scores may drift.

    In standard deviations of the reference frames, smoothed over ``frames``; 0 turns an alarm off.
    """

    frames: Annotated[int, Meta(ge=2, le=100_000)] = 50
    reference_frames: Annotated[int, Meta(ge=2, le=100_000)] = 100
    light: Annotated[float, Meta(ge=0)] = 6.0
    focus: Annotated[float, Meta(ge=0)] = 6.0
    position: Annotated[float, Meta(ge=0)] = 6.0
    score: Annotated[float, Meta(ge=0)] = 6.0


class Shift(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[shift]``"""

    starts: tuple[Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")], ...] = ("06:00", "14:00", "22:00")
    """Local times at which a shift's report is closed and the next begins."""
    reports: Path | None = None
    """Folder of the reports; default: STATE/shifts."""


class LineConfig(_Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    line: Line = Line()
    limits: Limits = Limits()
    security: Security = Security()
    products: dict[Name, Product]
    cameras: dict[Name, Camera]
    routing: Routing = Routing()
    alarms: Alarms = Alarms()
    shift: Shift = Shift()
