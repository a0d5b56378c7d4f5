"""Greedy k-centre coreset over a stream of feature rows, in memory bounded by the rows asked for.

Greedy k-centre (Gonzalez 1985; PatchCore section 3.2; method section 1.4) keeps the row farthest from all kept rows,
again and again. Here rows arrive image by image: those that the kept rows already cover as closely as they cover each
other are dropped at once (one matrix product), the rest wait in a buffer of bounded size, and when it is full the
greedy choice is made anew over kept and waiting rows. Memory does not depend on the number of images.

Measured on three sets of 100 images x 1024 cells x 128 dims, 2000 rows kept: the cover radius is 1.06 to 1.17 times
that of the greedy choice over all rows at once, in a seventh to a quarter of its time. Dropping only within half the
radius, or hardly at all, makes two to three times as many choices and moves the radius by 5 % at most, either way.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["StreamingCoreset", "greedy_k_centre"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_ROUNDING = 1e-6
"""Squared distances this small against the largest squared length are taken for 0: copies differ by no more."""


def greedy_k_centre(points: F32, k: int, *, first: int = 0) -> tuple[I64, float]:
    """Choose ``k`` of ``points`` (float32 [n, s]).

    Returns their indices (int64 [min(k, n)], in the order chosen, beginning with ``first``) and the squared cover
    radius: the largest squared distance of any point to its nearest chosen one. Stops early when every point is
    covered, as far as float32 can tell.
    """
    n = len(points)
    # Squared distances come from |a|^2 - 2 a.b + |b|^2: centre, or a common offset drowns them in rounding.
    points = points - points.mean(axis=0)
    norms = np.einsum("ns,ns->n", points, points)
    chosen = np.empty(min(k, n), np.int64)
    nearest = np.full(n, np.inf, np.float32)
    covered = float(_ROUNDING * norms.max(initial=0.0))
    pick = first
    for i in range(len(chosen)):
        chosen[i] = pick
        nearest = np.minimum(nearest, norms - 2.0 * (points @ points[pick]) + norms[pick])
        nearest[pick] = 0.0
        pick = int(nearest.argmax())
        if nearest[pick] <= covered:
            return chosen[: i + 1], 0.0
    return chosen, float(nearest[pick])


class StreamingCoreset:
    """Feed rows with `add`, take the chosen ones with `result`.

    Each row is a coordinate vector (float32 [s], what distances are measured in) and a payload (any array row that
    travels with it). Held between calls: at most ``rows + buffer_rows`` rows; twice that and the rows of one call while
    a choice is made.
    """

    def __init__(self, rows: int, *, buffer_rows: int | None = None) -> None:
        if rows < 1:
            raise ValueError(f"a coreset needs at least 1 row, not {rows}")
        self.rows = rows
        self.buffer_rows = max(rows, 16384) if buffer_rows is None else buffer_rows
        self.seen = 0
        self._kept: list[npt.NDArray[np.generic]] = []
        self._waiting: list[list[npt.NDArray[np.generic]]] = []
        self._waiting_rows = 0
        self._cover = 0.0

    def add(self, coordinates: F32, *payload: npt.NDArray[np.generic]) -> None:
        """Offer rows: ``coordinates`` float32 [n, s], each payload [n, ...]."""
        self.seen += len(coordinates)
        arrays: list[npt.NDArray[np.generic]] = [coordinates, *payload]
        if self._kept and len(self._kept[0]) >= self.rows:
            far = self._squared_distance_to_kept(coordinates) > self._cover
            arrays = [a[far] for a in arrays]
        if len(arrays[0]) == 0:
            return
        self._waiting.append([a.copy() for a in arrays])
        self._waiting_rows += len(arrays[0])
        if self._waiting_rows >= self.buffer_rows:
            self._choose()

    def result(self) -> tuple[npt.NDArray[np.generic], ...]:
        """The chosen coordinates and payloads, at most ``rows`` of each."""
        if self._waiting_rows:
            self._choose()
        if not self._kept:
            raise ValueError("no rows were added")
        return tuple(self._kept)

    def _choose(self) -> None:
        parts = ([self._kept] if self._kept else []) + self._waiting
        pool = [np.concatenate([p[i] for p in parts]) for i in range(len(parts[0]))]
        chosen, self._cover = greedy_k_centre(np.ascontiguousarray(pool[0], dtype=np.float32), self.rows)
        self._kept = [a[chosen] for a in pool]
        self._waiting, self._waiting_rows = [], 0

    def _squared_distance_to_kept(self, coordinates: F32) -> F32:
        kept: F32 = self._kept[0].astype(np.float32, copy=False)
        centre = kept.mean(axis=0)
        kept, coordinates = kept - centre, coordinates - centre
        kept_norms = np.einsum("ms,ms->m", kept, kept)
        norms = np.einsum("ns,ns->n", coordinates, coordinates)
        out = np.empty(len(coordinates), np.float32)
        tile = max(1, (16 << 20) // (4 * len(kept)))
        for start in range(0, len(coordinates), tile):
            part = coordinates[start : start + tile]
            out[start : start + tile] = (kept_norms - 2.0 * (part @ kept.T)).min(axis=1)
        out += norms
        return out
