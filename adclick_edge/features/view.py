"""A view: the part of a frame that is looked at closely. Maps of the whole frame are brought to its cells here."""

import numpy as np
import numpy.typing as npt

__all__ = ["crop_cells"]

F32 = npt.NDArray[np.float32]


def crop_cells(maps: F32, box: tuple[float, float, float, float], cells: tuple[int, int]) -> F32:
    """``maps`` float32 [C, h, w] of a whole frame, at the cells of a view: float32 [C, *cells], bilinear.

    ``box`` is the view's top, left, bottom and right as shares of the frame. Cells stand for their centres, and the
    outermost ones are repeated beyond the frame.
    """
    _, height, width = maps.shape
    down = _weights(box[0], box[2], height, cells[0])
    across = _weights(box[1], box[3], width, cells[1])
    out: F32 = np.ascontiguousarray(down @ maps @ across.T)
    return out


def _weights(start: float, end: float, cells_in: int, cells_out: int) -> F32:
    """Linear interpolation along one axis as a matrix, float32 [cells_out, cells_in]."""
    place = (start + (np.arange(cells_out) + 0.5) / cells_out * (end - start)) * cells_in - 0.5
    place = np.clip(place, 0, cells_in - 1)
    below = np.minimum(np.floor(place).astype(np.intp), max(cells_in - 2, 0))
    share = (place - below).astype(np.float32)
    weights = np.zeros((cells_out, cells_in), np.float32)
    rows = np.arange(cells_out)
    weights[rows, below] = 1 - share
    weights[rows, np.minimum(below + 1, cells_in - 1)] += share
    return weights
