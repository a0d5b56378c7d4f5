"""Nearest row of a bank for each query, tiled: the definition that graphs and kernels are checked against.

The search space holds, per bank row r with search coordinates s(r): ``[-2 s(r), |s(r)|^2]``; per query q: ``[s(q),
1]``. Their inner product is the squared distance less ``|s(q)|^2``, which does not change which row is nearest, so a
search is one matrix product and one argmin. Ties, that is equal products, go to the lowest row. Coordinates are centred
before they come here: the product is rounded in proportion to their squared length, not to the distance.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["TILE_BYTES", "augment_queries", "augment_rows", "nearest_rows", "nearest_rows_in_blocks"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

TILE_BYTES = 8 << 20
"""Most bytes of query-by-row products that exist at a time."""


def augment_rows(coordinates: F32) -> F32:
    """float32 [M, s] search coordinates of rows -> float32 [M, s + 1] as the search wants them."""
    norms = np.einsum("ms,ms->m", coordinates, coordinates, dtype=np.float64)
    return np.concatenate([-2.0 * coordinates, norms[:, None]], axis=1).astype(np.float32)


def augment_queries(coordinates: F32) -> F32:
    """float32 [Q, s] search coordinates of queries -> float32 [Q, s + 1]."""
    return np.concatenate([coordinates, np.ones((len(coordinates), 1), np.float32)], axis=1)


def nearest_rows(
    queries: F32, search: F32, *, allowed: npt.NDArray[np.bool_] | None = None, tile_bytes: int = TILE_BYTES
) -> I64:
    """Index of the nearest allowed row, int64 [Q].

    ``queries`` float32 [Q, s + 1] and ``search`` float32 [M, s + 1] are augmented (see above); ``allowed`` bool [M]
    leaves rows out (a training image never matches itself). ValueError if no row is left.
    """
    rows = np.arange(len(search)) if allowed is None else np.flatnonzero(allowed)
    if len(rows) == 0:
        raise ValueError("no row of the bank is left to search")
    kept = search if allowed is None else search[rows]
    tile = max(1, tile_bytes // (4 * len(rows)))
    index = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), tile):
        part = queries[start : start + tile]
        index[start : start + len(part)] = rows[(part @ kept.T).argmin(axis=1)]
    return index


def nearest_rows_in_blocks(
    queries: F32, search: F32, order: npt.NDArray[np.int32], candidates: npt.NDArray[np.int32]
) -> I64:
    """Index of the nearest row among each block's candidates, int64 [Q].

    ``order`` int32 [B, q] lists the queries of each block (every query at least once), ``candidates`` int32 [B, m] the
    rows each block may match.
    """
    index = np.zeros(len(queries), np.int64)
    for cells, rows in zip(order, candidates, strict=True):
        index[cells] = rows[(queries[cells] @ search[rows].T).argmin(axis=1)]
    return index
