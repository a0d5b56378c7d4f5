"""Perlin's gradient noise (K. Perlin, An image synthesizer, 1985; the quintic fade of 2002)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["perlin_noise"]


def perlin_noise(
    rng: np.random.Generator, height: int, width: int, period_y_px: float, period_x_px: float
) -> NDArray[np.float32]:
    """Noise as float32 [height, width], about -0.7 to 0.7, zero on a lattice of the given periods in pixels.

    The value at (y, x) is the fade-weighted sum, over the four lattice points around it, of gradient times offset. Fade
    and offset are functions of y times functions of x, so the sum over the whole picture is four matrix products.
    """
    fade_y, offset_y = _lattice_weights(height, period_y_px)
    fade_x, offset_x = _lattice_weights(width, period_x_px)
    angle = rng.uniform(0, 2 * np.pi, (fade_y.shape[1], fade_x.shape[1])).astype(np.float32)
    noise = fade_y @ np.cos(angle) @ offset_x.T + offset_y @ np.sin(angle) @ fade_x.T
    return np.asarray(noise, np.float32)


def _lattice_weights(n_px: int, period_px: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For each pixel and lattice line along one axis: the fade weight, and that weight times the offset in periods."""
    position = (np.arange(n_px, dtype=np.float32) + 0.5) / period_px
    cell = position.astype(np.int64)
    t = position - cell
    fade = t * t * t * (t * (6 * t - 15) + 10)
    weights = np.zeros((n_px, int(cell[-1]) + 2), np.float32)
    offsets = np.zeros_like(weights)
    pixel = np.arange(n_px)
    weights[pixel, cell], weights[pixel, cell + 1] = 1 - fade, fade
    offsets[pixel, cell], offsets[pixel, cell + 1] = (1 - fade) * t, fade * (t - 1)
    return weights, offsets
