"""Large frames by overlapping tiles, and their maps put together without seams.

A tile's map has one cell per ``scale`` x ``scale`` pixels. Tiles start at multiples of ``scale``, so that cells of
different tiles lie on one grid, that of the frame's map: [ceil(height / scale), ceil(width / scale)].
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.errors import UsageError

__all__ = ["MapBlender", "Tile", "blend", "cut_tile", "plan_tiles"]


@dataclass(frozen=True)
class Tile:
    """A window of a frame in pixels. It may stick out at the bottom and right, where ``cut_tile`` mirrors the frame."""

    top: int
    left: int
    height: int
    width: int


def plan_tiles(height: int, width: int, tile: int | tuple[int, int], overlap: int, *, scale: int = 1) -> list[Tile]:
    """Tiles of one size, (height, width) or square, that cover a frame, row by row.

    Neighbours overlap by at least ``overlap`` pixels. The last tile of a row or column is shifted back inside the
    frame; it sticks out only where the frame is smaller than the tile, or by less than ``scale`` pixels where the frame
    is no multiple of it.

    Raises UsageError for sizes that are not positive, a tile that is no multiple of ``scale``, and an overlap that
    leaves no step between tiles.
    """
    tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
    if min(height, width, tile_height, tile_width, scale) < 1 or overlap < 0:
        raise UsageError(
            f"a frame of {height} x {width}, tiles of {tile_height} x {tile_width}, overlap {overlap} and scale "
            f"{scale}: sizes are at least 1, the overlap at least 0"
        )
    if tile_height % scale or tile_width % scale:
        raise UsageError(f"a tile of {tile_height} x {tile_width} is no multiple of the map's scale {scale}")
    tops = _offsets(height, tile_height, overlap, scale)
    lefts = _offsets(width, tile_width, overlap, scale)
    return [Tile(top, left, tile_height, tile_width) for top in tops for left in lefts]


def _offsets(length: int, tile: int, overlap: int, scale: int) -> list[int]:
    step = (tile - overlap) // scale * scale
    if step < 1:
        raise UsageError(f"an overlap of {overlap} leaves tiles of {tile} no step of {scale} pixels; lower it")
    last = max(0, -(-(length - tile) // scale) * scale)
    return [*range(0, last, step), last]


def cut_tile(frame: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """The pixels [tile.height, tile.width, C] of a frame [H, W, C]; a view, or mirrored beyond the frame's borders."""
    part = frame[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
    missing_rows, missing_columns = tile.height - part.shape[0], tile.width - part.shape[1]
    if missing_rows == 0 and missing_columns == 0:
        return part
    # Mirroring n rows takes n + 1 rows, which may be more than the tile has inside the frame.
    top = max(0, min(tile.top, frame.shape[0] - missing_rows - 1))
    left = max(0, min(tile.left, frame.shape[1] - missing_columns - 1))
    source = frame[top : tile.top + tile.height, left : tile.left + tile.width]
    padded = cv2.copyMakeBorder(source, 0, missing_rows, 0, missing_columns, cv2.BORDER_REFLECT_101)
    return padded[tile.top - top :, tile.left - left :].astype(np.uint8, copy=False)


class MapBlender:
    """The map of a frame from the maps of its tiles, added one by one in any order.

    Each cell is the mean of the tiles over it, weighted by a separable raised cosine (sin squared, from centre to
    border): a tile enters at a border with almost no weight, so there is no seam, and the cells that a network knows
    least about, those at its border, count least. Towards the frame's own border a tile keeps its full weight: two
    tiles that both fade out there would hand over within a few cells.
    """

    def __init__(self, height: int, width: int, *, scale: int = 1) -> None:
        if min(height, width, scale) < 1:
            raise UsageError(f"a frame of {height} x {width} with a map at scale {scale}: all are at least 1")
        self._scale = scale
        self._height, self._width = height, width
        shape = (-(-height // scale), -(-width // scale))
        self._sum = np.zeros(shape)
        self._weight = np.zeros(shape)

    def add(self, tile: Tile, tile_map: NDArray[np.float32]) -> None:
        """Add the map f32 [tile.height / scale, tile.width / scale] of a tile. Raises UsageError for another shape."""
        scale = self._scale
        if any(value % scale for value in (tile.top, tile.left, tile.height, tile.width)):
            raise UsageError(f"{tile} does not lie on the grid of scale {scale}; plan the tiles with that scale")
        shape = (tile.height // scale, tile.width // scale)
        if tile_map.shape != shape:
            raise UsageError(f"the map of {tile} has shape {tile_map.shape}; at scale {scale} it must be {shape}")
        top, left = tile.top // scale, tile.left // scale
        rows = max(0, min(shape[0], self._sum.shape[0] - top))
        columns = max(0, min(shape[1], self._sum.shape[1] - left))
        weight = np.outer(
            _window(shape[0], first=top == 0, last=tile.top + tile.height >= self._height)[:rows],
            _window(shape[1], first=left == 0, last=tile.left + tile.width >= self._width)[:columns],
        )
        cells = np.s_[top : top + rows, left : left + columns]
        self._sum[cells] += weight * tile_map[:rows, :columns]
        self._weight[cells] += weight

    def result(self) -> NDArray[np.float32]:
        """The map f32 [ceil(height / scale), ceil(width / scale)]. Raises UsageError where no tile covers a cell."""
        uncovered = np.argwhere(self._weight == 0)
        if uncovered.size:
            row, column = (uncovered[0] * self._scale).tolist()
            raise UsageError(f"no tile covers the frame at row {row}, column {column}; add all tiles of the plan")
        return (self._sum / self._weight).astype(np.float32)


def blend(
    tiles: Iterable[Tile], maps: Iterable[NDArray[np.float32]], height: int, width: int, *, scale: int = 1
) -> NDArray[np.float32]:
    """The map f32 [ceil(height / scale), ceil(width / scale)] of a frame; see ``MapBlender``."""
    blender = MapBlender(height, width, scale=scale)
    for tile, tile_map in zip(tiles, maps, strict=True):
        blender.add(tile, tile_map)
    return blender.result()


def _window(cells: int, *, first: bool, last: bool) -> NDArray[np.float64]:
    window = np.asarray(np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2)
    if first:
        window[: cells // 2] = 1.0
    if last:
        window[cells // 2 :] = 1.0
    return window
