"""The daemon's books as a snapshot: what monitors, metrics, `adclick top` and the shift report read.

For every camera, at every moment: ``received = ok + ng + uncertain + sum(not_inspected.values()) + pending``.
"""

import msgspec

__all__ = ["CameraTally", "LineTally", "ProductTally", "RoutingTally"]


class CameraTally(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Counts since the daemon started; a shift's counts are differences of two snapshots."""

    product: str
    connected: bool = False
    received: int = 0
    ok: int = 0
    ng: int = 0
    uncertain: int = 0
    not_inspected: dict[str, int] = {}
    """By reason: overload, deadline, bad_frame, engine_error, shutdown."""
    pending: int = 0
    missed: int = 0
    """Triggers whose sequence numbers never arrived: lost on the way, or while the daemon was down."""
    undelivered: int = 0
    """Verdicts whose camera was gone when they were sent; they are counted under their verdict too."""
    late: int = 0
    """Verdicts sent after the deadline, whatever they said."""
    late_results: int = 0
    """Results of the engine for frames that had been answered with not_inspected(deadline) already; dropped."""
    bad_messages: int = 0
    queue: int = 0
    """Frames that wait now."""
    sessions: int = 0
    """Hellos accepted."""

    def balanced(self) -> bool:
        answered = self.ok + self.ng + self.uncertain + sum(self.not_inspected.values())
        return self.received == answered + self.pending


class ProductTally(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    bundle: str
    version: str
    previous: str | None = None
    """Version that `adclick rollback` would serve again."""
    swaps: int = 0
    failed_swaps: int = 0
    last_failure: str | None = None
    lower: float | None = None
    upper: float | None = None
    notices: tuple[str, ...] = ()
    shadow: str | None = None
    """Version of the candidate that judges too."""
    shadow_frames: int = 0
    shadow_changed: dict[str, int] = {}
    """Frames on which serving and candidate differ, by "ok->ng" and the like."""
    shadow_failures: int = 0
    alarms: tuple[str, ...] = ()
    """Drift alarms that are on: light, focus, position, score."""


class RoutingTally(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``offered = queued + duplicate + over_budget + failed + waiting``."""

    offered: int = 0
    queued: int = 0
    """Handed over, durably."""
    duplicate: int = 0
    over_budget: int = 0
    """Less useful than others while the operators' budget lasted, or displaced while waiting."""
    failed: int = 0
    """Could not be stored: disk full or the spool's own budget."""
    waiting: int = 0
    spool_bytes: int = 0
    last_failure: str | None = None

    def balanced(self) -> bool:
        return self.offered == self.queued + self.duplicate + self.over_budget + self.failed + self.waiting


class LineTally(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    daemon: int
    """Drawn at random when the daemon started."""
    started_utc: str
    taken_utc: str
    uptime_s: float
    ready: bool
    stopping: bool = False
    cameras: dict[str, CameraTally] = {}
    products: dict[str, ProductTally] = {}
    routing: RoutingTally = msgspec.field(default_factory=RoutingTally)
    strangers: dict[str, int] = {}
    """Messages that belong to no camera, by error code."""
    latency_ms: dict[str, list[float]] = {}
    """p50, p95, p99 of the last answers, per stage and ``total``."""
    frames_per_s: float = 0.0
