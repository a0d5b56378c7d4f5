"""Metrics of a ranking: average precision, area under the ROC curve, best F1.

They work on counts per distinct score, so frames and pixels share them and ties are handled in one place: equal scores
are accepted or refused together, as scikit-learn has it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Ranking", "average_precision", "best_f1", "best_iou", "rank", "rank_counts", "roc_area"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """What ``score >= threshold`` accepts, for each distinct score from the highest down; all arrays are ``[T]``.

    Attributes:
        thresholds: Distinct scores, descending.
        hits: Defective items accepted at each threshold; the last element is their number.
        false_alarms: Normal items accepted at each threshold; the last element is their number.
    """

    thresholds: F64
    hits: F64
    false_alarms: F64

    @property
    def defects(self) -> float:
        return float(self.hits[-1]) if self.hits.size else 0.0

    @property
    def normals(self) -> float:
        return float(self.false_alarms[-1]) if self.false_alarms.size else 0.0

    def recall(self) -> F64:
        return self.hits / self.defects

    def precision(self) -> F64:
        return self.hits / (self.hits + self.false_alarms)

    def false_alarm_rate(self) -> F64:
        return self.false_alarms / self.normals


def rank_counts(ascending: npt.NDArray[np.floating], normal: F64, defective: F64) -> Ranking:
    """Rank items counted per distinct score: the ``normal`` and ``defective`` ones at each of ``ascending`` ``[T]``."""
    return Ranking(
        thresholds=ascending[::-1].astype(np.float64),
        hits=np.cumsum(defective[::-1]),
        false_alarms=np.cumsum(normal[::-1]),
    )


def rank(scores: npt.NDArray[np.floating], defective: npt.NDArray[np.bool_]) -> Ranking:
    """Rank single items: ``scores`` ``[n]``, finite, and whether each is ``defective`` ``[n]``."""
    distinct, where = np.unique(scores, return_inverse=True)
    defect_counts = np.bincount(where[defective], minlength=distinct.size).astype(np.float64)
    counts = np.bincount(where, minlength=distinct.size).astype(np.float64)
    return rank_counts(distinct, counts - defect_counts, defect_counts)


def average_precision(ranking: Ranking) -> float:
    """Return the sum over thresholds of precision times the gain in recall (no interpolation)."""
    return float(np.sum(np.diff(ranking.recall(), prepend=0.0) * ranking.precision()))


def roc_area(ranking: Ranking) -> float:
    """Return the chance that a defective item scores above a normal one, a tie counting half."""
    hits = np.concatenate(([0.0], ranking.hits))
    false_alarms = np.concatenate(([0.0], ranking.false_alarms))
    return float(np.trapezoid(hits, false_alarms) / (ranking.defects * ranking.normals))


def best_f1(ranking: Ranking) -> tuple[float, float]:
    """Return the highest F1 over all thresholds, and the highest threshold that reaches it."""
    f1 = 2 * ranking.hits / (ranking.hits + ranking.false_alarms + ranking.defects)
    best = int(np.argmax(f1))
    return float(f1[best]), float(ranking.thresholds[best])


def best_iou(ranking: Ranking) -> float:
    """Return the highest intersection over union of accepted and defective items over all thresholds."""
    return float(np.max(ranking.hits / (ranking.false_alarms + ranking.defects)))
