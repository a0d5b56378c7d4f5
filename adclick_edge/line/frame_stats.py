"""Light, focus and position of a frame, measured in a fraction of a millisecond."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import LineError

__all__ = ["LARGEST_SHIFT", "SMALL_SIDE", "FrameStats", "band", "locate", "measure"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

SMALL_SIDE = 64
_REACH = 8
LARGEST_SHIFT = _REACH / SMALL_SIDE
"""As a fraction of the frame: what lies further away is not found."""
_FOCUS_SIDE = 512


@dataclass(frozen=True, eq=False)
class FrameStats:
    light: float
    """Mean luminance in grey levels, 0..255."""
    focus: float
    """Energy of the finest structure over that of the next coarser one: falls with blur, whatever the contrast."""
    small: U8
    """Grey [SMALL_SIDE, SMALL_SIDE], to find the position with."""


def measure(frame: U8) -> FrameStats:
    """Of a frame uint8 [h, w, 3] RGB, at the input size of the network (of large ones, focus is that of the middle)."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or min(frame.shape) < 3:
        raise LineError(
            f"a frame of {frame.dtype} {list(frame.shape)}; expected uint8 [h, w, 3] of 3 x 3 pixels or more"
        )
    small = cv2.cvtColor(cv2.resize(frame, (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    height, width = frame.shape[:2]
    top, left = max(0, height - _FOCUS_SIDE) // 2, max(0, width - _FOCUS_SIDE) // 2
    grey = cv2.cvtColor(frame[top : top + _FOCUS_SIDE, left : left + _FOCUS_SIDE], cv2.COLOR_RGB2GRAY)
    # A Laplacian alone doubles with the sensor's noise; smoothed, it hardly notices it.
    fine = _energy(cv2.Laplacian(cv2.GaussianBlur(grey, (3, 3), 0), cv2.CV_16S))
    coarse = _energy(cv2.Sobel(grey, cv2.CV_16S, 1, 0)) + _energy(cv2.Sobel(grey, cv2.CV_16S, 0, 1))
    return FrameStats(light=float(cv2.mean(small)[0]), focus=fine / (coarse + 1), small=np.asarray(small, np.uint8))


def band(small: U8) -> F32:
    """The structure of a small grey picture that positions are found by: free of noise and of uneven light."""
    levels = small.astype(np.float32)
    smooth = cv2.GaussianBlur(levels, (0, 0), 0.7)
    return np.asarray(smooth - cv2.GaussianBlur(levels, (0, 0), 6.0), np.float32)


def locate(reference: F32, seen: F32) -> tuple[float, float, float]:
    """(x, y, match): how far ``seen`` is moved right and down of ``reference``, both from `band`, as fractions of the
    frame up to ``LARGEST_SHIFT``, and their correlation there, -1..1.

    By correlation of grey structure rather than of phase: phases weigh all frequencies alike, and between two parts that
    differ as good parts do, the many fine ones disagree.
    """
    core = reference[_REACH:-_REACH, _REACH:-_REACH]
    found = cv2.matchTemplate(seen, core, cv2.TM_CCOEFF_NORMED)
    _, match, _, (column, row) = cv2.minMaxLoc(found)
    x, y = column - _REACH + _vertex(found[row, :], column), row - _REACH + _vertex(found[:, column], row)
    return x / SMALL_SIDE, y / SMALL_SIDE, float(match)


def _vertex(values: npt.NDArray[np.generic], peak: int) -> float:
    """Where between the cells the parabola through the peak and its neighbours is highest."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, at, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * at + after
    return (before - after) / (2 * bend) if bend < 0 else 0.0


def _energy(values: cv2.typing.MatLike) -> float:
    return float(cv2.norm(values, cv2.NORM_L2SQR))
