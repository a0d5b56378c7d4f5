"""Frames on which two kinds of defect share a place: what a word must tell apart where a click alone cannot."""

from dataclasses import dataclass
from functools import partial
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, UsageError
from .camera import Camera, Light, expose, shade, to_levels
from .defects import FULL_DEFECTS, Region
from .frame import DRAW, LEAST_AREA, MASK_LEVELS, PRODUCTS, as_frame, check_size, render_side, shrunk_footprint
from .surface import F32, Surface

__all__ = ["OVERLAPS", "Overlap", "overlap_noise_free", "render_overlap"]

OVERLAPS: dict[str, tuple[tuple[str, str], ...]] = {
    "fabric": (
        ("hole", "stain"),
        ("snag", "stain"),
        ("broken_thread", "stain"),
        ("hole", "contamination"),
        ("stain", "contamination"),
    ),
    "board": (
        ("missing", "scratch"),
        ("swapped", "contamination"),
        ("misprint", "scratch"),
        ("bent", "contamination"),
        ("scratch", "contamination"),
    ),
    "flange": (
        ("scratch", "stain"),
        ("crack", "stain"),
        ("dent", "scratch"),
        ("missing", "stain"),
        ("swapped", "scratch"),
    ),
}
"""Pairs worth showing of each product: the kind that was there first, and the kind that came on top."""

_ATTEMPTS = 24
_LEAST_SHARED = 6e-5  # of the frame: 6 pixels of a picture of 320 x 320
_MOST_ALIKE = 0.6  # intersection over union of the two masks; beyond it a mask does not say which kind was meant


@dataclass(frozen=True)
class Overlap:
    """``picture``, ``reference`` and ``without`` are grey levels 0..255 before noise, float32 ``[3, size, size]``.

    ``reference`` has neither defect, ``without[kind]`` the other one alone. ``masks[kind]`` and ``footprints[kind]``
    are bool ``[size, size]``; a footprint is where a missing or swapped part belongs.
    """

    picture: F32
    linear: F32
    reference: F32
    without: dict[str, F32]
    masks: dict[str, NDArray[np.bool_]]
    footprints: dict[str, NDArray[np.bool_]]
    camera: Camera


def _order(product: str, kinds: tuple[str, str]) -> tuple[str, str]:
    """The kinds as (first, on top), checked."""
    if product not in PRODUCTS:
        raise UsageError(f"the sample line makes no product {product!r}; choose from {', '.join(sorted(PRODUCTS))}")
    known = PRODUCTS[product]
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"product {product!r} has no kind {kind!r}; choose from {', '.join(sorted(known))}")
    under, over = kinds
    if under == over:
        raise UsageError(f"two kinds {under!r} cannot be told apart; choose two different kinds")
    if over in FULL_DEFECTS:
        return under, over
    if under in FULL_DEFECTS:
        return over, under
    movable = ", ".join(sorted(set(known) & set(FULL_DEFECTS)))
    raise UsageError(
        f"neither {under!r} nor {over!r} can be put at a chosen place; take one of {movable} as the second"
    )


def _seeds(product: str, kinds: tuple[str, str], seed: int, index: int, key: tuple[int, ...]) -> np.random.Generator:
    names = [crc32(name.encode()) for name in (product, "overlap", *kinds)]
    return np.random.default_rng(np.random.SeedSequence([seed, index, *names], spawn_key=key))


def overlap_noise_free(product: str, kinds: tuple[str, str], *, seed: int, index: int, size: int = 320) -> Overlap:
    """Render a frame with both kinds, and what it would be without either, before the sensor's noise.

    A kind's mask is where the picture would change by more than ``MASK_LEVELS`` without it, plus the footprint of a
    missing or swapped part. A pixel that only both together change by that much goes to the kind that changes it more.
    """
    check_size(size)
    under, over = _order(product, kinds)
    if seed < 0 or index < 0:
        raise UsageError(f"seed {seed} and index {index} must both be 0 or more")
    n, draw = render_side(size), DRAW[product]
    stream = partial(_seeds, product, (under, over), seed, index)
    setup = stream((1,))
    light, camera = Light.random(setup), Camera.random(setup)

    def photograph(surface: Surface) -> tuple[F32, F32]:
        linear = expose(shade(surface, light), camera, size)
        return linear, to_levels(linear)

    def changed(one: F32, other: F32) -> F32:
        return np.asarray(np.abs(one - other).max(axis=0), np.float32)

    reference = photograph(draw(stream((0,)), n, None, stream((2,)), 1.0)[0])[1]
    for attempt in range(_ATTEMPTS):
        strength = 1.0 + 0.25 * min(attempt, 5)
        first, part = draw(stream((0,)), n, under, stream((2, attempt)), strength)
        under_alone = photograph(first)[1]
        place = changed(under_alone, reference) > MASK_LEVELS
        if part is not None:
            place |= shrunk_footprint(part, size)
        if place.sum() < LEAST_AREA * size * size:
            continue
        middle = cv2.resize(place.astype(np.uint8), (n, n), interpolation=cv2.INTER_NEAREST) > 0

        def add(
            surface: Surface,
            region: Region,
            middle: Region = middle,
            attempt: int = attempt,
            strength: float = strength,
        ) -> None:
            near = region & middle
            FULL_DEFECTS[over](surface, region, stream((3, attempt)), strength, near if near.any() else None)

        linear, picture = photograph(draw(stream((0,)), n, under, stream((2, attempt)), strength, add)[0])
        over_alone = photograph(draw(stream((0,)), n, None, stream((2,)), 1.0, add)[0])[1]
        by_under, by_over = changed(picture, over_alone), changed(picture, under_alone)
        nothing = np.zeros((size, size), np.bool_)
        footprint = nothing if part is None else shrunk_footprint(part, size)
        rest = changed(picture, reference) > MASK_LEVELS
        rest &= np.maximum(by_under, by_over) <= MASK_LEVELS
        masks = {
            under: (by_under > MASK_LEVELS) | footprint | (rest & (by_under >= by_over)),
            over: (by_over > MASK_LEVELS) | (rest & (by_over > by_under)),
        }
        if _worth_showing(masks[under], masks[over]):
            without = {under: over_alone, over: under_alone}
            footprints = {under: footprint, over: nothing}
            return Overlap(picture, linear, reference, without, masks, footprints, camera)
    raise DataError(
        f"{product}, {under} under {over}, seed {seed}, index {index}: no two defects that overlap at {size} pixels in "
        f"{_ATTEMPTS} attempts; take another index or a larger size"
    )


def _worth_showing(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    shared, either = int((one & other).sum()), int((one | other).sum())
    enough = min(int(one.sum()), int(other.sum())) >= LEAST_AREA * one.size
    return enough and shared >= max(1, _LEAST_SHARED * one.size) and shared <= _MOST_ALIKE * either


def render_overlap(
    product: str, kinds: tuple[str, str], *, seed: int, index: int, size: int = 320
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """One picture with both kinds of defect, uint8 ``[size, size, 3]`` RGB, and the mask bool ``[size, size]`` of each.

    The masks share pixels and are not alike. The result depends on the arguments alone; ``OVERLAPS`` lists good pairs,
    and the order of ``kinds`` counts only where both can lie on top.

    Raises UsageError for a product or kind that does not exist, for a pair of which neither can be put at a chosen
    place and for a size outside 64..2048; DataError where no attempt gave an overlap.
    """
    clean = overlap_noise_free(product, kinds, seed=seed, index=index, size=size)
    rng = _seeds(product, _order(product, kinds), seed, index, (4,))
    return as_frame(clean.linear, clean.camera, rng), clean.masks
