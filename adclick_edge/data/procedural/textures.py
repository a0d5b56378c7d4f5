"""Textures: height fields given colour, light and wear. Needs numpy and OpenCV only.

A *material* is a seed. Pieces of one material share its pattern, colours and light but not their noise, which is what
pictures of normal products have in common.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from adclick_edge.data.procedural.fields import FAMILIES, Field, Grid, log_uniform, standardised, value_noise
from adclick_edge.errors import UsageError

__all__ = ["Piece", "material_family", "material_piece", "random_texture"]

_NAMES = tuple(FAMILIES)


@dataclass(frozen=True)
class Piece:
    """A piece of a material.

    ``rgb``: float32 [H, W, 3] in 0..1. ``relief``: float32 [H, W], its height field, mean 0 and deviation 1.
    ``family``: index of the main pattern in ``fields.FAMILIES``. ``angle_rad``: its direction.
    """

    rgb: Field
    relief: Field
    family: int
    angle_rad: float


def random_texture(rng: np.random.Generator, height: int, width: int) -> Field:
    """A texture of a random material: float32 [height, width, 3] in 0..1, RGB. Raises UsageError for an empty size."""
    return material_piece(int(rng.integers(2**63)), rng, height, width).rgb


def material_piece(material: int, detail: np.random.Generator, height: int, width: int) -> Piece:
    """A piece of the material numbered ``material``, its noise and position drawn from ``detail``.

    Raises UsageError when ``height`` or ``width`` is below 1.
    """
    if height < 1 or width < 1:
        raise UsageError(f"a texture of {height} x {width} pixels was asked for; both sides must be at least 1")
    style = np.random.default_rng(material)
    family = _family(style)
    angle_rad = float(style.choice([0.0, np.pi / 2]) if style.random() < 0.3 else style.uniform(0, np.pi))
    relief = _field(_NAMES[family], style, detail, height, width, angle_rad)
    if style.random() < 0.45:
        second, weight = str(style.choice(_NAMES)), np.float32(style.uniform(0.1, 0.7))
        turned = angle_rad + float(style.uniform(0, np.pi))
        relief = standardised(relief + weight * _field(second, style, detail, height, width, turned))
    return Piece(_coloured(relief, style, detail), relief, family, angle_rad)


def material_family(material: int) -> int:
    """Index in ``fields.FAMILIES`` of the main pattern of a material."""
    return _family(np.random.default_rng(material))


def _family(style: np.random.Generator) -> int:
    return int(style.integers(len(_NAMES)))


def _field(
    name: str, style: np.random.Generator, detail: np.random.Generator, height: int, width: int, angle_rad: float
) -> Field:
    u_px, v_px = detail.uniform(0, 256, 2)
    grid = Grid(height, width, angle_rad, float(u_px), float(v_px))
    return standardised(FAMILIES[name](style, detail, grid))


def _coloured(relief: Field, style: np.random.Generator, detail: np.random.Generator) -> Field:
    """Relief -> RGB: a palette along the height, light from one side, uneven lighting, sensor grain."""
    palette, lift = _palette(style), style.uniform(-0.1, 0.1)
    shade, light_rad = style.uniform(0, 0.25) * (style.random() < 0.6), style.uniform(0, 2 * np.pi)
    uneven, grain = style.uniform(0, 0.12), style.uniform(0, 0.03)
    level = np.clip(relief * np.float32(42.5) + np.float32(127.5), 0, 255).astype(np.uint8)
    rgb = np.asarray(cv2.LUT(cv2.merge([level, level, level]), palette), np.float32)
    height, width = relief.shape
    extra = np.full((height, width), np.float32(lift), np.float32)
    if shade > 0:
        kernel = np.float32(shade) * _light_kernel(light_rad)
        extra += np.clip(cv2.filter2D(relief, cv2.CV_32F, kernel), -0.4, 0.4)
    if uneven > 0.02:
        extra += np.float32(uneven) * value_noise(detail, height, width, log_uniform(style, 80, 400))
    if grain > 0.003:
        extra += np.float32(grain) * detail.standard_normal((height, width), np.float32)
    rgb += extra[:, :, None]
    return np.clip(rgb, 0, 1, out=rgb)


def _light_kernel(light_rad: float) -> Field:
    dx = np.array([[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]], np.float32)
    return np.float32(np.cos(light_rad)) * dx + np.float32(np.sin(light_rad)) * dx.T


def _palette(style: np.random.Generator) -> Field:
    """Colours by height, float32 [1, 256, 3]: two to four stops; near grey in half of the materials."""
    stops = int(style.integers(2, 5))
    grey = style.random() < 0.5
    middle, contrast = style.uniform(0.15, 0.85), log_uniform(style, 0.06, 0.7)
    brightness = middle + contrast * style.uniform(-0.5, 0.5, (stops, 1))
    brightness[[0, -1]] += contrast * 0.35 * np.array([[-1], [1]]) * style.choice([-1, 1])
    tint = style.uniform(-0.03, 0.03, (1, 3)) if grey else style.uniform(-0.3, 0.3, (1, 3))
    spread = style.uniform(-1, 1, (stops, 3)) * (0.01 if grey else style.uniform(0, 0.25))
    colours = np.clip(brightness + tint + spread, 0, 1)
    at = np.linspace(0, 1, 256)
    knots = np.linspace(0.15, 0.85, stops)
    columns = [np.interp(at, knots, colours[:, channel]) for channel in range(3)]
    return np.stack(columns, -1).astype(np.float32)[None]
