"""What a scene is made of before it is lit: height, colour, metalness and gloss of each point seen from above.

Lengths named in *units* are fractions of the frame's width; heights are in render pixels, so that their plain
differences are slopes. A surface is drawn larger than the picture and scaled down by the camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["F32", "Box", "Surface", "coverage", "disc", "grain", "local_grid", "ramp", "rounded_box", "smooth_field"]

F32 = NDArray[np.float32]
Box = tuple[slice, slice]
Shape = NDArray[np.floating[Any]]


@dataclass
class Surface:
    """``height``, ``metal``, ``gloss`` are float32 ``[n, n]``, ``albedo`` float32 ``[3, n, n]`` (linear light, RGB).

    Colours are kept plane by plane because numpy is several times slower over a last axis of three.

    ``metal`` and ``gloss`` lie in 0..1; ``gloss`` sets how tight a highlight is.
    """

    height: F32
    albedo: F32
    metal: F32
    gloss: F32

    @classmethod
    def plain(cls, n: int, colour: Sequence[float], *, gloss: float = 0.2) -> "Surface":
        albedo = np.empty((3, n, n), np.float32)
        albedo[:] = np.asarray(colour, np.float32)[:, None, None]
        height, metal = np.zeros((2, n, n), np.float32)
        return cls(height, albedo, metal, np.full((n, n), gloss, np.float32))

    @property
    def side(self) -> int:
        return int(self.height.shape[0])

    def lay(
        self,
        box: Box,
        cover: F32,
        *,
        height: Shape | float | None = None,
        colour: Sequence[float] | Sequence[F32] | None = None,
        metal: float | None = None,
        gloss: float | None = None,
    ) -> None:
        """Blend a material over ``box`` with the weight ``cover`` (float32 ``[h, w]``, 0..1); None leaves a layer."""
        if height is not None:
            layer = self.height[box]
            layer += cover * (np.asarray(height, np.float32) - layer)
        if colour is not None:
            for plane, tint in zip(self.albedo, colour, strict=True):
                part = plane[box]
                part += cover * (np.asarray(tint, np.float32) - part)
        for layer, value in ((self.metal, metal), (self.gloss, gloss)):
            if value is not None:
                part = layer[box]
                part += cover * (np.float32(value) - part)


def local_grid(
    n: int, centre: tuple[float, float], reach: float | tuple[float, float], angle_rad: float = 0.0
) -> tuple[Box, F32, F32]:
    """The surroundings of ``centre`` (x, y in units) and their coordinates in a turned frame.

    ``reach`` is half the side of a square, or the half width and half height of a box in the turned frame (units).

    Returns the box in render pixels, clipped to the frame, and ``u, v`` float32 ``[h, w]`` in units.
    """
    x, y = centre
    c, s = float(np.cos(angle_rad)), float(np.sin(angle_rad))
    if isinstance(reach, tuple):
        reach_x, reach_y = abs(c) * reach[0] + abs(s) * reach[1], abs(s) * reach[0] + abs(c) * reach[1]
    else:
        reach_x = reach_y = reach
    x0, x1 = (min(max(int(np.floor((x + side * reach_x) * n)) + (side > 0), 0), n) for side in (-1, 1))
    y0, y1 = (min(max(int(np.floor((y + side * reach_y) * n)) + (side > 0), 0), n) for side in (-1, 1))
    dx = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / n - x)[None, :]
    dy = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / n - y)[:, None]
    u, v = np.asarray(dx * c + dy * s, np.float32), np.asarray(dy * c - dx * s, np.float32)
    return (slice(y0, y1), slice(x0, x1)), u, v


def rounded_box(u: Shape, v: Shape, half_width: float, half_height: float, radius: float = 0.0) -> F32:
    """Signed distance (units, negative inside) to a box with rounded corners."""
    qu, qv = np.abs(u) - np.float32(half_width - radius), np.abs(v) - np.float32(half_height - radius)
    outside = np.hypot(np.maximum(qu, 0), np.maximum(qv, 0))
    return np.asarray(outside + np.minimum(np.maximum(qu, qv), 0) - np.float32(radius), np.float32)


def disc(u: Shape, v: Shape, radius: float) -> F32:
    """Signed distance (units, negative inside) to a disc."""
    return np.asarray(np.hypot(u, v) - np.float32(radius), np.float32)


def coverage(distance: Shape, n: int) -> F32:
    """How much of each render pixel lies inside a shape, from its signed distance in units."""
    return np.asarray(np.clip(0.5 - distance * n, 0, 1), np.float32)


def ramp(x: Shape, low: float, high: float) -> F32:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.asarray(x, np.float32) - np.float32(low)
    t *= np.float32(1 / (high - low))
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


@lru_cache(maxsize=12)
def _noise_tile(side: int, sigma_px: float) -> F32:
    tile = np.random.default_rng(round(sigma_px * 1000)).standard_normal((side, side), dtype=np.float32)
    if sigma_px > 0:
        tile = np.asarray(cv2.GaussianBlur(tile, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT), np.float32)
    tile = np.asarray((tile - tile.mean()) / tile.std(), np.float32)
    tile.setflags(write=False)
    return tile


def grain(rng: np.random.Generator, n: int, sigma_px: float = 0.0) -> F32:
    """Noise float32 ``[n, n]`` of zero mean, unit spread and grain size ``sigma_px`` (render pixels).

    A random, randomly turned window of one fixed sheet: drawing fresh normals for every layer of every picture would
    take longer than lighting it.
    """
    side = n + max(n // 2, 128) if n <= 1280 else n + 256
    oy, ox = rng.integers(0, side - n + 1, 2)
    window = _noise_tile(side, sigma_px)[oy : oy + n, ox : ox + n]
    turns = int(rng.integers(0, 8))
    window = np.rot90(window, turns % 4)
    return np.ascontiguousarray(window.T if turns >= 4 else window)


def smooth_field(rng: np.random.Generator, n: int, cells: int) -> F32:
    """Slowly varying noise float32 ``[n, n]`` of about unit spread, with ``cells`` knots across the frame."""
    knots = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    pad = n // (cells + 1)
    field = cv2.resize(knots, (n + 2 * pad, n + 2 * pad), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(field[pad : pad + n, pad : pad + n], np.float32)
