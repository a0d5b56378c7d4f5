"""GrabCut from OpenCV, steered by clicks (Rother, Kolmogorov, Blake 2004)."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.evaluation.click_baselines.discs import WORKING_SIDE_PX, enlarged, label_discs, scaled, scaled_clicks

__all__ = ["GRABCUT_SIDE_PX", "GrabCut", "GrabCutSettings", "cut"]

GRABCUT_SIDE_PX: Final = 384
"""Frames are scaled down to this longer side at most: the cut takes a second at twice that, and is hardly better."""

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GrabCutSettings:
    """Lengths are in pixels of the frame scaled to 512 px on its longer side."""

    sure_px: float = 5.0
    """Radius of the disc around a click whose label is certain."""
    probable_px: float = 36.0
    """Radius around a positive click where a defect is likely."""
    iterations: int = 1
    """More rounds let the colour models drift away from the clicks."""


class GrabCut:
    """Colour models of defect and background, and a cut between them: a click model without training.

    Clicks are discs of certain labels; around positive clicks a defect is likely, elsewhere background is.
    """

    name = "grabcut"

    def __init__(self, settings: GrabCutSettings | None = None) -> None:
        self._settings = settings or GrabCutSettings()
        self._shape = (0, 0)
        self._frame: U8 = np.zeros((0, 0, 3), np.uint8)
        self._clicks: list[Click] = []

    def set_image(self, frame: U8) -> None:
        self._shape = (frame.shape[0], frame.shape[1])
        self._frame = scaled(frame, GRABCUT_SIDE_PX)
        self._clicks = []

    def click(self, y: float, x: float, positive: bool) -> F32:
        self._clicks.append(Click(y, x, positive))
        shape = (self._frame.shape[0], self._frame.shape[1])
        clicks = scaled_clicks(self._clicks, self._shape, shape)
        unit = max(shape) / WORKING_SIDE_PX
        positives = [c for c in clicks if c.positive]
        likely = label_discs(shape, positives, self._settings.probable_px * unit) > 0
        sure = label_discs(shape, clicks, self._settings.sure_px * unit)
        found = cut(self._frame, likely, sure, self._settings.iterations)
        return enlarged(found.astype(np.float32), self._shape)


def cut(frame: U8, likely: Bool, sure: I8, iterations: int) -> Bool:
    """GrabCut's mask, bool ``[h, w]``.

    Args:
        frame: uint8 ``[h, w, 3]``.
        likely: bool ``[h, w]``, where a defect is likely; background is elsewhere.
        sure: int8 ``[h, w]``: +1 certainly a defect, -1 certainly background, 0 open.
        iterations: Rounds of fitting the colour models and cutting.
    """
    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[sure > 0], labels[sure < 0] = cv2.GC_FGD, cv2.GC_BGD
    foreground = _foreground(labels)
    if foreground.all() or not foreground.any():
        return foreground  # GrabCut cannot fit a colour model to no pixels
    cv2.setRNGSeed(0)  # its k-means starts at random
    unused = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(frame, labels, (0, 0, 1, 1), *unused, iterations, cv2.GC_INIT_WITH_MASK)
    return _foreground(labels)


def _foreground(labels: U8) -> Bool:
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
