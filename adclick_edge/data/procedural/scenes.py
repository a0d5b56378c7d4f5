"""Scenes: worlds of procedural products, each able to give any number of normal pictures of itself.

A world fixes materials, shapes and their arrangement; a picture of it differs from the next as two good parts do: other
noise, other position by a few pixels, slightly other light. Some worlds are one endless material, some are parts lying
on a ground, some are quilts of several materials.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.procedural.fields import Field, log_uniform, standardised, value_noise
from adclick_edge.data.procedural.textures import Piece, material_family, material_piece

__all__ = ["MAX_REGIONS", "Picture", "World"]

MAX_REGIONS = 5


@dataclass(frozen=True)
class Picture:
    """A normal picture of a world.

    ``rgb``: float32 [H, W, 3] in 0..1. ``regions``: uint8 [H, W], which of the world's materials each pixel shows.
    ``relief``: float32 [H, W], the height field of that material.
    """

    rgb: Field
    regions: npt.NDArray[np.uint8]
    relief: Field


@dataclass(frozen=True)
class _Part:
    """A shape on the ground: outline as radius over angle, in units of the picture's shorter side."""

    x: float
    y: float
    radius: npt.NDArray[np.float64]
    squeeze: float
    turn_rad: float
    hole: float
    bevel: float
    shadow: float


class World:
    """The world numbered ``seed``. ``families``: the pattern family of each of its materials."""

    def __init__(self, seed: int) -> None:
        style = np.random.default_rng(seed)
        self.seed = seed
        self.kind = str(style.choice(["material", "parts", "quilt"], p=[0.5, 0.3, 0.2]))
        count = {"material": 1, "parts": int(style.integers(2, 5)), "quilt": int(style.integers(2, MAX_REGIONS + 1))}
        self.materials = [int(style.integers(2**63)) for _ in range(count[self.kind])]
        self._parts = [_part(style) for _ in self.materials[1:]] if self.kind == "parts" else []
        self._rotates = bool(style.random() < 0.2)
        self._jitter = float(style.choice([0.0, 0.01, 0.03]))
        self._light, self._blur_px = style.uniform(0, 0.06), float(style.choice([0.0, 0.6, 1.0]))
        self._quilt_cell, self._quilt_fixed = log_uniform(style, 0.2, 0.6), bool(style.random() < 0.5)
        self._grey = bool(style.random() < 0.35)
        self.families = [material_family(m) for m in self.materials]

    def picture(self, detail: np.random.Generator, height: int, width: int) -> Picture:
        """A normal picture of ``height`` x ``width`` pixels."""
        ground = material_piece(self.materials[0], detail, height, width)
        rgb, relief = ground.rgb, ground.relief
        regions = np.zeros((height, width), np.uint8)
        if self.kind == "parts":
            angle = float(detail.uniform(0, 2 * np.pi)) if self._rotates else float(detail.normal(0, self._jitter))
            shift = detail.normal(0, self._jitter / 2, 2)
            for number, part in enumerate(self._parts, 1):
                piece = material_piece(self.materials[number], detail, height, width)
                rgb, relief = _lay(rgb, relief, regions, number, part, piece, angle, (shift[0], shift[1]))
        elif self.kind == "quilt":
            regions = self._quilt(detail, height, width)
            for number in range(1, len(self.materials)):
                piece = material_piece(self.materials[number], detail, height, width)
                inside = regions == number
                rgb[inside], relief = piece.rgb[inside], np.where(inside, piece.relief, relief)
        gain, lift = 1 + self._light * detail.uniform(-1, 1), self._light * detail.uniform(-0.5, 0.5)
        rgb = rgb * np.float32(gain) + np.float32(lift)
        if self._blur_px > 0:
            rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), self._blur_px), np.float32)
        if self._grey:
            rgb = np.repeat(rgb.mean(-1, keepdims=True), 3, -1)
        return Picture(np.clip(rgb, 0, 1), regions, relief)

    def _quilt(self, detail: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Which material lies where: the highest of as many slow noise fields."""
        layout = np.random.default_rng(self.seed + 1) if self._quilt_fixed else detail
        cell_px = self._quilt_cell * min(height, width)
        fields = [standardised(value_noise(layout, height, width, cell_px)) for _ in self.materials]
        return np.asarray(np.argmax(np.stack(fields), 0), np.uint8)


def _part(style: np.random.Generator) -> _Part:
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    form = int(style.integers(4))
    if form == 0:
        radius = np.ones(96)
    elif form == 1:  # regular polygon
        sides = int(style.integers(3, 9))
        radius = np.cos(np.pi / sides) / np.cos(np.mod(angles, 2 * np.pi / sides) - np.pi / sides)
    elif form == 2:  # gear
        teeth, depth = int(style.integers(5, 20)), style.uniform(0.05, 0.25)
        radius = 1 + depth * np.tanh(4 * np.sin(teeth * angles))
    else:
        waves = style.normal(0, 0.12, (4, 1)) / np.arange(1, 5)[:, None]
        radius = 1 + (waves * np.cos(np.arange(1, 5)[:, None] * angles + style.uniform(0, 6.3, (4, 1)))).sum(0)
    hole = style.uniform(0.2, 0.7) * (style.random() < 0.3)
    return _Part(
        x=style.uniform(0.2, 0.8),
        y=style.uniform(0.2, 0.8),
        radius=radius * log_uniform(style, 0.06, 0.4),
        squeeze=style.uniform(0.3, 1.0),
        turn_rad=style.uniform(0, 2 * np.pi),
        hole=hole,
        bevel=style.uniform(-0.3, 0.3) * (style.random() < 0.6),
        shadow=style.uniform(0, 0.5) * (style.random() < 0.4),
    )


def _lay(
    rgb: Field,
    relief: Field,
    regions: npt.NDArray[np.uint8],
    number: int,
    part: _Part,
    piece: Piece,
    angle_rad: float,
    shift: tuple[float, float],
) -> tuple[Field, Field]:
    """``rgb`` and ``relief`` with ``part`` laid on; ``regions`` is written in place."""
    height, width = regions.shape
    inside = _outline(part, height, width, angle_rad, shift)
    if part.shadow > 0:
        dark = np.roll(cv2.GaussianBlur(inside, (0, 0), 3), (4, 4), (0, 1))
        rgb = rgb * (1 - np.float32(part.shadow) * dark[:, :, None])
    surface = piece.rgb
    if part.bevel != 0:
        depth_px = cv2.distanceTransform((inside > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        rim = np.float32(part.bevel) * np.exp(-depth_px / 4)
        surface = surface + rim[:, :, None]
    alpha = inside[:, :, None]
    rgb = rgb + alpha * (surface - rgb)
    covered = inside > 0.5
    regions[covered] = number
    return np.asarray(rgb, np.float32), np.where(covered, piece.relief, relief)


def _outline(part: _Part, height: int, width: int, angle_rad: float, shift: tuple[float, float]) -> Field:
    """How much of each pixel the part covers, float32 [H, W] in 0..1; the whole arrangement turns by ``angle_rad``."""
    side = min(height, width)
    angles = np.linspace(0, 2 * np.pi, part.radius.size, endpoint=False)
    px, py = part.radius * np.cos(angles), part.squeeze * part.radius * np.sin(angles)
    c, s = np.cos(part.turn_rad + angle_rad), np.sin(part.turn_rad + angle_rad)
    outline = np.stack([c * px - s * py, s * px + c * py], -1)
    ca, sa = np.cos(angle_rad), np.sin(angle_rad)
    dx, dy = part.x - 0.5, part.y - 0.5
    offset = np.array([ca * dx - sa * dy + shift[0], sa * dx + ca * dy + shift[1]])
    centre = np.array([width / 2, height / 2]) + side * offset
    canvas = np.zeros((height, width), np.uint8)
    polygons = [(centre + side * outline, 255)] + ([(centre + side * part.hole * outline, 0)] if part.hole > 0 else [])
    for polygon, value in polygons:
        cv2.fillPoly(canvas, [np.round(polygon * 8).astype(np.int32)], value, cv2.LINE_AA, 3)
    return np.asarray(canvas, np.float32) / np.float32(255)
