"""What is kept of a shift while it runs, and the file it survives in (replaced whole by `shift.ShiftBook`)."""

from pathlib import Path
from typing import Final

import msgspec

from adclick_edge.errors import LineError
from adclick_edge.line.tally import LineTally

__all__ = [
    "ALL_STAGES",
    "SLOT_S",
    "STATE_FILE",
    "AlarmSpan",
    "CameraShift",
    "ProductShift",
    "Restart",
    "RoutingShift",
    "ShiftRecord",
    "ShiftState",
    "SwapEvent",
    "encode_state",
    "read_state",
]

STATE_FILE: Final = "shift.json"
SLOT_S: Final = 600
"""Width of a column of the timeline; hours are six of them, counted from the shift's start."""
ALL_STAGES: Final = "total"


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class CameraShift(_Part, kw_only=True):
    """``carried + received = ok + ng + uncertain + sum(not_inspected.values()) + abandoned + pending``."""

    product: str = ""
    carried: int = 0
    """Frames that were under way when the shift began."""
    received: int = 0
    ok: int = 0
    ng: int = 0
    uncertain: int = 0
    not_inspected: dict[str, int] = {}
    abandoned: int = 0
    """Frames under way when a daemon was last heard of; what it said about them is not known."""
    pending: int = 0
    missed: int = 0
    undelivered: int = 0
    late: int = 0
    late_results: int = 0
    bad_messages: int = 0
    sessions: int = 0
    slots: dict[int, list[int]] = {}
    """Answers per `SLOT_S` from the shift's start: ok, ng, uncertain, not inspected."""
    total_ms: dict[int, int] = {}
    """Bins of `shift_bins`."""

    def answered(self) -> int:
        return self.ok + self.ng + self.uncertain + sum(self.not_inspected.values())

    def balanced(self) -> bool:
        return self.carried + self.received == self.answered() + self.abandoned + self.pending


class ProductShift(_Part, kw_only=True):
    versions: list[str] = []
    lower: float | None = None
    upper: float | None = None
    verdicts: dict[str, int] = {}
    """As answers were sent: verdict, or not_inspected:REASON."""
    scores: dict[str, dict[int, int]] = {}
    """By verdict; bins of `shift_bins`."""
    shadow: str | None = None
    shadow_frames: int = 0
    shadow_changed: dict[str, int] = {}
    shadow_failures: int = 0
    notices: list[str] = []


class RoutingShift(_Part, kw_only=True):
    offered: int = 0
    queued: int = 0
    duplicate: int = 0
    over_budget: int = 0
    failed: int = 0
    spool_bytes: int = 0


class AlarmSpan(_Part, kw_only=True):
    product: str
    kind: str
    on_s: float
    off_s: float | None = None


class SwapEvent(_Part, kw_only=True):
    at_s: float
    product: str
    before: str
    after: str
    """The version served from then on; ``before`` again where the swap failed."""
    failure: str | None = None


class Restart(_Part, kw_only=True):
    """Between ``last_s`` and ``at_s`` nothing was written down; triggers then are in no count of this shift."""

    at_s: float
    last_s: float
    clean: bool
    """The daemon before had answered everything and said goodbye."""


class ShiftRecord(_Part, kw_only=True):
    """Times are Unix seconds."""

    shift: int
    """Drawn at random."""
    line: str
    start_s: float
    end_s: float
    opened_s: float
    """When it was first observed."""
    last_s: float
    """When it was last observed."""
    cameras: dict[str, CameraShift] = {}
    products: dict[str, ProductShift] = {}
    routing: RoutingShift = msgspec.field(default_factory=RoutingShift)
    strangers: dict[str, int] = {}
    stage_ms: dict[str, dict[int, int]] = {}
    """Bins of `shift_bins` by stage, and `ALL_STAGES`."""
    alarms: list[AlarmSpan] = []
    swaps: list[SwapEvent] = []
    restarts: list[Restart] = []
    notes: list[str] = []
    left_out: dict[str, int] = {}
    """Alarms and swaps beyond what is kept of each."""


class ShiftState(_Part, kw_only=True):
    format: int = 1
    running: ShiftRecord
    last: LineTally
    """The snapshot that the record reaches up to."""
    unwritten: list[ShiftRecord] = []
    """Closed shifts whose report could not be written yet."""


def encode_state(state: ShiftState) -> bytes:
    return msgspec.json.encode(state)


def read_state(folder: Path) -> ShiftState:
    """LineError when there is none, or it cannot be read."""
    path = folder / STATE_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise LineError(f"{path} is missing: no daemon has run with this state folder yet") from error
    except OSError as error:
        raise LineError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        state = msgspec.json.decode(data, type=ShiftState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineError(f"{path} is damaged or of another version ({error}); move it away to begin anew") from error
    if state.format != 1:
        raise LineError(f"{path} has format {state.format}, this version reads 1; move it away to begin anew")
    return state
