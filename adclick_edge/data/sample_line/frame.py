"""One frame of the sample line: draw, light, photograph, and mark what a defect changed."""

from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .aligned import BOARD_KINDS, draw_board
from .camera import Camera, Light, add_noise, expose, shade, to_levels
from .defects import Finish
from .rotated import FLANGE_KINDS, draw_flange
from .surface import F32, Surface
from .texture import FABRIC_KINDS, draw_fabric

__all__ = [
    "DRAW",
    "LEAST_AREA",
    "MASK_LEVELS",
    "PRODUCTS",
    "SIDE_LIMITS",
    "NoiseFree",
    "as_frame",
    "check_size",
    "render_frame",
    "render_noise_free",
    "render_side",
    "shrunk_footprint",
]

MASK_LEVELS = 6.0
"""A pixel is defective where the defect changes the noise-free picture by more than this many grey levels of 255."""

SIDE_LIMITS = (64, 2048)

_OVERSAMPLING = 1.5
_ATTEMPTS = 6
LEAST_AREA = 4e-4  # of the frame: 41 pixels of a picture of 320 x 320


class Draw(Protocol):
    def __call__(
        self,
        scene: np.random.Generator,
        n: int,
        kind: str | None,
        flaw: np.random.Generator,
        strength: float,
        finish: Finish | None = None,
    ) -> tuple[Surface, NDArray[np.bool_] | None]: ...


DRAW: dict[str, Draw] = {"fabric": draw_fabric, "board": draw_board, "flange": draw_flange}

PRODUCTS: dict[str, tuple[str, ...]] = {"fabric": FABRIC_KINDS, "board": BOARD_KINDS, "flange": FLANGE_KINDS}
"""The defect kinds of each product; every product also has the kind ``"good"``."""


@dataclass(frozen=True)
class NoiseFree:
    """A frame before the sensor's noise, and the same part under the same light without its defect.

    ``picture`` and ``reference`` are grey levels 0..255, float32 ``[3, size, size]``; ``linear`` is the picture's
    light, likewise; ``mask`` and ``footprint`` are bool ``[size, size]``. ``footprint`` is where a missing or swapped
    part belongs, and empty for structural defects.
    """

    picture: F32
    reference: F32
    linear: F32
    mask: NDArray[np.bool_]
    footprint: NDArray[np.bool_]
    camera: Camera


def check_size(size: int) -> None:
    low, high = SIDE_LIMITS
    if not low <= size <= high:
        raise UsageError(f"picture size {size} is outside {low}..{high} pixels; choose a size in between")


def render_side(size: int) -> int:
    """Side, in render pixels, of the surface a picture of ``size`` is taken of; even: shadows are traced at half of it."""
    return 2 * round(size * _OVERSAMPLING / 2)


def shrunk_footprint(part: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A part's place bool ``[n, n]`` at the picture's size."""
    small = cv2.resize(part.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(small > 0.5)


def as_frame(linear: F32, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the sensor makes of light float32 ``[3, size, size]``: uint8 ``[size, size, 3]``, with its noise."""
    levels = to_levels(add_noise(linear, camera, rng))
    frame = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(frame.transpose(1, 2, 0))


def _check(product: str, kind: str, split: str, size: int, seed: int, index: int) -> None:
    check_size(size)
    if product not in PRODUCTS:
        raise UsageError(f"the sample line makes no product {product!r}; choose from {', '.join(sorted(PRODUCTS))}")
    if kind != "good" and kind not in PRODUCTS[product]:
        raise UsageError(
            f"product {product!r} has no kind {kind!r}; choose from good, {', '.join(sorted(PRODUCTS[product]))}"
        )
    if split not in ("train", "test"):
        raise UsageError(f"split {split!r} is neither 'train' nor 'test'")
    if seed < 0 or index < 0:
        raise UsageError(f"seed {seed} and index {index} must both be 0 or more")


def render_noise_free(
    product: str, *, seed: int, index: int, kind: str = "good", split: str = "test", size: int = 320
) -> NoiseFree:
    """Render a frame and its defect-free twin without sensor noise.

    Raises UsageError for an unknown product, kind or split, and for a size outside 64..2048.
    """
    _check(product, kind, split, size, seed, index)
    n = render_side(size)
    draw = DRAW[product]

    def stream(*key: int) -> np.random.Generator:
        names = [crc32(name.encode()) for name in (product, split, kind)]
        return np.random.default_rng(np.random.SeedSequence([seed, index, *names], spawn_key=key))

    setup = stream(1)
    light, camera = Light.random(setup), Camera.random(setup)

    def photograph(surface: Surface) -> tuple[F32, F32]:
        linear = expose(shade(surface, light), camera, size)
        return linear, to_levels(linear)

    nothing = np.zeros((size, size), np.bool_)
    linear, reference = photograph(draw(stream(0), n, None, stream(2), 1.0)[0])
    if kind == "good":
        return NoiseFree(reference, reference, linear, nothing, nothing, camera)
    # A random defect can come out too small or too faint to be seen: draw another, a little stronger.
    for attempt in range(_ATTEMPTS):
        surface, part = draw(stream(0), n, kind, stream(2, attempt), 1.0 + 0.25 * attempt)
        linear, picture = photograph(surface)
        changed = np.abs(picture - reference).max(axis=0) > MASK_LEVELS
        if changed.sum() >= LEAST_AREA * size * size:
            break
    footprint = nothing
    if part is not None:
        footprint = shrunk_footprint(part, size)
    return NoiseFree(picture, reference, linear, changed | footprint, footprint, camera)


def render_frame(
    product: str, *, seed: int, index: int, kind: str = "good", split: str = "test", size: int = 320
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One picture and its mask: uint8 ``[size, size, 3]`` RGB and bool ``[size, size]``.

    The result depends on the arguments alone. Raises UsageError for an unknown product, kind or split, and for a size
    outside 64..2048.
    """
    clean = render_noise_free(product, seed=seed, index=index, kind=kind, split=split, size=size)
    names = [crc32(name.encode()) for name in (product, split, kind)]
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, *names], spawn_key=(3,)))
    return as_frame(clean.linear, clean.camera, rng), clean.mask
