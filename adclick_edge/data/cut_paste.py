"""Real labelled defects cut out and pasted on other pictures of the product (method section 3)."""

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.errors import UsageError

__all__ = ["cut_and_paste"]

FEATHER_PX = 3
RING_PX = 8  # how far around the defect its surroundings are compared
MAX_TURN_DEG = 45.0
SCALES = (0.8, 1.2)
PLACES_TRIED = 16


def cut_and_paste(
    image: NDArray[np.uint8],
    donor: NDArray[np.uint8],
    donor_mask: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    foreground: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A copy of ``image`` (uint8 [H, W, 3]) with the defect of ``donor`` on it, and its mask bool [H, W].

    The defect is turned by up to 45 degrees and scaled by 0.8 to 1.2; one transform moves pixels and mask. It is made
    brighter or darker by the difference between its old and its new surroundings and fades out over 3 pixels outside
    its mask. ``foreground`` (bool [H, W]) confines it to the part. Donor (uint8 [h, w, 3], mask bool [h, w]) and image
    need not be of one size. Raises UsageError when shapes do not fit, or a mask or the foreground is empty.
    """
    height, width = image.shape[:2]
    if donor.shape[:2] != donor_mask.shape:
        raise UsageError(f"the donor is {list(donor.shape[:2])}, its mask {list(donor_mask.shape)}; give equal sizes")
    if not donor_mask.any():
        raise UsageError("the donor's mask marks no pixel, so there is nothing to cut out; choose another donor")
    if foreground is not None and (foreground.shape != (height, width) or not foreground.any()):
        raise UsageError(f"the foreground {list(foreground.shape)} must be of the image's size and mark some pixel")

    pixels, mask = _cut(donor, donor_mask, rng)
    allowed = np.ones((height, width), np.bool_) if foreground is None else foreground
    top, left = _place(mask, allowed, rng)
    rows = slice(max(top, 0), min(top + mask.shape[0], height))
    columns = slice(max(left, 0), min(left + mask.shape[1], width))
    # Part of the cut-out may lie beyond the picture's edge.
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)

    pasted, pasted_mask = image.copy(), np.zeros((height, width), np.bool_)
    pasted[rows, columns] = _blended(image[rows, columns], pixels[inner], mask[inner], allowed[rows, columns])
    pasted_mask[rows, columns] = mask[inner] & allowed[rows, columns]
    return pasted, pasted_mask


def _cut(
    donor: NDArray[np.uint8], donor_mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The turned and scaled defect with some surroundings: pixels uint8 [s, s, 3], mask bool [s, s]."""
    x, y, width, height = cv2.boundingRect(donor_mask.view(np.uint8))
    scale = rng.uniform(*SCALES)
    half = int(np.ceil(scale * np.hypot(height, width) / 2)) + RING_PX
    centre_x, centre_y = x + (width - 1) / 2, y + (height - 1) / 2
    transform = cv2.getRotationMatrix2D((centre_x, centre_y), rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG), scale)
    transform[:, 2] += np.array([half - centre_x, half - centre_y])
    size = (2 * half + 1, 2 * half + 1)
    pixels: NDArray[np.uint8] = cv2.warpAffine(donor, transform, size, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[assignment]
    soft = cv2.warpAffine(donor_mask.astype(np.float32), transform, size)
    return pixels, np.asarray(soft >= 0.5 * soft.max())  # a speck of one pixel never reaches 0.5 of 1


def _place(mask: NDArray[np.bool_], allowed: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the cut-out's corner, some pixel of the defect on an allowed one, most of them if possible."""
    mask_yx, allowed_flat = np.argwhere(mask), np.flatnonzero(allowed)
    height, width = allowed.shape
    best, best_inside = (0, 0), -1
    for _ in range(PLACES_TRIED):
        y, x = divmod(int(allowed_flat[rng.integers(len(allowed_flat))]), width)
        on_y, on_x = mask_yx[rng.integers(len(mask_yx))]
        top, left = y - int(on_y), x - int(on_x)
        ys, xs = mask_yx[:, 0] + top, mask_yx[:, 1] + left
        within = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
        inside = int(allowed[ys[within], xs[within]].sum())
        if inside > best_inside:
            best, best_inside = (top, left), inside
        if inside == len(mask_yx):
            break
    return best


def _blended(
    below: NDArray[np.uint8], above: NDArray[np.uint8], mask: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """``above`` over ``below`` where ``mask``, fading out around it, its brightness matched to its new surroundings."""
    distance_px = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 3)
    opacity = np.clip(1 - distance_px / (FEATHER_PX + 1), 0, 1) * allowed
    ring = (distance_px > 1) & (distance_px <= RING_PX) & allowed
    shift = np.zeros(3, np.float32)
    if ring.any():
        shift = np.median(below[ring], axis=0) - np.median(above[ring], axis=0)
    matched = np.clip(above + shift, 0, 255)
    mixed = below + opacity[..., None] * (matched - below)
    return np.asarray(np.rint(mixed), np.uint8)
