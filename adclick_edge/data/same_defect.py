"""Which labelled pictures show the same defect of the same part, shot again in another light or crop.

Data sets are often shot that way: on the magnetic tiles more than half of all defects come in several exposures. Labels of
one shot would then be tested on its siblings. Picture hashes do not see it, and whole pictures may not be compared either:
two good parts of one design match perfectly. Two pictures show the same defect when a similarity transform found from
local features lays one *mask* on the other.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["same_defect_groups"]

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

WORKING_PX = 320
"""Pictures are compared at this length of their longer side."""
FEWEST_INLIERS = 15
"""Matched features that agree on one transform. Different tiles reach 12 by chance, shots of one tile 50 to 350."""
LEAST_OVERLAP = 0.3
"""Intersection over union of the two masks, widened by `MASK_MARGIN_PX`, after the transform."""
MASK_MARGIN_PX = 4


def same_defect_groups(pictures: Sequence[tuple[U8, Bool]]) -> list[int]:
    """Group number of each picture (uint8 [H, W, 3]) with its mask (bool [H, W]); siblings share one, numbered by first
    appearance. Time grows with the square of their number, about 2 ms a pair.
    """
    described = [_describe(image, mask) for image, mask in pictures]
    group = list(range(len(pictures)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i in range(len(pictures)):
        for j in range(i):
            if root(i) != root(j) and _same(described[i], described[j]):
                group[root(i)] = root(j)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(pictures))]


_Described = tuple[F32, F32, U8]
"""Keypoints [k, 2], descriptors [k, 128], widened mask uint8 [h, w] at working size."""


def _describe(image: U8, mask: Bool) -> _Described:
    scale = WORKING_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    # Light changes from shot to shot, fine structure does not.
    fine = np.clip((grey - cv2.GaussianBlur(grey, (0, 0), 12)) * 3 + 128, 0, 255).astype(np.uint8)
    sift = cv2.SIFT_create(nfeatures=400, contrastThreshold=0.01)  # type: ignore[attr-defined]
    keypoints, descriptors = sift.detectAndCompute(fine, None)
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    if not small.any():  # a mask of a few pixels can vanish when it shrinks
        ys, xs = np.nonzero(mask)
        for y, x in zip(ys, xs, strict=True):
            small[min(int(y * scale), size[1] - 1), min(int(x * scale), size[0] - 1)] = 1
    margin = 2 * MASK_MARGIN_PX + 1
    wide = cv2.dilate(small, np.ones((margin, margin), np.uint8))
    points = np.array([k.pt for k in keypoints], np.float32).reshape(-1, 2)
    found = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    return points, found, wide.astype(np.uint8)


def _same(a: _Described, b: _Described) -> bool:
    points_a, found_a, mask_a = a
    points_b, found_b, mask_b = b
    if len(points_a) < FEWEST_INLIERS or len(points_b) < FEWEST_INLIERS:
        return False
    pairs = cv2.BFMatcher().knnMatch(found_a, found_b, k=2)
    good = [first for first, second in pairs if first.distance < 0.8 * second.distance]
    if len(good) < FEWEST_INLIERS:
        return False
    source = np.array([points_a[m.queryIdx] for m in good], np.float32)
    target = np.array([points_b[m.trainIdx] for m in good], np.float32)
    cv2.setRNGSeed(0)
    transform, inliers = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=3.0)
    if transform is None or int(inliers.sum()) < FEWEST_INLIERS:
        return False
    moved = cv2.warpAffine(mask_a, transform, (mask_b.shape[1], mask_b.shape[0]), flags=cv2.INTER_NEAREST) > 0
    other = mask_b > 0
    return bool((moved & other).sum() >= LEAST_OVERLAP * (moved | other).sum())
