"""Which rows of a bank each cell of a frame may match, as the inputs of ``NearestResidualCandidates``.

One rule for the line and for leave-one-out: thresholds taken without a part's own rows must come from the very search, with
its window or its retrieved images, that will judge the next part.
"""

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import EngineError
from adclick_edge.features.bank import Bank
from adclick_edge.features.position import cell_slots
from adclick_edge.features.retrieval import retrieve_rows
from adclick_edge.features.search import TILE_BYTES

__all__ = ["NO_IMAGE", "candidate_lists"]

NO_IMAGE = -1


def candidate_lists(
    bank: Bank, retrieval_map: npt.NDArray[np.float32], exclude_image: int = NO_IMAGE
) -> dict[str, npt.NDArray[np.int64]]:
    """``order`` [B, q], ``place`` [h*w] and ``candidates`` [1, B, m], int64, for one frame.

    ``retrieval_map`` float32 [1, c, y, x] is the frame's stride-4 map, read only where the bank retrieves images;
    ``exclude_image`` is the bank image whose rows the frame must not match. EngineError when no row is left.
    """
    cells = bank.grid[0] * bank.grid[1]
    order = np.arange(cells)[None]
    lists = [np.arange(len(bank.rows), dtype=np.int64)]
    if bank.window is not None:
        order = bank.window[0].astype(np.int64)
        lists = list(bank.window[1].astype(np.int64))
    elif bank.options.retrieve_images:
        lists = [retrieve_rows(bank, retrieval_map[0], bank.options.retrieve_images, exclude_image).astype(np.int64)]
    if exclude_image != NO_IMAGE:
        others = np.flatnonzero(bank.row_image != exclude_image)
        if len(others) == 0:
            raise EngineError(
                f"all rows of the bank come from its image {exclude_image}: nothing is left to match it against; "
                "give the bank pictures of several parts"
            )
        lists = [rows[bank.row_image[rows] != exclude_image] for rows in lists]
        # A block none of whose rows is left searches all others, as a block without rows does when the bank is made.
        lists = [rows if len(rows) else others for rows in lists]
    if len(lists) == 1:
        order, lists = _in_blocks(cells, lists[0])
    longest = max(len(rows) for rows in lists)
    padded = [np.concatenate([rows, np.full(longest - len(rows), rows[0])]) for rows in lists]
    return {
        "order": order,
        "place": cell_slots(order.astype(np.int32)).astype(np.int64),
        "candidates": np.stack(padded)[None],
    }


def _in_blocks(cells: int, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """One list for all cells, cut into blocks of cells whose products with it stay within the byte budget."""
    block = min(cells, max(1, TILE_BYTES // (4 * len(rows))))
    blocks = -(-cells // block)
    # The last block repeats the last cell.
    order = np.minimum(np.arange(blocks * block), cells - 1).reshape(blocks, block)
    return order, [rows] * blocks
