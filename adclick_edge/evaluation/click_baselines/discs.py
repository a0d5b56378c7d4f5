"""Clicks as discs of labelled pixels."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.data.resize import fit

__all__ = ["WORKING_SIDE_PX", "enlarged", "label_discs", "scaled", "scaled_clicks"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]

WORKING_SIDE_PX: Final = 512
"""Lengths in the settings of the baselines are in pixels of a frame of this longer side."""


def scaled(frame: U8, longest_px: int) -> U8:
    """``frame`` with its longer side brought down to ``longest_px``; a smaller one as it is."""
    ratio = min(1.0, longest_px / max(frame.shape[:2]))
    return fit(frame, (max(1, round(frame.shape[0] * ratio)), max(1, round(frame.shape[1] * ratio))))


def scaled_clicks(clicks: Sequence[Click], source: tuple[int, int], target: tuple[int, int]) -> list[Click]:
    """Clicks on a frame of ``source`` (height, width) as clicks on the same frame scaled to ``target``."""
    ratio_y, ratio_x = target[0] / source[0], target[1] / source[1]
    return [Click((c.y + 0.5) * ratio_y - 0.5, (c.x + 0.5) * ratio_x - 0.5, c.positive) for c in clicks]


def label_discs(shape: tuple[int, int], clicks: Sequence[Click], radius_px: float) -> I8:
    """int8 ``[h, w]``: +1 within ``radius_px`` of a positive click, -1 of a negative one, 0 elsewhere.

    Where discs meet, each pixel is that of the nearest click, so that a later click never erases an earlier one.
    """
    labels = np.zeros(shape, np.int8)
    nearest = np.full(shape, np.inf, np.float32)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for click in clicks:
        squared = ((rows - click.y) ** 2 + (columns - click.x) ** 2).astype(np.float32)
        # A disc smaller than a pixel still marks the one clicked.
        squared[min(max(round(click.y), 0), shape[0] - 1), min(max(round(click.x), 0), shape[1] - 1)] = 0
        own = (squared <= radius_px**2) & (squared < nearest)
        labels[own] = 1 if click.positive else -1
        nearest[own] = squared[own]
    return labels


def enlarged(planes: F32, shape: tuple[int, int]) -> F32:
    """``planes`` (float32 ``[h, w]`` or ``[h, w, C]``) at ``shape`` (height, width), bilinear."""
    if planes.shape[:2] == shape:
        return planes
    return cv2.resize(planes, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR).astype(np.float32)
