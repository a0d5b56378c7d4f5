"""Which pictures of a set are copies or near-copies of each other.

Near-copies are the same shot saved again: re-encoded, slightly brightened, with a little noise. Pictures of different
parts of an aligned product look alike too, and their common outlines outweigh what tells them apart. So two pictures
count as near-copies only if the fine details of their thumbnails correlate and nowhere differ by more than saving again
explains. Other shots of one part (other light, cropped by several pixels) are not found: on aligned products they lie
as far apart as different parts do.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Fingerprint", "fingerprint", "near_copy_groups"]

THUMBNAIL_PX = 64
BLOCK_PX = 8  # of the thumbnail
COARSE_SIGMA_PX = 1.0  # of the thumbnail
# Measured on eight products, saving again (JPEG of quality 60 to 90, noise of 1 to 3 levels, 4 % more light) against
# different parts that look most alike. Distance of details in units of their own deviation: up to 0.23, grainy pictures
# only, against 0.24. Difference in grey levels, over the picture: up to 1.2 against 1.7; in the block that differs
# most: up to 1.8 against 6.8. Two shots of one cookie: 0.09, 1.1, 3.6. Harsh JPEGs of very grainy pictures are missed.
NEAR_DISTANCE = 0.28
NEAR_LEVELS = 1.25
NEAR_BLOCK_LEVELS = 4.0
FLAT_LEVELS = 1e-3  # a picture with less contrast has no details to compare
ROWS_PER_BLOCK = 512


@dataclass(frozen=True)
class Fingerprint:
    """``digest``: SHA-256 of size and pixels. ``details``: float32 [64 * 64], mean 0, variance 1 (or all 0).

    ``contrast_levels``: standard deviation of the details in grey levels.
    """

    digest: bytes
    details: NDArray[np.float32]
    contrast_levels: float


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """Fingerprint of an RGB picture uint8 [H, W, 3]."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.tobytes())
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    thumbnail = cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    details = np.asarray(thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), COARSE_SIGMA_PX), np.float32).ravel()
    details -= details.mean()
    contrast = float(details.std())
    details = details / np.float32(contrast) if contrast > FLAT_LEVELS else np.zeros_like(details)
    return Fingerprint(digest.digest(), details, contrast)


def near_copy_groups(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Indices of ``prints`` in groups; chains of near-copies are one group, a picture without any is a group of one."""
    parent = list(range(len(prints)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)

    first_with: dict[bytes, int] = {}
    for i, one in enumerate(prints):
        join(i, first_with.setdefault(one.digest, i))
    for i, j in _correlated_pairs(prints):
        if root(i) != root(j) and _differ_nowhere(prints[i], prints[j]):
            join(i, j)

    groups: dict[int, list[int]] = {}
    for i in range(len(prints)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _correlated_pairs(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Pairs i < j whose distance, and difference averaged over the whole picture, are those of near-copies."""
    if not prints:
        return []
    details = np.stack([one.details for one in prints])
    contrast = np.array([one.contrast_levels for one in prints], np.float32)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(prints), ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        distance2 = 2 - 2 * (details[rows] @ details.T) / details.shape[1]  # of vectors of variance 1
        levels2 = distance2 * np.outer(contrast[rows], contrast)
        near = (distance2 < NEAR_DISTANCE**2) & (levels2 < NEAR_LEVELS**2)
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(near) if start + i < j]
    return pairs


def _differ_nowhere(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether no block of the thumbnails, brought to one contrast, differs by more than near-copies do."""
    blocks = THUMBNAIL_PX // BLOCK_PX
    difference = (a.details - b.details).reshape(blocks, BLOCK_PX, blocks, BLOCK_PX)
    mean_squares = np.square(difference).mean(axis=(1, 3)) * (a.contrast_levels * b.contrast_levels)
    return bool(mean_squares.max() < NEAR_BLOCK_LEVELS**2)
