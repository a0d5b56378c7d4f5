"""A trigger on its way through the daemon."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.line.protocol import FrameHeader

__all__ = ["Job"]


@dataclass(eq=False, slots=True)
class Job:
    """One frame from its receipt to its answer. Times are of the daemon's monotonic clock, in nanoseconds."""

    camera: str
    route: bytes
    """Of the connection it came over; the answer goes there and nowhere else."""
    session: int
    header: FrameHeader
    payload: Any
    """A buffer of the message's second part; None for a frame in shared memory."""
    product: str
    received_ns: int
    born_ns: int
    """Where its deadline starts: the camera's stamp where both share a clock, else the receipt."""
    deadline_ns: int
    answered: bool = False
    """Set once, by the thread that owns the books; whoever meets an answered job drops it."""
    prepared: npt.NDArray[np.uint8] | None = None
    """RGB [h, w, 3] at the input size of the product's network (full size for tiled products)."""
    shape: tuple[int, int] = (0, 0)
    """Height and width of the frame itself."""
    stats: Any = None
    """Light, focus and position, for the drift alarms."""
    stage_ms: dict[str, float] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        return self.header.seq

    @property
    def name(self) -> str:
        return f"{self.camera}/{self.seq}"
