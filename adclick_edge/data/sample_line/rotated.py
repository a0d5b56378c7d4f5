"""``flange``: a turned steel flange with six fasteners of two sorts in turn, lying at any angle on a dark belt."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .defects import FULL_DEFECTS, Finish
from .lettering import text_cover
from .surface import F32, Surface, coverage, disc, grain, local_grid, ramp, rounded_box, smooth_field

__all__ = ["FLANGE_KINDS", "draw_flange"]

FLANGE_KINDS = ("crack", "dent", "missing", "scratch", "stain", "swapped")

_OUTER, _HUB, _BORE = 0.415, 0.205, 0.098
_BOLT_CIRCLE, _BOLT = 0.308, 0.046
_STEEL, _ZINC, _BLACK = (0.56, 0.565, 0.58), (0.74, 0.72, 0.65), (0.030, 0.030, 0.034)
_BOLTS = ("hex", "socket") * 3


@lru_cache(maxsize=4)
def _mark(n: int) -> NDArray[np.uint8]:
    return text_cover("PN40", round(0.125 * n), round(0.036 * n))


def _profile(n: int) -> F32:
    """Height (render pixels) of the turned part by radius, ``[8 n]`` for 0..1 units."""
    knots = np.asarray(
        [
            (0.0, -0.045),
            (_BORE - 0.002, -0.045),
            (_BORE, 0.028),
            (_BORE + 0.008, 0.036),
            (_HUB - 0.012, 0.036),
            (_HUB, 0.026),
            (_HUB + 0.004, 0.013),
            (_HUB + 0.010, 0.012),
            (_OUTER - 0.012, 0.012),
            (_OUTER - 0.001, 0.003),
            (_OUTER + 0.003, -0.014),
            (1.0, -0.014),
        ]
    )
    fine = np.linspace(0, 1, 8 * n, dtype=np.float32)
    table = np.interp(fine, knots[:, 0], knots[:, 1]).astype(np.float32) * n
    return np.asarray(cv2.GaussianBlur(table[None, :], (0, 0), 5)[0], np.float32)


def _hole(surface: Surface, centre: tuple[float, float], n: int) -> None:
    """A tapped hole: chamfer, thread turns, dark bottom."""
    box, u, v = local_grid(n, centre, 0.04)
    sd = disc(u, v, 0.030)
    inside = coverage(sd, n)
    thread = np.abs(((-sd * 260) % 1) - 0.5).astype(np.float32)
    depth = surface.height[box] + np.float32(n) * (np.maximum(sd, -0.012) * np.float32(2.2) + 0.002 * thread)
    surface.lay(box, inside, height=depth, gloss=0.4)
    surface.lay(box, coverage(sd + np.float32(0.012), n), colour=(0.012, 0.012, 0.013), metal=0.0)
    surface.albedo[:, box[0], box[1]] *= 1 - 0.6 * ramp(-sd, 0.0, 0.014)


def _washer(surface: Surface, centre: tuple[float, float], n: int, base: float) -> None:
    box, u, v = local_grid(n, centre, 0.056)
    sd = disc(u, v, 0.051)
    edge = ramp(-sd, 0.0, 0.005)
    surface.lay(box, coverage(sd, n), height=base + np.float32(0.006 * n) * edge, colour=_ZINC, metal=1.0, gloss=0.45)


def _hex(surface: Surface, centre: tuple[float, float], n: int, base: float, turn: float) -> None:
    """A zinc-plated hexagon head with a domed chamfer and a stamped grade."""
    box, u, v = local_grid(n, centre, 0.052, turn)
    sd = np.full_like(u, -1.0)
    for k in range(3):
        a = np.pi / 3 * k
        np.maximum(sd, np.abs(u * np.float32(np.cos(a)) + v * np.float32(np.sin(a))) - np.float32(0.038), out=sd)
    r = np.hypot(u, v)
    crown = 0.028 - 0.22 * np.clip(r - 0.0335, 0, None) - 0.006 * (1 - ramp(-sd, 0.0, 0.004))
    stamp = ramp(-np.abs(np.asarray(r - 0.019, np.float32)), -0.003, 0.0)
    crown = (crown - 0.0016 * stamp) * n + base
    surface.lay(box, coverage(sd, n), height=crown, colour=_ZINC, metal=1.0, gloss=0.55)


def _socket(surface: Surface, centre: tuple[float, float], n: int, base: float, turn: float) -> None:
    """A black-oxide cap screw: knurled rim, hexagon socket."""
    box, u, v = local_grid(n, centre, 0.048, turn)
    knurl = np.float32(0.0009) * np.cos(np.arctan2(v, u) * 30)
    sd = np.asarray(disc(u, v, 0.040) + knurl, np.float32)
    top = 0.030 - 0.012 * (1 - ramp(-sd, 0.0, 0.007)) ** 2
    surface.lay(
        box,
        coverage(sd, n),
        height=base + top * n,
        colour=(0.075, 0.075, 0.082),
        metal=0.5,
        gloss=0.5,
    )
    bore = np.full_like(u, -1.0)
    for k in range(3):
        a = np.pi / 3 * k
        np.maximum(bore, np.abs(u * np.float32(np.cos(a)) + v * np.float32(np.sin(a))) - np.float32(0.0195), out=bore)
    inside = coverage(bore, n)
    surface.lay(box, inside, height=base + 0.004 * n, colour=_BLACK, gloss=0.3)


def _belt(scene: np.random.Generator, n: int) -> Surface:
    shade = 0.042 * scene.uniform(0.85, 1.2)
    surface = Surface.plain(n, (shade, shade * 1.02, shade * 1.06), gloss=0.25)
    # A fabric-backed belt shows a fine grid of impressions, which travels with the belt.
    axis = np.arange(n, dtype=np.float32) / n
    px, py = scene.uniform(0, 1, 2)
    grid = np.cos(2 * np.pi * 46 * (axis + px))[None, :] * np.cos(2 * np.pi * 46 * (axis + py))[:, None]
    surface.height += np.asarray(0.0011 * n * grid + 0.20 * grain(scene, n, 0.8), np.float32)
    wear = 1 + 0.12 * smooth_field(scene, n, 9) + 0.10 * grain(scene, n, 0.8)
    surface.albedo *= np.asarray(np.clip(wear, 0.3, 2), np.float32)
    return surface


def draw_flange(
    scene: np.random.Generator,
    n: int,
    kind: str | None,
    flaw: np.random.Generator,
    strength: float,
    finish: Finish | None = None,
) -> tuple[Surface, NDArray[np.bool_] | None]:
    """Draw one flange at ``n`` render pixels; ``kind`` None is a good one; ``finish`` draws on it last.

    Returns the surface and, for ``missing`` and ``swapped``, the place of the fasteners concerned, bool ``[n, n]``.
    """
    surface = _belt(scene, n)
    cx, cy = 0.5 + scene.normal(0, 0.010, 2).clip(-0.022, 0.022)
    turn = scene.uniform(0, 2 * np.pi)
    groove = cv2.GaussianBlur(scene.standard_normal(8 * n).astype(np.float32)[None, :], (0, 0), 6)[0]
    feed = np.cos(
        np.arange(8 * n, dtype=np.float32) * np.float32(2 * np.pi / (8 * n * 0.0061) * scene.uniform(0.95, 1.05))
    )
    groove = groove * np.float32(0.24 / groove.std()) + np.float32(0.12) * feed
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n
    r = np.hypot((axis - np.float32(cx))[None, :], (axis - np.float32(cy))[:, None]).astype(np.float32)
    by_radius = (r * np.float32(8 * n)).astype(np.int32)
    # The tool's trace is no perfect circle: it chatters a little.
    chatter = (np.float32(0.005 * n) * smooth_field(scene, n, 40)).astype(np.int32)
    body = coverage(r - np.float32(_OUTER), n) * (1 - coverage(r - np.float32(_BORE), n))
    shape = _profile(n).take(by_radius, mode="clip")
    cut = scene.normal(0, 1)
    tool = grain(scene, n, 0.7)
    shape += body * (groove.take(by_radius + chatter, mode="clip") + np.float32(0.06) * tool)
    off_body = (r > _OUTER + 0.004) | (r < _BORE - 0.003)
    surface.height *= 1 - body
    surface.height += shape
    cloud = (1 + 0.025 * cut) + 0.05 * smooth_field(scene, n, 7) + 0.035 * tool
    steel = [np.asarray(c * cloud, np.float32) for c in _STEEL]
    surface.lay((slice(0, n), slice(0, n)), body, colour=steel, metal=1.0, gloss=0.35)
    surface.albedo *= np.where(r < _BORE, np.float32(0.35), np.float32(1))

    notch_at = (cx + _OUTER * np.cos(turn + np.pi / 6), cy + _OUTER * np.sin(turn + np.pi / 6))
    box, u, v = local_grid(n, notch_at, 0.04, turn + np.pi / 6)
    notch = coverage(rounded_box(u, v, 0.020, 0.016, 0.008), n)
    surface.lay(box, notch, height=-0.014 * n, colour=(0.03, 0.03, 0.032), metal=0.0, gloss=0.2)

    mark = _mark(n)
    h, w = mark.shape
    angle = turn + np.pi / 2 + scene.normal(0, 0.012)
    c, s = np.cos(angle + np.pi / 2), np.sin(angle + np.pi / 2)
    mx, my = cx + (_BOLT_CIRCLE + 0.002) * np.cos(angle), cy + (_BOLT_CIRCLE + 0.002) * np.sin(angle)
    place = np.asarray([[c, -s, mx * n - c * w / 2 + s * h / 2], [s, c, my * n - s * w / 2 - c * h / 2]], np.float32)
    letters = cv2.warpAffine(mark, place, (n, n)).astype(np.float32) / np.float32(255)
    surface.height -= np.float32(0.0022 * n) * letters
    surface.albedo *= 1 - 0.42 * letters

    spots = [turn + np.pi / 3 * k + scene.normal(0, 0.004) for k in range(6)]
    reach = _BOLT_CIRCLE + scene.normal(0, 0.0012, 6)
    twists = scene.uniform(0, np.pi / 3, 6)
    fitted: list[str | None] = list(_BOLTS)
    touched: list[int] = []
    if kind == "missing":
        touched = [int(flaw.integers(0, 6))]
        fitted[touched[0]] = None
    if kind == "swapped":
        first = int(flaw.integers(0, 6))
        touched = [first, (first + int(flaw.choice([1, 3, 5]))) % 6]
        fitted[touched[0]], fitted[touched[1]] = fitted[touched[1]], fitted[touched[0]]
    footprint = np.zeros((n, n), np.bool_)
    base = 0.012 * n
    for k, (spot, far, twist, sort) in enumerate(zip(spots, reach, twists, fitted, strict=True)):
        centre = (float(cx + far * np.cos(spot)), float(cy + far * np.sin(spot)))
        if sort is None:
            _hole(surface, centre, n)
        else:
            _washer(surface, centre, n, base)
            (_hex if sort == "hex" else _socket)(surface, centre, n, base + 0.006 * n, float(twist))
        if k in touched:
            box, u, v = local_grid(n, centre, 0.056)
            footprint[box] |= disc(u, v, 0.051) < 0
    region = (body > 0.99) & ~off_body
    if kind in FULL_DEFECTS:
        FULL_DEFECTS[kind](surface, region, flaw, strength)
    if finish is not None:
        finish(surface, region)
    return surface, footprint if touched else None
