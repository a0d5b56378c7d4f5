"""The evaluation robot: where an operator who knows the truth would click next (method section 4)."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.errors import UsageError

__all__ = ["THRESHOLD", "next_click"]

THRESHOLD: Final = 0.49
"""Probability above which a pixel is taken as defective, in the protocol and in weak labels."""

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]


def next_click(probability: F32, truth: Bool, given: Sequence[Click], threshold: float = THRESHOLD) -> Click | None:
    """The next click on an image, or None where no error is left that was not clicked already.

    Errors are the missed pixels (truth, but not found) and the false ones (found, but not truth). The larger of the two
    regions is the one that a larger disc fits in: whose distance transform reaches higher, the borders of the picture
    counting as edges of the region. The click is at that maximum, positive in missed pixels. Ties go to missed pixels,
    then to the first place in row-major order, so that the same masks always give the same click. A place of ``given``
    is not clicked again.

    Args:
        probability: float32 ``[H, W]``; a pixel is found where it exceeds ``threshold``. Zeros before the first click.
        truth: bool ``[H, W]``, True where defective.
        given: Clicks so far.
        threshold: See ``probability``.

    Raises:
        UsageError: The shapes differ, or ``truth`` is not bool ``[H, W]``.
    """
    if truth.ndim != 2 or truth.dtype != np.bool_ or probability.shape != truth.shape:
        raise UsageError(
            f"probability is {list(probability.shape)} and truth {truth.dtype} {list(truth.shape)}; "
            "pass two arrays [H, W] of one shape, truth of bool"
        )
    found = probability > threshold
    missed, false = _depth(truth & ~found), _depth(found & ~truth)
    for click in given:
        y, x = round(click.y), round(click.x)
        if 0 <= y < truth.shape[0] and 0 <= x < truth.shape[1]:
            missed[y, x] = false[y, x] = 0
    positive = bool(missed.max(initial=0) >= false.max(initial=0))
    depth = missed if positive else false
    if not depth.any():
        return None
    row, column = divmod(int(np.argmax(depth)), depth.shape[1])
    return Click(float(row), float(column), positive)


def _depth(region: Bool) -> F32:
    """Distance in pixels from each place of ``region`` to the nearest one outside of it, 0 elsewhere."""
    padded = np.pad(region.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.ascontiguousarray(depth[1:-1, 1:-1], dtype=np.float32)
