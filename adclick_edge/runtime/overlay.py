"""A frame with its anomaly map laid over it: for a person to look at, never an input to a verdict."""

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError

__all__ = ["CONTOUR_RGB", "TRUTH_RGB", "draw_overlay"]

CONTOUR_RGB: Final = (255, 255, 255)
TRUTH_RGB: Final = (0, 229, 160)

_EDGE_RGB: Final = (16, 16, 24)  # dark rim that keeps a line readable on any background
_FAINTEST: Final = 0.25  # opacity of the heat just above `low`
_STRONGEST: Final = 0.7  # the defect must still be seen through the hottest colour
_DIMMED: Final = 0.6  # brightness left where nothing is inspected
_CONTOUR_HEAT: Final = 0.75  # place of `high` on the colour scale, so that the worst spots stand out above it

U8 = npt.NDArray[np.uint8]


def draw_overlay(
    frame: U8,
    anomaly_map: npt.NDArray[np.float32],
    *,
    low: float,
    high: float,
    mask: npt.NDArray[np.bool_] | None = None,
    valid: npt.NDArray[np.bool_] | None = None,
) -> U8:
    """Blend the map over the frame where it exceeds ``low``, and outline where it reaches ``high``.

    Colours run from dark purple at ``low`` over orange at ``high`` to yellow; the scale is fixed by the two values
    and not by the frame, so overlays can be compared with each other.

    Args:
        frame: uint8 RGB ``[H, W, 3]``.
        anomaly_map: float32 ``[h, w]``, raw; resized to the frame (bilinear).
        low: Map value below which the frame shows untouched.
        high: Map value outlined in white; above ``low``.
        mask: bool ``[H, W]``, the true defect, outlined in green.
        valid: bool ``[h, w]``, the cells of the map that are inspected; elsewhere the frame is dimmed and nothing else
            is drawn of the map. None: all are.

    Returns:
        uint8 RGB ``[H, W, 3]``, a new array.

    Raises:
        UsageError: A shape or dtype is wrong, or ``low`` and ``high`` are not finite and ascending.
    """
    _check(frame, anomaly_map, low, high, mask, valid)
    height, width = frame.shape[:2]
    # A map may hold infinities or NaN where nothing is inspected: interpolation would spread them.
    scaled = np.clip((anomaly_map.astype(np.float64) - low) / (high - low), -4.0, 4.0).astype(np.float32)
    scaled = np.nan_to_num(scaled, nan=-4.0)
    if valid is not None:
        # Before the interpolation, which would carry heat from outside over the border of the region.
        scaled = np.where(valid, scaled, np.minimum(scaled, np.float32(0)))
    resized = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
    if valid is not None:
        shown = cv2.resize(valid.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(np.bool_)
        resized = np.where(shown, resized, np.float32(-4))
        frame = np.where(shown[..., None], frame, np.rint(frame * _DIMMED)).astype(np.uint8)
    heat = np.clip(resized * np.float32(_CONTOUR_HEAT), 0.0, 1.0)
    opacity = np.where(heat > 0, _FAINTEST + (_STRONGEST - _FAINTEST) * heat, 0.0)[..., None].astype(np.float32)
    colours = _colormap()[(heat * 255).astype(np.uint8)]
    drawn: U8 = np.rint(frame * (1 - opacity) + colours * opacity).astype(np.uint8)
    thickness = max(2, round(max(height, width) / 350))
    if mask is not None:
        _outline(drawn, mask, TRUTH_RGB, thickness)
    _outline(drawn, resized >= 1, CONTOUR_RGB, thickness)
    return drawn


def _check(
    frame: U8,
    anomaly_map: npt.NDArray[np.float32],
    low: float,
    high: float,
    mask: npt.NDArray[np.bool_] | None,
    valid: npt.NDArray[np.bool_] | None,
) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise UsageError(f"overlay: the frame is {frame.dtype} {list(frame.shape)}; pass uint8 RGB [H, W, 3]")
    if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32 or not anomaly_map.size:
        raise UsageError(f"overlay: the map is {anomaly_map.dtype} {list(anomaly_map.shape)}; pass float32 [h, w]")
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != frame.shape[:2]):
        raise UsageError(
            f"overlay: the mask is {mask.dtype} {list(mask.shape)}; pass bool {list(frame.shape[:2])}, as the frame"
        )
    if valid is not None and (valid.dtype != np.bool_ or valid.shape != anomaly_map.shape):
        raise UsageError(
            f"overlay: valid is {valid.dtype} {list(valid.shape)}; pass bool {list(anomaly_map.shape)}, as the map"
        )
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(f"overlay: low is {low} and high is {high}; pass two finite values of the map, low < high")


def _outline(drawn: U8, area: npt.NDArray[np.bool_], colour: tuple[int, int, int], thickness: int) -> None:
    contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, _EDGE_RGB, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, colour, thickness, cv2.LINE_AA)


@lru_cache(maxsize=1)
def _colormap() -> U8:
    """Return 256 RGB colours: the inferno map without its black end, which would look like a shadow on the part."""
    shades = np.rint(np.linspace(70, 225, 256)).astype(np.uint8).reshape(-1, 1)
    bgr = cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO).reshape(256, 3)
    return bgr[:, ::-1].astype(np.uint8)
