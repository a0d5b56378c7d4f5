"""Printed and engraved text as coverage patches."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["text_cover"]


def text_cover(text: str, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Coverage uint8 ``[height_px, width_px]`` of one line of text that fills the patch.

    Drawn large, cropped to its ink and scaled to the patch, because text sizes differ between releases of OpenCV.
    """
    canvas = np.zeros((160, 60 * len(text) + 80), np.uint8)
    cv2.putText(canvas, text, (20, 110), cv2.FONT_HERSHEY_SIMPLEX, 2.4, 255, 5, cv2.LINE_AA)
    ys, xs = np.nonzero(canvas > 40)
    ink = canvas[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    size = (max(width_px, 2), max(height_px, 2))
    return np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA), np.uint8)
