"""Where a cell lies: a code added to the features (method 1.3), and the hard window that replaces it on aligned parts.

Cells are numbered row by row: cell ``y * width + x`` of a ``height x width`` grid. Positions are in cells.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError

__all__ = ["cell_slots", "position_code", "query_order", "window_candidates", "window_counts"]

# Longest wavelength over shortest; the shortest is 2 pi cells, so the code tells a cell from its neighbours about
# three cells away and hardly changes beyond.
_WAVELENGTH_RATIO = 10_000.0


def position_code(height: int, width: int, dims: int) -> npt.NDArray[np.float32]:
    """The 2-D sin-cos code of every cell, float32 [height * width, dims], values in -1..1 (method 1.3).

    Coordinates are in cells, not normalised, so the code of a cell does not depend on the size of the grid. The four
    quarters of a row are sin and cos of y, then sin and cos of x, each at ``dims // 4`` frequencies falling
    geometrically from 1 radian per cell; the last ``dims % 4`` values are 0.

    The caller scales it (0.03 for textures, 0.15 for aligned objects) and adds it to the features.

    Raises UsageError for an empty grid or fewer than 4 dims.
    """
    _check_sizes(height=height, width=width)
    quarter = dims // 4
    if quarter < 1:
        raise UsageError(f"position code: dims is {dims}; give at least 4, two for each of y and x")
    frequency = _WAVELENGTH_RATIO ** -(np.arange(quarter) / quarter)  # radians per cell
    y = np.arange(height)[:, None] * frequency  # [height, quarter]
    x = np.arange(width)[:, None] * frequency  # [width, quarter]
    code = np.zeros((height, width, dims), np.float32)
    code[..., :quarter] = np.sin(y)[:, None]
    code[..., quarter : 2 * quarter] = np.cos(y)[:, None]
    code[..., 2 * quarter : 3 * quarter] = np.sin(x)
    code[..., 3 * quarter : 4 * quarter] = np.cos(x)
    return code.reshape(height * width, dims)


def query_order(height: int, width: int, block: int = 8) -> npt.NDArray[np.int32]:
    """The cells of each square block of the grid, int32 [B, q], B blocks row by row.

    ``q = min(block, height) * min(block, width)``. A block that reaches over the edge of the grid repeats the cells of
    its last row or column, so that all blocks are of one size; every cell stands in exactly one block.

    Raises UsageError for a size below 1.
    """
    ys, xs = _block_axis(height, block), _block_axis(width, block)  # [By, qy], [Bx, qx]
    cells = ys[:, None, :, None] * width + xs[None, :, None, :]  # [By, Bx, qy, qx]
    return np.ascontiguousarray(cells.reshape(len(ys) * len(xs), -1), dtype=np.int32)


def cell_slots(order: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The way back from ``query_order``: int32 [height * width], for each cell its first place in ``order.ravel()``.

    ``values[cell_slots(order)]`` puts per-query values ``[B * q, ...]`` back in the order of the cells.
    """
    _, slots = np.unique(order, return_index=True)
    return slots.astype(np.int32)


def window_candidates(
    row_cell: npt.NDArray[np.int32], height: int, width: int, block: int = 8, radius: int = 3
) -> npt.NDArray[np.int32]:
    """The rows of the bank that each block of ``query_order`` is compared with, int32 [B, m], ascending per block.

    ``row_cell`` is int32 [M, 2], (y, x) of the cell that each row of the bank came from. A row is a candidate when it
    lies within ``radius`` cells of the block's extent in both directions. A block without a single such row takes the
    rows nearest to it instead, so none is empty; ``window_counts`` tells which. ``m`` is the largest number of any
    block, and shorter lists repeat their first row, which cannot change a minimum.

    Raises UsageError for an empty bank, a wrong shape or a row outside the grid.
    """
    rows = [
        np.flatnonzero(distance <= max(radius, int(distance.min())))
        for distance in _row_distances(row_cell, height, width, block, radius)
    ]
    candidates = np.empty((len(rows), max(map(len, rows))), np.int32)
    for line, found in zip(candidates, rows, strict=True):
        line[: len(found)] = found
        line[len(found) :] = found[0]
    return candidates


def window_counts(
    row_cell: npt.NDArray[np.int32], height: int, width: int, block: int = 8, radius: int = 3
) -> npt.NDArray[np.int32]:
    """How many rows lie in the window of each block, int32 [B]; 0 where ``window_candidates`` took the nearest rows.

    The sum over ``B * M`` is the share of the full search that is left. Raises as ``window_candidates`` does.
    """
    distances = _row_distances(row_cell, height, width, block, radius)
    return np.array([np.count_nonzero(distance <= radius) for distance in distances], np.int32)


def _row_distances(
    row_cell: npt.NDArray[np.int32], height: int, width: int, block: int, radius: int
) -> Iterator[npt.NDArray[np.int32]]:
    """Yield for each block the distance in cells of every row, int32 [M]: the larger of dy and dx to its extent."""
    if row_cell.ndim != 2 or row_cell.shape[1] != 2 or len(row_cell) == 0:
        raise UsageError(f"position window: row_cell is {list(row_cell.shape)}; give [M, 2], (y, x), at least one row")
    if radius < 0:
        raise UsageError(f"position window: radius is {radius} cells; give 0 or more")
    ys, xs = _block_axis(height, block), _block_axis(width, block)
    if row_cell.min() < 0 or (row_cell >= (height, width)).any():
        low, high = row_cell.min(axis=0).tolist(), row_cell.max(axis=0).tolist()
        raise UsageError(
            f"position window: cells of the bank reach from {low} to {high}, outside the {height} x {width} grid; "
            "build the bank at the input size it is searched with"
        )
    dy = _beyond(row_cell[:, 0], ys)
    dx = _beyond(row_cell[:, 1], xs)
    for a in dy:
        for b in dx:
            yield np.maximum(a, b)


def _beyond(position: npt.NDArray[np.int32], axis: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """How far each position [M] lies outside each block of ``axis`` [B, q], int32 [B, M], 0 inside."""
    before = axis[:, :1] - position
    after = position - axis[:, -1:]
    beyond: npt.NDArray[np.int64] = np.maximum(np.maximum(before, after), 0)
    return beyond.astype(np.int32)


def _block_axis(size: int, block: int) -> npt.NDArray[np.int64]:
    """Positions of each block along one axis, [blocks, min(block, size)], the last one held at ``size - 1``."""
    _check_sizes(size=size, block=block)
    starts = np.arange(0, size, block)
    axis: npt.NDArray[np.int64] = np.minimum(starts[:, None] + np.arange(min(block, size)), size - 1)
    return axis


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"position: {name} is {value} cells; give 1 or more")
