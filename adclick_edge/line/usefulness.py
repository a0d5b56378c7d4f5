"""How useful an operator's answer on a frame would be, from 0 to 1: what the waiting candidates are sorted by."""

import math

import numpy as np
import numpy.typing as npt

from adclick_edge.runtime.decision import FrameVerdict

__all__ = ["closeness", "region_size", "usefulness"]

EDGE_CLOSENESS = 0.25
"""Closeness of a score at either threshold; the middle between them has 1."""
UNKNOWN = 0.5
"""Stands for closeness and size where there are no thresholds to be close to."""
FULL_SHARE = 0.05
"""Share of the inspected map from which on an uncertain region counts as large as any."""
_BASE, _SIZE, _NOVELTY = 0.3, 0.2, 0.5


def closeness(verdict: FrameVerdict) -> float:
    """1 in the middle of the uncertain band, ``EDGE_CLOSENESS`` at its edges, falling on towards 0 outside."""
    if verdict.score is None or verdict.lower is None or verdict.upper is None:
        return UNKNOWN
    half_width = (verdict.upper - verdict.lower) / 2
    away = abs(verdict.score - (verdict.lower + half_width))
    if half_width <= 0:
        return 1.0 if away == 0 else 0.0
    return 1 / (1 + (1 / EDGE_CLOSENESS - 1) * away / half_width)


def region_size(
    anomaly_map: npt.NDArray[np.float32], lower: float | None, valid: npt.NDArray[np.bool_] | None = None
) -> float:
    """Share of the map f32 [h4, w4], where ``valid`` is set, at or above ``lower``: 0, rising to 1 at ``FULL_SHARE``."""
    if lower is None:
        return UNKNOWN
    above = anomaly_map >= np.float64(lower)
    cells = above.size if valid is None else int(np.count_nonzero(valid))
    if valid is not None:
        above &= valid
    return min(1.0, math.sqrt(int(np.count_nonzero(above)) / max(cells, 1) / FULL_SHARE))


def usefulness(close: float, size: float, likeness: float) -> float:
    """At most ``close``; ``likeness`` (0..1) is the highest to what operators were given lately."""
    return close * (_BASE + _SIZE * size + _NOVELTY * (1 - likeness))
