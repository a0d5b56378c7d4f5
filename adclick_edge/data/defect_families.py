"""The families of synthetic defects: how each changes a picture.

The published method knows one, a foreign or shuffled texture under a Perlin mask. Thin, small and faint defects are
what factories see most and that family hardly ever makes, hence the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.data.defect_shapes import blob_opacity, patch_opacity, perlin_region, stain_opacity, stroke_opacity

__all__ = ["FAMILIES", "Canvas", "Family"]

Image = NDArray[np.uint8]  # [H, W, 3]
Region = NDArray[np.bool_]  # [H, W]
Colour = NDArray[np.float32]  # [3], 0 to 255

SHUFFLE_CELLS = 8  # per side (method section 3)
THIN_LINES_SIZE_PX = 512  # pictures larger than this get proportionally wider lines and larger specks


@dataclass(frozen=True)
class Canvas:
    """A picture to damage, ``at`` or around a point (y, x). ``is_grey``: its channels are equal and must stay so."""

    image: Image
    at: tuple[int, int]
    is_grey: bool
    foreign: Sequence[Image] | None

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def scale(self) -> float:
        return max(min(self.height, self.width) / THIN_LINES_SIZE_PX, 1.0)

    def colour_here(self) -> Colour:
        """Mean colour of the few pixels around ``at``."""
        y, x = self.at
        around = self.image[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
        return np.asarray(around.mean(axis=(0, 1)), np.float32)


Family = Callable[[Canvas, np.random.Generator], tuple[Image, Region]]


def _texture(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    """The published family: half from foreign textures, half from the picture itself, blended 0.5 to 1."""
    around = canvas.at if rng.random() < 0.5 else None
    region = perlin_region(rng, canvas.height, canvas.width, around=around)
    source = _foreign_texture(canvas, rng) if rng.random() < 0.5 else _shuffled_self(canvas, rng)
    opacity = region * np.float32(rng.uniform(0.5, 1))
    return _blended(canvas.image, source, opacity), region


def _stroke(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    thickness_px = round(float(rng.integers(1, 5)) * canvas.scale)
    line = stroke_opacity(rng, canvas.height, canvas.width, canvas.at, thickness_px=thickness_px)
    here = canvas.colour_here()
    opacity = line * np.float32(rng.uniform(0.5, 1))
    damaged = _blended(canvas.image, _contrasting(here, rng, 25, 160, canvas.is_grey), opacity)
    region = line > 0.2
    if rng.random() < 0.5:  # a groove: light falls on one wall, the other lies in shadow
        shift = np.array([[1, 0, thickness_px], [0, 1, thickness_px]], np.float32)
        size = (canvas.width, canvas.height)
        wall: NDArray[np.float32] = cv2.warpAffine(line, shift, size)  # type: ignore[assignment]
        wall = np.maximum(wall - line, 0) * np.float32(rng.uniform(0.2, 0.6))
        damaged = _blended(damaged, _contrasting(here, rng, 25, 120, canvas.is_grey), wall)
        region |= wall > 0.1
    return damaged, region


def _blob(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    radius_px = float(np.exp(rng.uniform(0, np.log(10)))) * canvas.scale
    spots = blob_opacity(rng, canvas.height, canvas.width, canvas.at, radius_px=radius_px)
    colour = _contrasting(canvas.colour_here(), rng, 25, 180, canvas.is_grey)
    return _blended(canvas.image, colour, spots * np.float32(rng.uniform(0.6, 1))), spots > 0.2


def _stain(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    """Added, not blended: the texture of the part shows through a stain."""
    spot = stain_opacity(rng, canvas.height, canvas.width, canvas.at)
    here = canvas.colour_here()
    shift = _contrasting(here, rng, 12, 60, canvas.is_grey) - here
    rows, columns = _box(spot > 0.02)
    damaged = canvas.image.copy()
    changed = damaged[rows, columns] + spot[rows, columns, None] * shift
    damaged[rows, columns] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return damaged, spot > 0.02


def _blur(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    """The texture worn away, or smeared in one direction."""
    opacity = patch_opacity(rng, canvas.height, canvas.width, canvas.at)
    rows, columns = _box(opacity > 0)
    here = np.ascontiguousarray(canvas.image[rows, columns])
    reach_px = int(rng.integers(3, 10) * canvas.scale)
    if rng.random() < 0.5:
        blurred = cv2.GaussianBlur(here, (0, 0), reach_px / 2)
    else:
        turn = cv2.getRotationMatrix2D((reach_px, reach_px), rng.uniform(0, 180), 1.0)
        streak = np.zeros((2 * reach_px + 1, 2 * reach_px + 1), np.float32)
        streak[reach_px] = 1
        streak = cv2.warpAffine(streak, turn, streak.shape[::-1])  # type: ignore[assignment]
        blurred = cv2.filter2D(here, -1, streak / streak.sum())
    source = canvas.image.copy()
    source[rows, columns] = blurred
    return _blended(canvas.image, source, opacity), opacity > 0.2


def _warp(canvas: Canvas, rng: np.random.Generator) -> tuple[Image, Region]:
    """Pixels pushed aside, strongest in the middle of a patch: dents, bulges, pulled threads."""
    opacity = patch_opacity(rng, canvas.height, canvas.width, canvas.at)
    rows, columns = _box(opacity > 0)
    push_px = min(rows.stop - rows.start, columns.stop - columns.start) * rng.uniform(0.1, 0.35)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[rows, columns].astype(np.float32)
    here = opacity[rows, columns]
    map_x = x + np.float32(push_px * np.cos(angle)) * here
    map_y = y + np.float32(push_px * np.sin(angle)) * here
    damaged = canvas.image.copy()
    damaged[rows, columns] = cv2.remap(canvas.image, map_x, map_y, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT_101)
    return damaged, opacity > 0


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"texture": _texture, "stroke": _stroke, "blob": _blob, "stain": _stain, "blur": _blur, "warp": _warp}
)


def _foreign_texture(canvas: Canvas, rng: np.random.Generator) -> Image:
    """A picture of another material, uint8 of the canvas's size."""
    if canvas.foreign:
        source = canvas.foreign[int(rng.integers(len(canvas.foreign)))]
    else:
        from adclick_edge.data.procedural.textures import random_texture

        source = np.rint(random_texture(rng, canvas.height, canvas.width) * 255).astype(np.uint8)
    if source.shape != canvas.image.shape:
        source = np.asarray(cv2.resize(source, (canvas.width, canvas.height)), np.uint8)
    return _jittered(source, canvas.is_grey, rng)


def _shuffled_self(canvas: Canvas, rng: np.random.Generator) -> Image:
    """The picture jittered, its 8 x 8 cells in random order."""
    height, width = canvas.height, canvas.width
    jittered = _jittered(canvas.image, canvas.is_grey, rng)
    cell_h, cell_w = height // SHUFFLE_CELLS, width // SHUFFLE_CELLS
    if cell_h == 0 or cell_w == 0:
        return jittered
    shuffled = jittered.copy()  # the rows and columns left over from the cells stay
    order = rng.permutation(SHUFFLE_CELLS**2)
    for target, source in enumerate(order):
        ty, tx = divmod(target, SHUFFLE_CELLS)
        sy, sx = divmod(int(source), SHUFFLE_CELLS)
        shuffled[ty * cell_h : (ty + 1) * cell_h, tx * cell_w : (tx + 1) * cell_w] = jittered[
            sy * cell_h : (sy + 1) * cell_h, sx * cell_w : (sx + 1) * cell_w
        ]
    return shuffled


def _jittered(image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
    """Three of: brightness and contrast, hue, posterise, solarise, flip; grey if asked."""
    levels: NDArray[np.float64] = np.arange(256, dtype=np.float64)
    for op in rng.choice(["light", "hue", "posterise", "solarise", "flip"], 3, replace=False):
        if op == "light":
            levels = (levels - 128) * rng.uniform(0.5, 1.5) + 128 + rng.uniform(-60, 60)
        elif op == "posterise":
            step = 2.0 ** rng.integers(4, 7)
            levels = np.floor(levels / step) * step
        elif op == "solarise":
            levels = np.where(levels > rng.uniform(64, 192), 255 - levels, levels)
        elif op == "flip":
            image = cv2.flip(image, int(rng.integers(-1, 2)))  # type: ignore[assignment]
        elif not is_grey:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(rng.integers(0, 256))  # wraps round, as hues do
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)  # type: ignore[assignment]
    image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))  # type: ignore[assignment]
    if is_grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[assignment]
    return image


def _contrasting(here: Colour, rng: np.random.Generator, least: float, most: float, is_grey: bool) -> Colour:
    """A colour that is darker or brighter than ``here`` by ``least`` to ``most`` grey levels, faint ones likelier."""
    contrast = float(np.exp(rng.uniform(np.log(least), np.log(most))))
    level = float(here.mean())
    brighter = rng.random() < 0.5
    if (255 - level if brighter else level) < least:
        brighter = not brighter
    colour = here + np.float32(contrast if brighter else -contrast)
    if not is_grey:
        colour = colour + rng.normal(0, 0.25 * contrast, 3).astype(np.float32)
    return np.asarray(np.clip(colour, 0, 255), np.float32)


def _blended(image: Image, source: Image | Colour, opacity: NDArray[np.float32]) -> Image:
    """``source`` (a picture or one colour) over ``image``, by ``opacity`` [H, W]."""
    rows, columns = _box(opacity > 0)
    below = image[rows, columns]
    above = source[rows, columns] if source.ndim == 3 else source
    mixed = below + opacity[rows, columns, None] * (above.astype(np.float32) - below)
    result = image.copy()
    result[rows, columns] = np.rint(mixed).astype(np.uint8)
    return result


def _box(region: Region) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around ``region``; the first pixel where it is empty."""
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    return slice(y, y + max(height, 1)), slice(x, x + max(width, 1))
