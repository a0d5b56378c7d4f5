"""What a shift's report states; the same as JSON. Times are Unix seconds and, beside them, local ISO 8601."""

import msgspec

from adclick_edge.line.shift_record import RoutingShift

__all__ = [
    "AlarmLine",
    "CameraLine",
    "Check",
    "Column",
    "Counts",
    "Gap",
    "ProductLine",
    "ScoreBins",
    "ShiftSummary",
    "SwapLine",
]


class _Part(msgspec.Struct, kw_only=True, frozen=True):
    pass


class Counts(_Part, kw_only=True, frozen=True):
    ok: int = 0
    ng: int = 0
    uncertain: int = 0
    not_inspected: int = 0

    @property
    def answered(self) -> int:
        return self.ok + self.ng + self.uncertain + self.not_inspected


class Column(_Part, kw_only=True, frozen=True):
    """Answers from ``from_s`` on: 10 minutes, or an hour."""

    from_s: float
    local: str
    """HH:MM"""
    counts: Counts
    cameras: dict[str, Counts] = {}


class CameraLine(_Part, kw_only=True, frozen=True):
    camera: str
    product: str
    carried: int
    received: int
    counts: Counts
    not_inspected: dict[str, int]
    abandoned: int
    pending: int
    missed: int
    undelivered: int
    late: int
    late_results: int
    bad_messages: int
    sessions: int
    latency_ms: tuple[float, ...] | None
    """p50, p95, p99; None without answers."""
    balanced: bool


class ScoreBins(_Part, kw_only=True, frozen=True):
    """Frames with scores from ``edges[i]`` to ``edges[i + 1]``, by verdict."""

    edges: tuple[float, ...]
    frames: dict[str, tuple[int, ...]]


class ProductLine(_Part, kw_only=True, frozen=True):
    product: str
    versions: tuple[str, ...]
    lower: float | None
    upper: float | None
    counts: Counts
    not_inspected: dict[str, int]
    scores: ScoreBins | None
    shadow: str | None
    shadow_frames: int
    shadow_changed: dict[str, int]
    shadow_failures: int
    notices: tuple[str, ...]


class AlarmLine(_Part, kw_only=True, frozen=True):
    product: str
    kind: str
    on_s: float
    off_s: float | None
    on_local: str
    off_local: str | None


class SwapLine(_Part, kw_only=True, frozen=True):
    at_s: float
    at_local: str
    product: str
    before: str
    after: str
    failure: str | None


class Gap(_Part, kw_only=True, frozen=True):
    """Nothing was written down between these; triggers of that time are in no count."""

    from_s: float
    to_s: float
    from_local: str
    to_local: str
    seconds: float
    why: str


class Check(_Part, kw_only=True, frozen=True):
    what: str
    left: int
    right: int
    holds: bool


class ShiftSummary(_Part, kw_only=True, frozen=True):
    format: int = 1
    shift: int
    line: str
    closed: bool
    start_s: float
    end_s: float
    start_local: str
    end_local: str
    start_utc: str
    written_utc: str
    observed_s: float
    unobserved_s: float
    """Of the time from the shift's start to its end, or until now."""
    received: int
    carried: int
    pending: int
    abandoned: int
    missed: int
    late: int
    counts: Counts
    not_inspected: dict[str, int]
    checks: tuple[Check, ...]
    cameras: tuple[CameraLine, ...]
    products: tuple[ProductLine, ...]
    hours: tuple[Column, ...]
    columns: tuple[Column, ...]
    """10 minutes each."""
    latency_ms: dict[str, tuple[float, ...]]
    """p50, p95, p99 by stage, within 2.2 %."""
    alarms: tuple[AlarmLine, ...]
    swaps: tuple[SwapLine, ...]
    gaps: tuple[Gap, ...]
    restarts: int
    routing: RoutingShift
    strangers: dict[str, int]
    notes: tuple[str, ...]
