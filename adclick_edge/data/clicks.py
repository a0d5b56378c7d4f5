"""A click: where an operator says "this is defective" or "this is not"."""

from dataclasses import dataclass

__all__ = ["MAX_CLICKS", "Click"]

MAX_CLICKS = 24
"""Most clicks one mask is made from; the network's input has that many rows."""


@dataclass(frozen=True)
class Click:
    """A click at row ``y`` and column ``x``, in pixels of the frame it was given on (the integer i is the centre of
    pixel i); ``positive`` marks a defect, otherwise a normal place."""

    y: float
    x: float
    positive: bool
