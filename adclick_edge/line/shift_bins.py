"""Fixed bins for what a shift measures: they never move, so that counts of any two saved shifts can be added.

Counts are sparse, bin number -> frames.
"""

import math
from collections.abc import Mapping
from typing import Final

__all__ = ["add_ms", "add_score", "ms_percentiles", "score_edge"]

_MS_LEAST: Final = 0.05
_MS_PER_OCTAVE: Final = 16
_MS_BINS: Final = 26 * _MS_PER_OCTAVE
"""From 0.05 ms to an hour, each 4.4 % wide."""

_SCORE_PER_UNIT: Final = 16
_SCORE_BIN_LIMIT: Final = 12 * _SCORE_PER_UNIT
"""Bins end at sinh(i / 16): 0.06 wide around 0, 6 % wide far from it, both signs, up to 80 000."""


def add_ms(counts: dict[int, int], ms: float) -> None:
    """Count a time; nothing happens for one that is not finite."""
    if math.isfinite(ms):
        place = math.floor(math.log2(ms / _MS_LEAST) * _MS_PER_OCTAVE) if ms > _MS_LEAST else 0
        place = min(place, _MS_BINS)
        counts[place] = counts.get(place, 0) + 1


def ms_percentiles(counts: Mapping[int, int], shares: tuple[float, ...]) -> tuple[float, ...] | None:
    """The times below which these shares of the frames lie, to within 2.2 %; None without frames."""
    total = sum(counts.values())
    if total == 0:
        return None
    found = []
    for share in shares:
        rank = max(math.ceil(share * total), 1)
        seen = 0
        for place in sorted(counts):
            seen += counts[place]
            if seen >= rank:
                found.append(_MS_LEAST * 2.0 ** ((place + 0.5) / _MS_PER_OCTAVE))
                break
    return tuple(found)


def add_score(counts: dict[int, int], score: float) -> None:
    """Count a raw score; nothing happens for one that is not finite."""
    if math.isfinite(score):
        place = math.floor(math.asinh(score) * _SCORE_PER_UNIT)
        place = max(-_SCORE_BIN_LIMIT, min(place, _SCORE_BIN_LIMIT - 1))
        counts[place] = counts.get(place, 0) + 1


def score_edge(place: int) -> float:
    """Where bin ``place`` begins and the one before ends."""
    return math.sinh(place / _SCORE_PER_UNIT)
