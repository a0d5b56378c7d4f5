"""From a map to a verdict. Nothing is ok by default: only a finite score below a calibrated threshold is."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import cv2
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from adclick_edge.errors import UsageError
from adclick_edge.runtime.calibration import Calibration
from adclick_edge.runtime.regions import masked_score

__all__ = [
    "MAX_BLOBS",
    "Blob",
    "FrameVerdict",
    "Reason",
    "Verdict",
    "decide",
    "find_regions",
    "judge",
    "not_inspected",
]

Verdict = Literal["ok", "ng", "uncertain", "not_inspected"]
Reason = Literal["bad_frame", "engine_error", "uncalibrated", "overload", "deadline", "shutdown"]

MAX_BLOBS = 20

Count = Annotated[int, Meta(ge=0)]
Length = Annotated[int, Meta(ge=1)]


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A connected part of a map at or above a threshold: its box and area in pixels, and its largest value."""

    left: Count
    top: Count
    width: Length
    height: Length
    area: float
    peak: float


class FrameVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said about one frame.

    ``frame`` is its id or path. ``score``, ``lower`` and ``upper`` are None where there is none to state; so is
    ``bundle_version`` where no bundle was reached. ``regions`` holds the strongest ``MAX_BLOBS`` of ``regions_found``
    blobs at or above ``lower``. ``reason`` is given exactly where the score and the thresholds do not explain the
    verdict.
    """

    frame: str
    verdict: Verdict
    reason: Reason | None = None
    score: float | None = None
    lower: float | None = None
    upper: float | None = None
    bundle_version: str | None = None
    stage_ms: dict[str, float] = {}
    regions: tuple[Blob, ...] = ()
    regions_found: Count = 0

    def __post_init__(self) -> None:
        allowed = {
            "ok": (None,),
            "ng": (None,),
            "uncertain": (None, "uncalibrated"),
            "not_inspected": ("bad_frame", "engine_error", "overload", "deadline", "shutdown"),
        }[self.verdict]
        if self.reason not in allowed:
            raise ValueError(f"frame {self.frame!r}: verdict {self.verdict!r} cannot have the reason {self.reason!r}")
        if self.reason is None and None in (self.score, self.lower, self.upper):
            raise ValueError(f"frame {self.frame!r}: verdict {self.verdict!r} needs a score and both thresholds")


def decide(score: float, calibration: Calibration | None) -> Verdict:
    """The verdict on a raw score.

    ``score >= upper`` is ng, ``score < lower`` is ok, between is uncertain. Without a calibration every score is
    uncertain, never ok. A score that is not finite is no score: not inspected.
    """
    if not math.isfinite(score):
        return "not_inspected"
    if calibration is None:
        return "uncertain"
    if score >= calibration.upper:
        return "ng"
    return "ok" if score < calibration.lower else "uncertain"


def judge(
    anomaly_map: NDArray[np.float32],
    calibration: Calibration | None,
    *,
    frame: str,
    bundle_version: str,
    valid: NDArray[np.bool_] | None = None,
    frame_shape: tuple[int, int] | None = None,
    stage_ms: Mapping[str, float] | None = None,
    min_area: float = 1.0,
) -> FrameVerdict:
    """The verdict on the map f32 [h,w] of one frame; the score is its maximum where ``valid``, bool [h,w], is set.

    ``frame_shape`` (H, W) puts the blobs' boxes and areas, ``min_area`` with them, in pixels of the frame rather than
    of the map. ``min_area`` thins out the blobs listed; it never changes the verdict. A map with a NaN or an infinity
    where it counts is not inspected, with the reason ``engine_error``.

    Raises UsageError for shapes that do not fit and for a ``valid`` without a cell.
    """
    score = masked_score(anomaly_map, valid)
    verdict = decide(score, calibration)
    if verdict == "not_inspected":
        return not_inspected("engine_error", frame=frame, bundle_version=bundle_version, stage_ms=stage_ms)
    blobs: tuple[Blob, ...] = ()
    found = 0
    if calibration is not None and verdict != "ok":
        blobs, found = find_regions(anomaly_map, calibration.lower, min_area, valid=valid, frame_shape=frame_shape)
    return FrameVerdict(
        frame=frame,
        verdict=verdict,
        reason="uncalibrated" if calibration is None else None,
        score=score,
        lower=None if calibration is None else calibration.lower,
        upper=None if calibration is None else calibration.upper,
        bundle_version=bundle_version,
        stage_ms=dict(stage_ms or {}),
        regions=blobs,
        regions_found=found,
    )


def not_inspected(
    reason: Reason,
    *,
    frame: str,
    bundle_version: str | None = None,
    stage_ms: Mapping[str, float] | None = None,
) -> FrameVerdict:
    """The verdict on a frame that was not judged, with its reason."""
    return FrameVerdict(
        frame=frame,
        verdict="not_inspected",
        reason=reason,
        bundle_version=bundle_version,
        stage_ms=dict(stage_ms or {}),
    )


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold: float,
    min_area: float = 1.0,
    *,
    valid: NDArray[np.bool_] | None = None,
    frame_shape: tuple[int, int] | None = None,
    max_blobs: int = MAX_BLOBS,
) -> tuple[tuple[Blob, ...], int]:
    """Connected parts (by edge or corner) of the map f32 [h,w] at or above ``threshold``, highest peak first.

    Returns the first ``max_blobs`` of those with at least ``min_area`` pixels, and how many there were. Pixels are
    those of the map, or of the frame where ``frame_shape`` (H, W) is given: boxes then cover all frame pixels that a
    cell touches. Raises UsageError for a map that is not [h,w] and a mask of another shape.
    """
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise UsageError(f"the map has shape {anomaly_map.shape}; expected [h,w]")
    above = anomaly_map >= np.float64(threshold)  # a Python float would be rounded to f32 first
    if valid is not None:
        if valid.shape != anomaly_map.shape:
            raise UsageError(f"the map has shape {anomaly_map.shape}, its valid mask {valid.shape}")
        above &= valid
    count, found, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    labels = found.astype(np.intp, copy=False)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[above], anomaly_map[above])
    height, width = anomaly_map.shape
    rows, columns = frame_shape or (height, width)
    cell_area = rows * columns / (height * width)
    areas = stats[:, cv2.CC_STAT_AREA] * cell_area
    kept = np.flatnonzero(areas >= min_area)
    kept = kept[kept != 0]  # label 0 is the background
    strongest = kept[np.argsort(-peaks[kept], kind="stable")][:max_blobs]
    blobs = []
    for label in strongest.tolist():
        left, top, box_width, box_height = (int(value) for value in stats[label, :4])
        x0, x1 = _span(left, box_width, columns, width)
        y0, y1 = _span(top, box_height, rows, height)
        blobs.append(Blob(x0, y0, x1 - x0, y1 - y0, float(areas[label]), float(peaks[label])))
    return tuple(blobs), int(kept.size)


def _span(start: int, length: int, pixels: int, cells: int) -> tuple[int, int]:
    """First pixel and end of the pixels that cells ``start`` to ``start + length`` touch."""
    return start * pixels // cells, -(-(start + length) * pixels // cells)
