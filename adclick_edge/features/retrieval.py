"""Which normal images a frame is compared with, when a bank holds too many (method section 1.5).

Each image is described by the means of its stride-4 map over a 4 x 4 grid of windows, reduced to 16 principal
components. The distance of two images is the mean of the best 80 % of their windows, so that a defect (or one odd
window) does not push the right reference away.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from adclick_edge.features.bank import Bank

__all__ = ["nearest_images", "retrieve_rows", "window_means"]

F32 = npt.NDArray[np.float32]

WINDOWS = 4
BEST_SHARE = 0.8
ROW_STEP = 256
"""Candidate lists are padded to a multiple of this, so that back ends see few different shapes."""


def window_means(feature_map: F32) -> F32:
    """Mean of a stride-4 map (float32 [c, y, x]) over each of 4 x 4 windows, float32 [16, c]."""
    ys, xs = (_window_ends(size) for size in feature_map.shape[1:])
    return np.stack([feature_map[:, a:b, c:d].mean(axis=(1, 2)) for a, b in ys for c, d in xs])


def _window_ends(size: int) -> list[tuple[int, int]]:
    """First and one past the last pixel of each window of an axis; a window is never empty."""
    ends = np.linspace(0, size, WINDOWS + 1).astype(int).tolist()
    return [(a, max(b, a + 1)) for a, b in pairwise(ends)]


def nearest_images(bank: Bank, feature_map: F32, count: int) -> npt.NDArray[np.int64]:
    """Indices of the ``count`` bank images nearest to a frame's stride-4 map (float32 [c, y, x]), nearest first."""
    windows = (window_means(feature_map) - bank.descriptor_centre) @ bank.descriptor_projection
    difference = bank.image_descriptors - windows
    distance = np.sort((difference * difference).sum(axis=2), axis=1)
    best = max(1, round(BEST_SHARE * distance.shape[1]))
    return np.argsort(distance[:, :best].mean(axis=1), kind="stable")[:count]


def retrieve_rows(bank: Bank, feature_map: F32, count: int, exclude_image: int = -1) -> npt.NDArray[np.int32]:
    """Rows of the ``count`` nearest images, int32 [m], padded to a multiple of `ROW_STEP` by repeating the first.

    Images of which the coreset kept no row are passed over: others cover them. So is ``exclude_image``, unless there is
    no other.
    """
    ranked = nearest_images(bank, feature_map, len(bank.image_hashes))
    others = ranked[(ranked != exclude_image) & np.isin(ranked, bank.row_image)]
    ranked = others if len(others) else ranked
    starts = np.searchsorted(bank.row_image, ranked, side="left")
    ends = np.searchsorted(bank.row_image, ranked, side="right")
    segments = [(a, b) for a, b in zip(starts, ends, strict=True) if b > a][:count]
    rows = np.concatenate([np.arange(a, b, dtype=np.int32) for a, b in segments])
    padding = -len(rows) % ROW_STEP
    return np.concatenate([rows, np.full(padding, rows[0], np.int32)])
