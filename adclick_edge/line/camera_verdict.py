"""What a camera program is told about a trigger, and the counts of all its triggers."""

from typing import Literal

import msgspec

from adclick_edge.line.protocol import Region, VerdictMessage
from adclick_edge.runtime.decision import Reason, Verdict

__all__ = ["CameraCounts", "CameraVerdict", "LocalReason"]

LocalReason = Literal["no_connection", "no_credit", "no_answer", "refused", "closed"]
"""Why a trigger was answered on the camera's side with not_inspected.

``no_connection``: no daemon was connected, so nothing was sent. ``no_credit``: the daemon had granted no more frames.
``no_answer``: sent, but no verdict came by deadline + grace. ``refused``: the daemon did not take the frame (too large, or
an error it named). ``closed``: the client was closed first.
"""


class CameraVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The one verdict on a trigger. ``local`` ones are always not_inspected and were given on the camera's side."""

    seq: int
    part: str | None
    verdict: Verdict
    reason: Reason | LocalReason | None
    local: bool
    latency_ms: float
    """From the call of ``trigger`` to this verdict."""
    score: float | None = None
    thresholds: tuple[float, float] | None = None
    """Lower and upper: ok below the first, ng from the second."""
    product: str | None = None
    bundle_version: str | None = None
    stage_ms: dict[str, float] = {}
    regions: tuple[Region, ...] = ()
    regions_found: int = 0

    @classmethod
    def received(cls, message: VerdictMessage, *, part: str | None, latency_ms: float) -> "CameraVerdict":
        both = message.lower is not None and message.upper is not None
        return cls(
            seq=message.seq,
            part=part,
            verdict=message.verdict,
            reason=message.reason,
            local=False,
            latency_ms=latency_ms,
            score=message.score,
            thresholds=(message.lower, message.upper) if both else None,  # type: ignore[arg-type]
            product=message.product,
            bundle_version=message.bundle_version,
            stage_ms=message.stage_ms,
            regions=message.regions,
            regions_found=message.regions_found,
        )

    @classmethod
    def given_locally(cls, seq: int, reason: LocalReason, *, part: str | None, latency_ms: float) -> "CameraVerdict":
        return cls(seq=seq, part=part, verdict="not_inspected", reason=reason, local=True, latency_ms=latency_ms)


class CameraCounts(msgspec.Struct, kw_only=True):
    """Counts since the client was made. At every moment ``triggers = answered + sum(local.values()) + pending``."""

    triggers: int = 0
    answered: int = 0
    """Verdicts of a daemon that came in time."""
    local: dict[str, int] = {}
    pending: int = 0
    late: int = 0
    """Verdicts of a daemon for triggers that were answered locally already; dropped."""
    overflow: int = 0
    """Verdicts, the oldest, that nobody fetched before the queue was full; dropped."""
    reconnects: int = 0
    """Welcomes after the first."""
    ring_frames: int = 0
    """Frames sent through shared memory."""
    message_frames: int = 0
    bad_messages: int = 0
    """Messages that were none of the protocol, or verdicts that belong to no trigger."""
    callback_errors: int = 0
    faults: int = 0
    """Errors of the client's own thread that it survived; they are in the log."""

    @property
    def balanced(self) -> bool:
        return self.triggers == self.answered + sum(self.local.values()) + self.pending
