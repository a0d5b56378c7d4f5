"""Curves of an inspection run, thinned out for plots, and the histogram of its frame scores."""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.evaluation.inspection import InspectionMetrics
from adclick_edge.evaluation.ranking import Ranking

__all__ = ["MAX_POINTS", "Curve", "Curves", "ScoreHistogram", "curves"]

MAX_POINTS: Final = 500
SCORE_BINS: Final = 40

F64 = npt.NDArray[np.float64]


class Curve(msgspec.Struct, frozen=True):
    """Points of a curve in order of falling threshold; ``x``, ``y`` and ``threshold`` have the same length."""

    x: list[float]
    y: list[float]
    threshold: list[float]


class ScoreHistogram(msgspec.Struct, frozen=True):
    """Frames per bin of the score: ``edges`` has one element more than ``normal`` and ``defective``."""

    edges: list[float]
    normal: list[int]
    defective: list[int]


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """All curves of a run; ``None`` where the metric under it is undefined.

    Attributes:
        pixel_pr: Precision over recall of pixels.
        pixel_roc: Recall over false-positive rate of pixels.
        pro: Mean overlap of regions over false-positive rate of pixels, over the whole range.
        image_pr: Precision over recall of frames.
        image_roc: Recall over false-positive rate of frames.
        scores: Histogram of the frame scores, ``None`` without frames.
    """

    pixel_pr: Curve | None
    pixel_roc: Curve | None
    pro: Curve | None
    image_pr: Curve | None
    image_roc: Curve | None
    scores: ScoreHistogram | None


def curves(metrics: InspectionMetrics, *, max_points: int = MAX_POINTS) -> Curves:
    """Return the curves of all frames added to ``metrics``, each of at most ``max_points`` (at least 2) points."""
    pixels, overlap = metrics.pixel_ranking()
    frames = metrics.image_ranking()
    pixel_pr, pixel_roc = _precision_recall(pixels, max_points), _roc(pixels, max_points)
    pro = None
    if pixel_roc is not None:
        pro = _thin(pixels.false_alarm_rate(), overlap, pixels.thresholds, max_points)
    return Curves(
        pixel_pr=pixel_pr,
        pixel_roc=pixel_roc,
        pro=pro,
        image_pr=_precision_recall(frames, max_points),
        image_roc=_roc(frames, max_points),
        scores=_score_histogram(metrics),
    )


def _precision_recall(ranking: Ranking, max_points: int) -> Curve | None:
    if not (ranking.defects and ranking.normals):
        return None
    return _thin(ranking.recall(), ranking.precision(), ranking.thresholds, max_points)


def _roc(ranking: Ranking, max_points: int) -> Curve | None:
    if not (ranking.defects and ranking.normals):
        return None
    return _thin(ranking.false_alarm_rate(), ranking.recall(), ranking.thresholds, max_points)


def _thin(x: F64, y: F64, threshold: F64, max_points: int) -> Curve:
    """Keep both ends and points evenly spaced along the curve, so that steep parts stay steep."""
    keep = np.arange(x.size)
    if x.size > max_points:
        length = np.concatenate(([0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))))
        keep = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], max_points - 1)))
        keep = np.union1d(np.minimum(keep, x.size - 1), [x.size - 1])
    return Curve(x=x[keep].tolist(), y=y[keep].tolist(), threshold=threshold[keep].tolist())


def _score_histogram(metrics: InspectionMetrics) -> ScoreHistogram | None:
    normal, defective = metrics.frame_scores(defective=False), metrics.frame_scores(defective=True)
    everything = np.concatenate([normal, defective])
    if not everything.size:
        return None
    edges = np.histogram_bin_edges(everything, bins=SCORE_BINS)
    return ScoreHistogram(
        edges=edges.tolist(),
        normal=np.histogram(normal, bins=edges)[0].tolist(),
        defective=np.histogram(defective, bins=edges)[0].tolist(),
    )
