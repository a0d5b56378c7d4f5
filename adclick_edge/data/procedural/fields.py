"""Height fields: the families of patterns that textures are made of.

Each family is a function ``(style, detail, grid) -> float32 [H, W]`` of no fixed range. ``style`` draws what makes two
pieces of one material alike (scale, direction, roughness), ``detail`` what differs between them (phase, the noise
itself). How much is drawn from ``style`` never depends on ``detail``, so a generator started anew with one seed gives
the same material every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["FAMILIES", "Field", "Grid", "log_uniform", "standardised", "value_noise"]

Field = npt.NDArray[np.float32]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def standardised(field: Field) -> Field:
    """``field`` shifted and scaled to mean 0 and standard deviation 1; a flat one becomes all zeros."""
    mean, std = cv2.meanStdDev(field)
    spread = float(std[0, 0])
    scale = 1.0 / spread if spread > 1e-6 else 0.0
    return np.asarray((field - np.float32(mean[0, 0])) * np.float32(scale), np.float32)


@dataclass(frozen=True)
class Grid:
    """Where a field is evaluated: ``height`` x ``width`` pixels, turned by ``angle_rad`` and shifted by an offset."""

    height: int
    width: int
    angle_rad: float
    offset_u_px: float
    offset_v_px: float

    @cached_property
    def uv(self) -> tuple[Field, Field]:
        """The turned and shifted coordinates of each pixel: two float32 [H, W], in pixels."""
        y = np.arange(self.height, dtype=np.float32)[:, None]
        x = np.arange(self.width, dtype=np.float32)[None, :]
        c, s = np.float32(np.cos(self.angle_rad)), np.float32(np.sin(self.angle_rad))
        return c * x + s * y + np.float32(self.offset_u_px), c * y - s * x + np.float32(self.offset_v_px)

    def bent(self, style: np.random.Generator, detail: np.random.Generator) -> tuple[Field, Field]:
        """``uv``, in half of the materials moved along by slow noise of up to a few pixels."""
        bend, cell_px, amount_px = style.random() < 0.5, log_uniform(style, 24, 96), log_uniform(style, 0.5, 8)
        u, v = self.uv
        if not bend:
            return u, v
        noise = amount_px * value_noise(detail, self.height, self.width, cell_px)
        return u + noise, v + noise


def value_noise(rng: np.random.Generator, height: int, width: int, cell_px: float, stretch: float = 1.0) -> Field:
    """Random values on a lattice of ``cell_px`` x ``cell_px * stretch``, cubically interpolated: float32 [H, W]."""
    rows, cols = int(height / cell_px) + 4, int(width / (cell_px * stretch)) + 4
    lattice = rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
    row0, col0 = rng.random(2) + 1
    matrix = np.array([[1 / (cell_px * stretch), 0, col0], [0, 1 / cell_px, row0]])
    return _warped(lattice, matrix, height, width)


def _warped(source: Field, matrix: npt.NDArray[np.float64], height: int, width: int) -> Field:
    # Not BORDER_REFLECT_101: OpenCV reflects for ever on a source of one pixel.
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.float32)


def _fractal(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    cell_px, octaves = log_uniform(style, 4, 96), int(style.integers(1, 6))
    gain, fold = style.uniform(0.35, 0.8), int(style.integers(4))
    total = np.zeros((grid.height, grid.width), np.float32)
    for octave in range(octaves):
        if cell_px < 1.5:
            break
        noise = value_noise(detail, grid.height, grid.width, cell_px)
        if fold == 1:
            noise = np.abs(noise)  # turbulence: billows
        elif fold == 2:
            noise = 1 - 2 * np.abs(noise)  # ridges
        total += np.float32(gain**octave) * noise
        cell_px /= 2
    return total


def _cracks(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    cell_px, sharpness, rough = log_uniform(style, 12, 80), log_uniform(style, 8, 40), style.uniform(0, 0.5)
    noise = value_noise(detail, grid.height, grid.width, cell_px)
    noise += np.float32(rough) * value_noise(detail, grid.height, grid.width, cell_px / 3)
    return -np.exp(-np.float32(sharpness) * np.abs(noise))


def _seeds(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> tuple[Field, npt.NDArray[np.int32]]:
    """Distance to the nearest of randomly placed points, in cells, and that point's number: two [H, W]."""
    cell_px, jitter = log_uniform(style, 5, 48), style.uniform(0.2, 1.0)
    rows, cols = int(grid.height / cell_px) + 1, int(grid.width / cell_px) + 1
    lattice = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    points = (lattice + 0.5 + jitter * detail.uniform(-0.7, 0.7, lattice.shape)) * cell_px
    points = np.clip(points.astype(np.intp), 0, [grid.height - 1, grid.width - 1])
    empty = np.full((grid.height, grid.width), 255, np.uint8)
    empty[points[:, 0], points[:, 1]] = 0
    distance, labels = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return np.asarray(distance, np.float32) / np.float32(cell_px), np.asarray(labels, np.int32)


def _cellular(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    distance, _ = _seeds(style, detail, grid)
    return np.power(distance, np.float32(log_uniform(style, 0.4, 2.5)))


def _crystals(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Flat cells of random height, with or without a rim between them."""
    rim, tilt = style.uniform(-1.5, 1.5) * (style.random() < 0.6), style.uniform(0, 1)
    distance, labels = _seeds(style, detail, grid)
    levels = detail.uniform(-1, 1, int(labels.max()) + 1).astype(np.float32)
    values = levels[labels] + np.float32(tilt) * distance
    if rim != 0:
        edges = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        values[edges] += np.float32(rim)
    return values


def _pitted(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    distance, labels = _seeds(style, detail, grid)
    share, radius, flat = style.uniform(0.1, 0.9), style.uniform(0.1, 0.45), style.random() < 0.5
    present = detail.random(int(labels.max()) + 1) < share
    size = detail.uniform(0.6, 1.3, present.size).astype(np.float32) * np.float32(radius)
    pit = np.clip(1 - distance / size[labels], 0, 1)
    return -np.where(present[labels], np.sqrt(pit) if flat else pit, 0).astype(np.float32)


def _weave(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Over-and-under threads; ``float_`` threads are crossed at a time, as in plain weave, twill and satin."""
    period_px, aspect = log_uniform(style, 4, 24), log_uniform(style, 0.6, 1.7)
    float_, step = int(style.integers(2, 5)), int(style.integers(1, 3))
    u, v = grid.bent(style, detail)
    u, v = u / np.float32(period_px), v / np.float32(period_px * aspect)
    column, row = np.floor(u), np.floor(v)
    warp_up = np.mod(column + step * row, float_) < 1
    across_u, across_v = np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v))
    return np.asarray(
        np.where(warp_up, across_u * (0.6 + 0.4 * across_v), across_v * (0.2 + 0.4 * across_u)).astype(np.float32),
        np.float32,
    )


def _knit(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    period_px, aspect, lean = log_uniform(style, 6, 28), log_uniform(style, 0.5, 1.5), style.uniform(0.3, 1.2)
    u, v = grid.bent(style, detail)
    u = u * np.float32(2 * np.pi / period_px)
    v = v * np.float32(2 * np.pi / (period_px * aspect))
    return np.sin(v + np.float32(2 * lean) * np.abs(np.sin(u / 2))) + np.float32(0.5) * np.abs(np.sin(u / 2))


def _brushed(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Long thin streaks along the grid's direction, as on ground or rolled metal."""
    cell_px, stretch, fine = log_uniform(style, 1.0, 4), log_uniform(style, 8, 64), style.uniform(0, 0.6)
    side = int(np.hypot(grid.height, grid.width)) + 2
    streaks = value_noise(detail, side, side, cell_px, stretch)
    streaks += np.float32(fine) * value_noise(detail, side, side, cell_px * 3, stretch)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(np.degrees(grid.angle_rad)), 1.0)
    turn[:, 2] += turn[:, :2] @ np.array([(side - grid.width) / 2, (side - grid.height) / 2])
    return _warped(streaks, np.asarray(turn, np.float64), grid.height, grid.width)


def _rings(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Year rings of wood cut off its centre, or turning marks on a lathe when nothing bends them."""
    period_px, squeeze, wobble = log_uniform(style, 5, 40), style.uniform(0.1, 1.0), style.uniform(0, 0.8)
    far_px, skew = style.uniform(0, 400), style.uniform(0, 0.9)
    u, v = grid.uv
    radius = np.hypot((u - np.float32(grid.offset_u_px)) * np.float32(squeeze), v + np.float32(far_px))
    noise = value_noise(detail, grid.height, grid.width, 40.0, 2.0)
    phase = radius / np.float32(period_px) + np.float32(wobble) * noise
    saw = np.mod(phase, 1)
    return np.asarray(
        np.where(saw < skew, saw / max(skew, 0.05), (1 - saw) / max(1 - skew, 0.05)).astype(np.float32), np.float32
    )


def _stripes(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    period_px, duty, hard = log_uniform(style, 3, 60), style.uniform(-0.8, 0.8), log_uniform(style, 0.5, 12)
    u, _ = grid.bent(style, detail)
    return np.asarray(
        np.tanh(np.float32(hard) * (np.sin(u * np.float32(2 * np.pi / period_px)) - np.float32(duty))), np.float32
    )


def _checks(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    period_px, aspect, hard = log_uniform(style, 6, 64), log_uniform(style, 0.5, 2), log_uniform(style, 1, 12)
    plaid = style.random() < 0.5
    u, v = grid.bent(style, detail)
    a = np.tanh(np.float32(hard) * np.sin(u * np.float32(2 * np.pi / period_px)))
    b = np.tanh(np.float32(hard) * np.sin(v * np.float32(2 * np.pi / (period_px * aspect))))
    return np.asarray(a + b if plaid else a * b, np.float32)


def _dots(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Round dots on a square or staggered lattice: halftone print, perforated sheet, nubs."""
    period_px, radius, hard = log_uniform(style, 5, 40), style.uniform(0.15, 0.45), log_uniform(style, 2, 16)
    staggered = style.random() < 0.5
    u, v = grid.bent(style, detail)
    u, v = u / np.float32(period_px), v / np.float32(period_px)
    if staggered:
        u = np.asarray(u + np.float32(0.5) * np.mod(np.floor(v), 2), np.float32)
    distance = np.hypot(u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5))
    return np.asarray(np.tanh(np.float32(hard) * (np.float32(radius) - distance)), np.float32)


def _bricks(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    height_px, aspect, joint = log_uniform(style, 10, 48), log_uniform(style, 1, 3.5), style.uniform(0.04, 0.2)
    shift, uneven = style.choice([0.0, 0.5, 0.33]), style.uniform(0, 0.8)
    u, v = grid.bent(style, detail)
    row = v / np.float32(height_px)
    column = u / np.float32(height_px * aspect) + np.float32(shift) * np.floor(row)
    table = detail.uniform(-1, 1, 1024).astype(np.float32) * np.float32(uneven)
    face = table[((np.floor(row) * 37 + np.floor(column) * 101).astype(np.int32)) & 1023]
    in_joint = (np.mod(row, 1) < joint) | (np.mod(column, 1) < joint / aspect)
    return np.where(in_joint, np.float32(-1.5), face).astype(np.float32)


def _grain(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    sigma_px, skew = log_uniform(style, 0.4, 3), style.uniform(-1, 1)
    noise = detail.standard_normal((grid.height, grid.width), np.float32)
    if sigma_px > 0.6:
        noise = standardised(np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma_px), np.float32))
    return noise + np.float32(0.3 * skew) * noise * noise  # speckles to one side when skewed


def _smooth(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Paint or polish: a slope and hardly any structure."""
    slope, cell_px = style.uniform(-1, 1), log_uniform(style, 64, 256)
    u, _ = grid.uv
    slow = value_noise(detail, grid.height, grid.width, cell_px)
    return np.float32(slope / 128) * (u - np.float32(grid.offset_u_px)) + slow


def _glyphs(style: np.random.Generator, detail: np.random.Generator, grid: Grid) -> Field:
    """Rows of printed or stamped marks that look like writing and say nothing."""
    pitch_px, thickness = log_uniform(style, 12, 40), int(style.integers(1, 4))
    letters, line_gap = "AEFHKLMNTXZ0123456789/-+=#%", style.uniform(1.2, 2.5)
    first, count = int(style.integers(len(letters))), int(style.integers(1, 8))
    font = int(style.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX]))
    canvas = np.zeros((grid.height, grid.width), np.uint8)
    scale, length = pitch_px / 30 * (1.8 if font == cv2.FONT_HERSHEY_PLAIN else 1.0), int(grid.width / pitch_px) + 3
    for y_px in np.arange(detail.uniform(0, pitch_px), grid.height + pitch_px, pitch_px * line_gap):
        picks = (first + detail.integers(0, count, length)) % len(letters)
        start = (int(-detail.uniform(0, pitch_px)), int(y_px))
        text = "".join(letters[i] for i in picks)
        cv2.putText(canvas, text, start, font, scale, 255, thickness, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((grid.width / 2, grid.height / 2), float(np.degrees(grid.angle_rad)), 1.0)
    return _warped(
        np.asarray(canvas, np.float32) / np.float32(255), np.asarray(turn, np.float64), grid.height, grid.width
    )


FAMILIES: dict[str, Callable[[np.random.Generator, np.random.Generator, Grid], Field]] = {
    "fractal": _fractal,
    "cracks": _cracks,
    "cellular": _cellular,
    "crystals": _crystals,
    "pitted": _pitted,
    "weave": _weave,
    "knit": _knit,
    "brushed": _brushed,
    "rings": _rings,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "grain": _grain,
    "smooth": _smooth,
    "glyphs": _glyphs,
}
