"""Printed and engraved text as coverage patches."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["text_cover", "text_line"]

_BASELINE = 110


def _draw(text: str) -> NDArray[np.uint8]:
    """Large text on a canvas: sizes differ between releases of OpenCV, so callers crop and scale what was drawn."""
    canvas = np.zeros((160, 60 * len(text) + 80), np.uint8)
    cv2.putText(canvas, text, (20, _BASELINE), cv2.FONT_HERSHEY_SIMPLEX, 2.4, 255, 5, cv2.LINE_AA)
    return canvas


def text_cover(text: str, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Coverage uint8 ``[height_px, width_px]`` of one line of text whose ink fills the patch."""
    canvas = _draw(text)
    ys, xs = np.nonzero(canvas > 40)
    ink = canvas[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    size = (max(width_px, 2), max(height_px, 2))
    return np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA), np.uint8)


def text_line(text: str, height_px: int) -> NDArray[np.uint8]:
    """Coverage uint8 ``[height_px, w]`` of one line of text with room for tall and hanging letters."""
    canvas = _draw(text)
    columns = np.flatnonzero((canvas > 40).any(axis=0))
    line = canvas[_BASELINE - 62 : _BASELINE + 24, columns[0] : columns[-1] + 1]
    width_px = max(1, round(line.shape[1] * height_px / line.shape[0]))
    return np.asarray(cv2.resize(line, (width_px, height_px), interpolation=cv2.INTER_AREA), np.uint8)
