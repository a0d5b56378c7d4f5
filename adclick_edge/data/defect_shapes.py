"""Where a synthetic defect lies: opacity maps of scratches, holes, stains and patches."""

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.data.perlin import perlin_noise

__all__ = ["blob_opacity", "patch_opacity", "perlin_region", "stain_opacity", "stroke_opacity"]

Opacity = NDArray[np.float32]  # [H, W], 0 to 1


def perlin_region(
    rng: np.random.Generator, height: int, width: int, *, around: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Thresholded Perlin noise of random scale and rotation (method section 3), as bool [height, width].

    With ``around`` (y, x) only what lies near that point is kept: most real defects are in one place.
    """
    finest = max(min(height, width) // 20, 4)
    period_y, period_x = finest * 2.0 ** rng.uniform(0, 3.5, 2)
    noise = perlin_noise(rng, height, width, period_y, period_x)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-90, 90), 1.0)
    noise = cv2.warpAffine(noise, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[assignment]
    # A share of the area rather than a fixed level: the range of the noise depends on how many periods there are.
    level = np.quantile(noise[:: max(height // 64, 1), :: max(width // 64, 1)], 1 - 10 ** rng.uniform(-1.7, -0.6))
    region = np.asarray(noise > level)
    if around is not None:
        region &= _bell(rng, height, width, around, relative_radius=rng.uniform(0.05, 0.25)) > 0.3
    return region


def stroke_opacity(
    rng: np.random.Generator, height: int, width: int, at: tuple[int, int], *, thickness_px: int
) -> Opacity:
    """A thin curved line through ``at`` (y, x), sometimes branching as cracks do; opacity [height, width]."""
    n_steps = 24
    step_px = min(height, width) * rng.uniform(0.1, 0.7) / n_steps
    wildness_rad = rng.choice([0.03, 0.15, 0.5])  # a scratch, a bent scratch, a crack
    canvas = np.zeros((height, width), np.uint8)

    def draw(start_yx: NDArray[np.float64], heading_rad: float, steps: int, thickness: int) -> NDArray[np.float64]:
        headings = heading_rad + np.cumsum(rng.normal(0, wildness_rad, steps))
        moves = step_px * np.stack([np.sin(headings), np.cos(headings)], axis=1)
        path_yx = start_yx + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
        points = np.round(path_yx[:, ::-1] * 16).astype(np.int32)  # 4 fractional bits
        cv2.polylines(canvas, [points[:, None]], False, 255, thickness, cv2.LINE_AA, 4)
        return np.asarray(path_yx)

    heading = rng.uniform(0, 2 * np.pi)
    start = np.asarray(at, np.float64)
    draw(start, heading + np.pi, n_steps // 2, thickness_px)
    trunk = draw(start, heading, n_steps // 2, thickness_px)
    for _ in range(int(rng.integers(0, 4)) if wildness_rad > 0.3 else 0):
        fork = trunk[rng.integers(len(trunk))]
        draw(fork, heading + rng.uniform(-1.5, 1.5), n_steps // 4, max(thickness_px - 1, 1))
    return canvas * np.float32(1 / 255)


def blob_opacity(
    rng: np.random.Generator, height: int, width: int, at: tuple[int, int], *, radius_px: float
) -> Opacity:
    """One to five specks of up to ``radius_px`` around ``at`` (y, x); opacity [height, width]."""
    canvas = np.zeros((height, width), np.uint8)
    y, x = at
    for i in range(int(rng.choice([1, 1, 1, 2, 3, 5]))):
        radius = radius_px * (1 if i == 0 else rng.uniform(0.3, 1))
        axes = (max(round(16 * radius), 12), max(round(16 * radius * rng.uniform(0.5, 1)), 12))
        centre = (round(16 * x), round(16 * y))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, 4)
        y, x = y + rng.normal(0, 3 * radius_px), x + rng.normal(0, 3 * radius_px)  # type: ignore[assignment]
    return canvas * np.float32(1 / 255)


def stain_opacity(rng: np.random.Generator, height: int, width: int, at: tuple[int, int]) -> Opacity:
    """A soft uneven spot around ``at`` (y, x); opacity [height, width]."""
    bell = _bell(rng, height, width, at, relative_radius=rng.uniform(0.04, 0.25))
    period = max(min(height, width) * rng.uniform(0.05, 0.3), 4.0)
    uneven = 1 + 1.2 * perlin_noise(rng, height, width, period, period)
    return np.asarray(np.clip(bell * uneven, 0, 1), np.float32)


def patch_opacity(rng: np.random.Generator, height: int, width: int, at: tuple[int, int]) -> Opacity:
    """A round patch around ``at`` (y, x), full inside, with a soft edge; opacity [height, width]."""
    bell = _bell(rng, height, width, at, relative_radius=rng.uniform(0.03, 0.12))
    return np.asarray(np.clip(3 * bell - 0.75, 0, 1), np.float32)


def _bell(
    rng: np.random.Generator, height: int, width: int, at: tuple[int, int], *, relative_radius: float
) -> NDArray[np.float32]:
    """A turned, stretched Gaussian bell of height 1 around ``at``; radius relative to the shorter side."""
    radius_px = max(relative_radius * min(height, width), 3.0)
    stretch, turn = rng.uniform(0.4, 1), rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None] - at[0]
    x = np.arange(width, dtype=np.float32)[None, :] - at[1]
    along = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
    across = np.float32(np.cos(turn)) * y - np.float32(np.sin(turn)) * x
    distance2 = (along / np.float32(radius_px)) ** 2 + (across / np.float32(radius_px * stretch)) ** 2
    bell: NDArray[np.float32] = cv2.exp(-0.5 * distance2)  # type: ignore[assignment]
    return bell
