"""Synthetic defects on normal pictures, with the mask of what really changed (method section 3)."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.data.cut_paste import cut_and_paste
from adclick_edge.data.defect_families import FAMILIES, Canvas
from adclick_edge.errors import UsageError

__all__ = ["DefectMix", "add_defect", "cut_and_paste"]

VISIBLE_LEVELS = 6  # of 255: less than this is no defect a person could label
LEAST_PIXELS = 4  # a remnant smaller than this is drawn anew
FAINTEST_MEAN_LEVELS = 4.0  # of 255: a mask whose pixels change less on average is drawn anew
MAX_TRIES = 8


@dataclass(frozen=True)
class DefectMix:
    """How often each family of defects is drawn, as weights: any scale, none negative, not all zero."""

    texture: float = 0.4
    stroke: float = 0.2
    blob: float = 0.15
    stain: float = 0.1
    blur: float = 0.05
    warp: float = 0.1

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or not 0 < sum(astuple(self)) < np.inf:
            raise UsageError(f"the weights of the defect mix are {astuple(self)}; give positive finite numbers, or 0")

    def probabilities(self) -> NDArray[np.float64]:
        weights = np.array(astuple(self))
        return np.asarray(weights / weights.sum())


def add_defect(
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    foreign: Sequence[NDArray[np.uint8]] | None = None,
    foreground: NDArray[np.bool_] | None = None,
    mix: DefectMix | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A damaged copy of ``image`` (uint8 [H, W, 3]) and the mask bool [H, W] of the damage.

    The mask holds the pixels whose change, averaged over channels and the nearest neighbours, is at least 6 of 255;
    it is never empty, and outside it at most fainter traces of the defect remain. ``foreground`` (bool [H, W]) confines
    defects to the part. ``foreign`` holds pictures uint8 [*, *, 3] to take textures from; without it they are
    procedural. On a grey picture defects are grey, or colour alone would give them away.
    Raises UsageError when the shapes do not fit or ``foreground`` is empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UsageError(f"the image is {image.dtype} {list(image.shape)}; give uint8 [height, width, 3]")
    if foreground is not None and (foreground.shape != image.shape[:2] or not foreground.any()):
        raise UsageError(f"the foreground {list(foreground.shape)} must be of the image's size and mark some pixel")
    probabilities = (mix or DefectMix()).probabilities()
    names = [field.name for field in fields(DefectMix)]
    is_grey = _is_grey(image)
    for _ in range(MAX_TRIES):
        canvas = Canvas(image, _random_point(image, foreground, rng), is_grey, foreign)
        damaged, region = FAMILIES[names[rng.choice(len(names), p=probabilities)]](canvas, rng)
        if foreground is not None:
            region = region & foreground
            damaged = np.where(foreground[..., None], damaged, image)
        mask = _visible(image, damaged, region)
        if np.count_nonzero(mask) >= LEAST_PIXELS:
            change = cv2.absdiff(image, damaged)[mask]
            if change.mean() >= FAINTEST_MEAN_LEVELS:
                return damaged, mask
    return _inverted_speck(image, _random_point(image, foreground, rng), foreground)


def _is_grey(image: NDArray[np.uint8]) -> bool:
    few = image[::4, ::4]
    return bool((few[..., 0] == few[..., 1]).all() and (few[..., 1] == few[..., 2]).all())


def _random_point(
    image: NDArray[np.uint8], foreground: NDArray[np.bool_] | None, rng: np.random.Generator
) -> tuple[int, int]:
    height, width = image.shape[:2]
    if foreground is None:
        return int(rng.integers(height)), int(rng.integers(width))
    inside = np.flatnonzero(foreground)
    y, x = divmod(int(inside[rng.integers(len(inside))]), width)
    return y, x


def _visible(image: NDArray[np.uint8], damaged: NDArray[np.uint8], region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where ``damaged`` differs visibly from ``image`` inside ``region``.

    The change is averaged over 3 x 3 pixels and gaps of a pixel or two are closed: a foreign texture that happens to
    meet the part's own brightness here and there is one defect, not a thousand.
    """
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    mask = np.zeros(region.shape, np.bool_)
    if width == 0:
        return mask
    rows, columns = slice(y, y + height), slice(x, x + width)
    change = cv2.absdiff(image[rows, columns], damaged[rows, columns])
    mean_change = cv2.transform(change.astype(np.float32), np.full((1, 3), 1 / 3, np.float32))
    changed = np.asarray(cv2.blur(mean_change, (3, 3)) >= VISIBLE_LEVELS, np.uint8)
    closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    mask[rows, columns] = (closed > 0) & region[rows, columns]
    return mask


def _inverted_speck(
    image: NDArray[np.uint8], at: tuple[int, int], foreground: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A 5 x 5 speck half the brightness range away from what is there: visible on any picture."""
    y, x = at
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
    if foreground is not None:
        mask &= foreground
    damaged = image.copy()
    damaged[mask] ^= 128
    return damaged, mask
