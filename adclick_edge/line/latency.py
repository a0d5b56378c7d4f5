"""Times of the last answers, for the tallies: rolling percentiles per stage."""

import math
import threading
from array import array
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError

__all__ = ["MAX_STAGES", "TOTAL", "LatencyWindow"]

TOTAL = "total"
MAX_STAGES = 24
"""Stages beyond these are not kept: their names come from bundles and back ends, the memory must stay bounded."""

SHARES = (0.50, 0.95, 0.99)


class _Ring:
    __slots__ = ("added", "values")

    def __init__(self, size: int) -> None:
        self.values = array("f", bytes(4 * size))  # one item is set in a third of the time a numpy array takes
        self.added = 0

    def add(self, value: float) -> None:
        self.values[self.added % len(self.values)] = value
        self.added += 1

    def kept(self) -> npt.NDArray[np.float32]:
        """A copy, in no particular order."""
        return np.frombuffer(self.values, np.float32)[: min(self.added, len(self.values))].copy()


class LatencyWindow:
    """The last ``size`` times of each stage, in milliseconds; thread-safe.

    Memory: 4 bytes per time, at most ``MAX_STAGES`` stages. Raises UsageError for a size below 1.
    """

    def __init__(self, size: int = 2048) -> None:
        if size < 1:
            raise UsageError(f"latency window: size is {size}; it must be 1 or more")
        self._size = size
        self._rings: dict[str, _Ring] = {}
        self._lock = threading.Lock()

    def add(self, stage_ms: Mapping[str, float], total_ms: float) -> None:
        """Note one answer. ``total_ms`` counts as the stage ``total``; times that are not finite are left out."""
        with self._lock:
            for stage, ms in stage_ms.items():
                if stage != TOTAL:
                    self._add(stage, ms)
            self._add(TOTAL, total_ms)

    def snapshot(self) -> dict[str, list[float]]:
        """p50, p95 and p99 of each stage in milliseconds; each is a time that was seen (nearest rank)."""
        with self._lock:
            kept = {stage: ring.kept() for stage, ring in self._rings.items()}
        return {stage: _percentiles(times) for stage, times in sorted(kept.items())}

    def _add(self, stage: str, ms: float) -> None:
        if not math.isfinite(ms):
            return
        ring = self._rings.get(stage)
        if ring is None:
            if stage != TOTAL and len(self._rings) >= MAX_STAGES:
                return
            ring = self._rings[stage] = _Ring(self._size)
        ring.add(ms)


def _percentiles(times: npt.NDArray[np.float32]) -> list[float]:
    ordered = np.sort(times)
    ranks = [max(math.ceil(share * ordered.size), 1) - 1 for share in SHARES]
    return [round(float(ordered[rank]), 3) for rank in ranks]
