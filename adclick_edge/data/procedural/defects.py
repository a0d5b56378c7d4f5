"""Synthetic defects for procedural pictures, each with the mask of the pixels it visibly changed."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.procedural.fields import Field, log_uniform, value_noise
from adclick_edge.data.procedural.textures import random_texture

__all__ = ["DEFECTS", "spoil"]

_VISIBLE = 0.03  # of full scale, largest channel
_MIN_PIXELS = 20
_TRIES = 8


def spoil(rgb: Field, rng: np.random.Generator, kinds: tuple[str, ...] = ()) -> tuple[Field, npt.NDArray[np.bool_]]:
    """A copy of ``rgb`` (float32 [H, W, 3] in 0..1) with one to three defects, and their mask (bool [H, W]).

    ``kinds``: names from DEFECTS to choose from, all when empty. The mask may be empty when a picture hides all tries.
    """
    names = kinds or tuple(DEFECTS)
    spoiled, mask = rgb, np.zeros(rgb.shape[:2], np.bool_)
    wanted, done = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])), 0
    for _ in range(_TRIES):
        name = str(rng.choice(names))
        changed = np.clip(DEFECTS[name](spoiled, rng), 0, 1)
        visible = np.abs(changed - spoiled).max(-1) > _VISIBLE
        closed = cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype(bool)
        pixels = int(closed.sum())
        if _MIN_PIXELS <= pixels <= 0.25 * closed.size:
            spoiled, mask, done = np.asarray(changed, np.float32), mask | closed, done + 1
            if done == wanted:
                break
    return spoiled, mask


def _blob(rgb: Field, rng: np.random.Generator, largest: float = 0.22) -> Field:
    """A soft-edged blob, float32 [H, W, 1] in 0..1: an ellipse with a noisy rim, anywhere in the picture."""
    height, width = rgb.shape[:2]
    radius_px = min(height, width) * log_uniform(rng, 0.015, largest)
    squeeze, turn = rng.uniform(0.3, 1), rng.uniform(0, np.pi)
    cy, cx = rng.uniform(0.05, 0.95, 2) * (height, width)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(cy)
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(cx)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    distance = np.hypot((c * x + s * y) / np.float32(radius_px), (c * y - s * x) / np.float32(radius_px * squeeze))
    rough = np.float32(rng.uniform(0, 0.5)) * value_noise(rng, height, width, max(2.0, radius_px / 2))
    hard = np.float32(log_uniform(rng, 2, 20))
    return np.asarray(np.clip((1 - distance + rough) * hard, 0, 1), np.float32)[:, :, None]


def _line(rgb: Field, rng: np.random.Generator, wander: float, thickness_px: int) -> Field:
    """A thin curve of random length, float32 [H, W, 1] in 0..1."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    steps = int(rng.integers(6, 24))
    step_px = side * log_uniform(rng, 0.08, 0.8) / steps
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wander, steps))
    moves = step_px * np.stack([np.cos(heading), np.sin(heading)], -1)
    points = rng.uniform(0.1, 0.9, 2) * (width, height) + np.cumsum(moves, 0)
    canvas = np.zeros((height, width), np.uint8)
    cv2.polylines(canvas, [np.round(points * 8).astype(np.int32)], False, 255, thickness_px, cv2.LINE_AA, 3)
    return np.asarray(canvas, np.float32)[:, :, None] / np.float32(255)


def _shade(rng: np.random.Generator) -> Field:
    """A brightness step of either sign, in half of the cases with a tint: float32 [3]."""
    step = rng.choice([-1, 1]) * log_uniform(rng, 0.06, 0.5)
    tint = rng.normal(0, 0.5 * abs(step), 3) if rng.random() < 0.5 else np.zeros(3)
    return np.asarray(step + tint, np.float32)


def _foreign(rgb: Field, rng: np.random.Generator) -> Field:
    other = random_texture(rng, rgb.shape[0], rgb.shape[1])
    if rng.random() < 0.5:  # same brightness, only another pattern
        other = other - other.mean((0, 1)) + rgb.mean((0, 1))
    return rgb + np.float32(rng.uniform(0.4, 1)) * _blob(rgb, rng) * (other - rgb)


def _scratch(rgb: Field, rng: np.random.Generator) -> Field:
    return rgb + _line(rgb, rng, rng.uniform(0, 0.1), int(rng.integers(1, 4))) * _shade(rng)


def _crack(rgb: Field, rng: np.random.Generator) -> Field:
    dark = _line(rgb, rng, rng.uniform(0.3, 0.9), int(rng.integers(1, 4)))
    return rgb * (1 - np.float32(log_uniform(rng, 0.2, 0.8)) * dark)


def _spot(rgb: Field, rng: np.random.Generator) -> Field:
    colour = rng.uniform(0, 1, 3) if rng.random() < 0.3 else np.full(3, rng.uniform(0, 1))
    return rgb + np.float32(rng.uniform(0.3, 1)) * _blob(rgb, rng, 0.08) * (colour.astype(np.float32) - rgb)


def _stain(rgb: Field, rng: np.random.Generator) -> Field:
    return rgb + _blob(rgb, rng) * _shade(rng)


def _smear(rgb: Field, rng: np.random.Generator) -> Field:
    """The pattern wiped away, all round or in one direction."""
    size = int(rng.integers(3, 12)) * 2 + 1
    kernel = np.ones((size, size), np.float32) if rng.random() < 0.5 else np.ones((1, size), np.float32)
    return rgb + _blob(rgb, rng) * (cv2.filter2D(rgb, -1, kernel / kernel.sum()) - rgb)


def _dent(rgb: Field, rng: np.random.Generator) -> Field:
    """A bump or a hollow: light on one side, shade on the other."""
    blob = _blob(rgb, rng)[:, :, 0]
    smooth = cv2.GaussianBlur(blob, (0, 0), log_uniform(rng, 1, 5))
    turn, strength = rng.uniform(0, 2 * np.pi), log_uniform(rng, 0.5, 3)
    dy, dx = np.gradient(smooth)
    light = np.float32(strength) * (np.float32(np.cos(turn)) * dx + np.float32(np.sin(turn)) * dy)
    return rgb + np.asarray(light, np.float32)[:, :, None]


def _misplaced(rgb: Field, rng: np.random.Generator) -> Field:
    """A piece of the same picture, turned, mirrored or enlarged, where it does not belong."""
    height, width = rgb.shape[:2]
    angle_deg = float(rng.choice([0, 90, 180, rng.uniform(0, 360)]))
    zoom = float(rng.choice([1.0, log_uniform(rng, 0.5, 2)]))
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, zoom), np.float64)
    matrix[:, 2] += rng.uniform(-0.3, 0.3, 2) * (width, height)
    moved = cv2.warpAffine(rgb, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return rgb + _blob(rgb, rng) * (moved - rgb)


def _bent(rgb: Field, rng: np.random.Generator) -> Field:
    """The pattern pulled out of shape by some pixels."""
    height, width = rgb.shape[:2]
    blob = _blob(rgb, rng)[:, :, 0]
    pull = rng.normal(0, 1, 2) * log_uniform(rng, 2, 10)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    soft = cv2.GaussianBlur(blob, (0, 0), 3)
    map_x, map_y = x + np.float32(pull[0]) * soft, y + np.float32(pull[1]) * soft
    moved = cv2.remap(rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.float32)


def _noisy(rgb: Field, rng: np.random.Generator) -> Field:
    """Corrosion, dust: fine noise where there was none."""
    height, width = rgb.shape[:2]
    noise = value_noise(rng, height, width, log_uniform(rng, 1.0, 6))
    return rgb + np.float32(log_uniform(rng, 0.08, 0.5)) * _blob(rgb, rng) * noise[:, :, None]


DEFECTS: dict[str, Callable[[Field, np.random.Generator], Field]] = {
    "foreign": _foreign,
    "scratch": _scratch,
    "crack": _crack,
    "spot": _spot,
    "stain": _stain,
    "smear": _smear,
    "dent": _dent,
    "misplaced": _misplaced,
    "bent": _bent,
    "noisy": _noisy,
}
