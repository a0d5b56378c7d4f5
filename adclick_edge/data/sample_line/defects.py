"""Structural defects that can happen to any surface. Each changes the surface in place.

``region`` (bool ``[n, n]``) says where the part is, ``near`` (likewise, not empty) where in it the defect has its
middle: anywhere by default. ``strength`` near 1 scales contrast and depth. Sizes are units (fractions of the frame's
width) until they are drawn.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from .surface import F32, Surface, local_grid, ramp, smooth_field

__all__ = [
    "FULL_DEFECTS",
    "Finish",
    "Region",
    "contamination",
    "crack",
    "dent",
    "pick_point",
    "scratch",
    "stain",
    "wander",
]

Region = NDArray[np.bool_]
Finish = Callable[[Surface, Region], None]
"""What is drawn on a finished part; the region says where the part is."""


def pick_point(region: Region, rng: np.random.Generator, margin: float = 0.04) -> tuple[float, float]:
    """A random point (x, y in units) of the region, ``margin`` away from the frame's edge where possible."""
    n = region.shape[0]
    edge = round(margin * n)
    inner = np.zeros_like(region)
    inner[edge : n - edge, edge : n - edge] = region[edge : n - edge, edge : n - edge]
    spots = np.flatnonzero(inner if inner.any() else region)
    y, x = divmod(int(spots[rng.integers(0, len(spots))]), n)
    return (x + 0.5) / n, (y + 0.5) / n


def wander(
    rng: np.random.Generator, start: tuple[float, float], length: float, *, turn: float, steps: int, angle_rad: float
) -> NDArray[np.float64]:
    """A path ``[steps + 1, 2]`` in units whose heading drifts by ``turn`` radians per step, centred on ``start``."""
    heading = angle_rad + np.cumsum(rng.normal(0, turn, steps))
    step = length / steps
    path = np.concatenate([[[0.0, 0.0]], np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, 0)])
    return np.asarray(path - path.mean(0) + np.asarray(start))


def _stroke(n: int, path: NDArray[np.float64], width: float) -> F32:
    """Coverage float32 ``[n, n]`` of a polyline of ``width`` units."""
    canvas = np.zeros((n, n), np.uint8)
    points = np.round((path * n - 0.5) * 16).astype(np.int32)
    cv2.polylines(canvas, [points], False, 255, max(1, round(width * n)), cv2.LINE_AA, 4)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _soft(mask: F32, sigma_px: float) -> F32:
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma_px), np.float32)


def scratch(
    surface: Surface, region: Region, rng: np.random.Generator, strength: float, near: Region | None = None
) -> None:
    """One to three near-parallel grooves with a raised burr, bright on bare material."""
    n = surface.side
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.08, 0.42)
    centre = np.asarray(pick_point(region if near is None else near, rng, 0.1))
    width = rng.uniform(0.0025, 0.007)
    deep = strength * rng.uniform(0.5, 1.3)
    for k in range(int(rng.choice([1, 1, 2, 3]))):
        offset = rng.normal(0, 0.012, 2) if k else np.zeros(2)
        start = (float(centre[0] + offset[0]), float(centre[1] + offset[1]))
        reach = length * rng.uniform(0.6, 1) if k else length
        path = wander(rng, start, reach, turn=0.025, steps=24, angle_rad=angle)
        line = _stroke(n, path, width) * region
        # Pressure rises and falls along the stroke.
        line *= np.clip(0.75 + 0.35 * smooth_field(rng, n, 14), 0.15, 1)
        groove = _soft(line, 0.0016 * n)
        burr = _soft(line, 0.0042 * n)
        surface.height += np.float32(deep * 0.006 * n) * (0.8 * burr - 1.4 * groove)
        worn = np.minimum(groove * np.float32(0.85 * min(deep, 1.0)), 1)
        bare = surface.albedo.mean(axis=0) * 0.5 + (0.2 + 0.35 * surface.metal)
        surface.albedo += worn * (bare - surface.albedo)
        surface.gloss += worn * (0.25 - surface.gloss)


def crack(
    surface: Surface, region: Region, rng: np.random.Generator, strength: float, near: Region | None = None
) -> None:
    """A jagged dark line that may fork."""
    n = surface.side
    centre, angle, length = (
        pick_point(region if near is None else near, rng, 0.08),
        rng.uniform(0, 2 * np.pi),
        rng.uniform(0.07, 0.3),
    )
    path = wander(rng, centre, length, turn=0.5, steps=int(10 + 70 * length), angle_rad=angle)
    width = rng.uniform(0.002, 0.0055)
    line = _stroke(n, path, width)
    for _ in range(int(rng.integers(0, 3))):
        root = path[int(rng.integers(len(path) // 4, len(path)))]
        fork = wander(
            rng, (0, 0), length * rng.uniform(0.2, 0.45), turn=0.5, steps=9, angle_rad=angle + rng.normal(0, 1)
        )
        line = np.maximum(line, _stroke(n, fork - fork[0] + root, width * 0.6))
    line = _soft(line, 0.0011 * n) * region
    depth = strength * rng.uniform(0.55, 1.1)
    surface.height -= np.float32(depth * 0.006 * n) * line
    dark = np.minimum(line * np.float32(0.85 * depth), 0.95)
    surface.albedo *= 1 - dark
    surface.gloss *= 1 - dark


def dent(
    surface: Surface, region: Region, rng: np.random.Generator, strength: float, near: Region | None = None
) -> None:
    """A smooth bowl with a slight rim, or a few small ones."""
    n = surface.side
    count = int(rng.choice([1, 1, 1, 2, 3]))
    for _ in range(count):
        radius = rng.uniform(0.018, 0.06) / np.sqrt(count)
        centre = pick_point(region if near is None else near, rng, 0.08)
        box, u, v = local_grid(n, centre, 1.7 * radius, rng.uniform(0, np.pi))
        r2 = (u * u + (v * rng.uniform(1, 1.7)) ** 2) / np.float32(radius * radius)
        bowl = np.clip(1 - r2, 0, None) ** 2 - 0.18 * np.clip(1 - np.abs(r2 - 1.1) / 0.8, 0, None) ** 2
        deep = strength * rng.uniform(0.16, 0.42) * radius * n
        surface.height[box] -= np.asarray(deep * bowl * region[box], np.float32)


def stain(
    surface: Surface, region: Region, rng: np.random.Generator, strength: float, near: Region | None = None
) -> None:
    """A blotch with a feathered, uneven edge: oil (dark, glossy), rust or coffee (brown), or a pale residue."""
    n = surface.side
    radius = rng.uniform(0.022, 0.12)
    centre = pick_point(region if near is None else near, rng, 0.06)
    box, u, v = local_grid(n, centre, 2.0 * radius, rng.uniform(0, np.pi))
    edge = smooth_field(rng, n, int(rng.integers(9, 22)))[box]
    far = np.hypot(u, v * np.float32(rng.uniform(1, 1.8))) / np.float32(radius) + 0.28 * edge
    body = 1 - ramp(far, 0.62, 1.0)
    rim = body * (1 - body) * 4
    tint, wet = (
        ((0.30, 0.26, 0.20), 0.25),
        ((0.62, 0.38, 0.20), -0.20),
        ((0.55, 0.52, 0.46), 0.10),
        ((1.45, 1.40, 1.30), -0.10),
    )[int(rng.integers(0, 4))]
    weight = np.clip((body + 0.35 * rim) * region[box] * np.float32(strength * rng.uniform(0.35, 0.85)), 0, 1)
    patch = surface.albedo[:, box[0], box[1]]
    patch *= 1 + weight * (np.asarray(tint, np.float32)[:, None, None] - 1)
    np.clip(patch, 0, 0.95, out=patch)
    surface.gloss[box] = np.clip(surface.gloss[box] + weight * np.float32(wet), 0, 1)
    surface.metal[box] *= 1 - 0.6 * weight


def contamination(
    surface: Surface, region: Region, rng: np.random.Generator, strength: float, near: Region | None = None
) -> None:
    """Something lying on the part: a hair or fibre, or a scatter of chips and dust."""
    n = surface.side
    centre = pick_point(region if near is None else near, rng, 0.1)
    pale = rng.random() < 0.4
    shade = rng.uniform(0.45, 0.75) if pale else rng.uniform(0.01, 0.05)
    colour = (shade * rng.uniform(0.9, 1.1), shade, shade * rng.uniform(0.75, 1.0))
    if rng.random() < 0.6:
        path = wander(
            rng, centre, rng.uniform(0.12, 0.5), turn=rng.uniform(0.12, 0.3), steps=40, angle_rad=rng.uniform(0, np.pi)
        )
        body = np.minimum(_soft(_stroke(n, path, rng.uniform(0.0025, 0.006)), 0.0009 * n) * 1.25, 1)
        cover, lift = body * np.float32(min(0.9 * strength, 1)), 0.008 * n * body
    else:
        canvas = np.zeros((n, n), np.uint8)
        for _ in range(int(rng.integers(1, 7))):
            middle = np.asarray(centre) + rng.normal(0, 0.02, 2)
            spokes = np.sort(rng.uniform(0, 2 * np.pi, 7))
            arms = rng.uniform(0.003, 0.012) * rng.uniform(0.5, 1, 7)
            chip = middle + arms[:, None] * np.stack([np.cos(spokes), np.sin(spokes)], 1)
            cv2.fillPoly(canvas, [np.round((chip * n - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        cover = canvas.astype(np.float32) / np.float32(255)
        lift = _soft(cover, 0.002 * n) * np.float32(0.012 * n)
    surface.height += np.asarray(lift, np.float32)
    cover = np.asarray(cover, np.float32)
    surface.lay((slice(0, n), slice(0, n)), cover, colour=colour, metal=0.0, gloss=0.3)


FULL_DEFECTS = {
    "contamination": contamination,
    "crack": crack,
    "dent": dent,
    "scratch": scratch,
    "stain": stain,
}
"""Defects of a finished surface by kind; the others change how a product is drawn and live beside it."""
