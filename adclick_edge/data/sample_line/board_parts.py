"""The parts of the circuit board: each is drawn over the surface at a place, in its own turned coordinates.

Sizes are units (fractions of the frame's width). A part's ``look`` carries its tolerances, so that two pictures of one
part differ and a part drawn twice with one look does not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np

from .lettering import text_cover
from .surface import F32, Surface, coverage, disc, local_grid, ramp, rounded_box

__all__ = ["Part", "Pins", "draw_part", "reach_of"]

_TIN = (0.68, 0.67, 0.64)
_GOLD = (0.80, 0.60, 0.24)
_PLASTIC = (0.022, 0.022, 0.024)


@dataclass(frozen=True)
class Pins:
    """One row of leads: sideways lean (units at the tip), lift and length factor of each."""

    lean: tuple[float, ...]
    lift: tuple[float, ...]
    length: tuple[float, ...]

    @classmethod
    def random(cls, count: int, rng: np.random.Generator) -> "Pins":
        lean, lift = rng.normal(0, 0.0006, count), rng.normal(0, 0.03, count)
        return cls(tuple(lean.tolist()), tuple(lift.tolist()), tuple((1 + rng.normal(0, 0.015, count)).tolist()))

    def bend(self, which: int, lean: float, lift: float, length: float) -> "Pins":
        def put(values: tuple[float, ...], value: float) -> tuple[float, ...]:
            return (*values[:which], value, *values[which + 1 :])

        return replace(self, lean=put(self.lean, lean), lift=put(self.lift, lift), length=put(self.length, length))


@dataclass(frozen=True)
class Part:
    """A placed part: centre in units, angle in radians, full width and height, sort and look."""

    name: str
    sort: str
    x: float
    y: float
    width: float
    height: float
    angle_rad: float = 0.0
    tone: float = 1.0
    label: str = ""
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rows: dict[str, Pins] = field(default_factory=dict)


def reach_of(part: Part) -> tuple[float, float]:
    """Half width and half height of the box that holds the part, its leads and its solder."""
    return part.width / 2 + 0.045, part.height / 2 + 0.045


@lru_cache(maxsize=64)
def _label(text: str, width_px: int, height_px: int) -> F32:
    return text_cover(text, width_px, height_px).astype(np.float32) / np.float32(255)


def _print(surface: Surface, part: Part, n: int, width: float, height: float, shade: float) -> None:
    """Print the part's label on its top."""
    box, u, v = local_grid(n, (part.x, part.y), (width * 0.55, height * 0.55), part.angle_rad)
    letters = _label(part.label, round(width * n), max(round(height * n), 3))
    h, w = letters.shape
    map_x = np.asarray((u / width + 0.5) * w - 0.5, np.float32)
    map_y = np.asarray((v / height + 0.5) * h - 0.5, np.float32)
    cover = cv2.remap(letters, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    surface.lay(box, np.asarray(cover, np.float32), colour=(shade, shade, shade * 0.97), gloss=0.2)


def _leads(surface: Surface, part: Part, n: int, side: str, body_half: float, length: float, pitch: float) -> None:
    """One row of gull-wing leads on the side ``"e"``, ``"s"``, ``"w"`` or ``"n"`` of a body."""
    pins = part.rows[side]
    turn = part.angle_rad + {"e": 0.0, "s": np.pi / 2, "w": np.pi, "n": -np.pi / 2}[side]
    count = len(pins.lean)
    middle = body_half + 0.5 * length
    centre = (part.x + middle * float(np.cos(turn)), part.y + middle * float(np.sin(turn)))
    box, u, v = local_grid(n, centre, (length + 0.01, 0.5 * count * pitch + 0.02), turn)
    out = np.asarray(u / length + 0.5, np.float32)  # 0 at the body, 1 at the tip
    lead = np.clip(np.floor(v / pitch + count / 2), 0, count - 1).astype(np.int32)
    lean, lift, long = (np.asarray(a, np.float32).take(lead) for a in (pins.lean, pins.lift, pins.length))
    across = v - (lead - (count - 1) / 2) * np.float32(pitch) - lean * np.clip(out, 0, 1.3) ** 2
    across = np.asarray(across, np.float32)
    fillet = rounded_box(u - 0.30 * length, across, 0.42 * length, 0.36 * pitch, 0.2 * pitch)
    surface.lay(
        box, coverage(fillet, n), height=0.0035 * n * ramp(-fillet, 0, 0.004), colour=_TIN, metal=1.0, gloss=0.6
    )
    sd = np.maximum(np.abs(across) - np.float32(0.22 * pitch), np.maximum(-out, out - long) * np.float32(length))
    shoulder = 0.018 * (1 - ramp(out, 0.15, 0.6)) + 0.005 + 0.02 * lift * np.clip(out, 0, 1)
    height = (shoulder - 0.25 * across * across / pitch) * n
    surface.lay(
        box,
        coverage(sd, n),
        height=height,
        colour=_TIN,
        metal=1.0,
        gloss=0.6,
    )


def _ic(surface: Surface, part: Part, n: int) -> None:
    for side, pins in part.rows.items():
        along, body_half = (part.height, part.width / 2) if side in "ew" else (part.width, part.height / 2)
        _leads(surface, part, n, side, body_half, 0.036, along * 0.94 / len(pins.lean))
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    sd = rounded_box(u, v, part.width / 2, part.height / 2, 0.006)
    top = 0.030 - 0.014 * (1 - ramp(-sd, 0.0, 0.010))
    corner = (-part.width / 2 + 0.025, -part.height / 2 + 0.025)
    dimple = disc(u - np.float32(corner[0]), v - np.float32(corner[1]), 0.011)
    top = (top - 0.003 * ramp(-dimple, -0.001, 0.004)) * n
    colour = tuple(c * part.tone for c in _PLASTIC)
    surface.lay(box, coverage(sd, n), height=top, colour=colour, metal=0.0, gloss=0.12)
    if part.label:
        _print(surface, part, n, 0.62 * part.width, min(0.042, 0.2 * part.height), 0.20)


def _chip(surface: Surface, part: Part, n: int) -> None:
    """A chip resistor (with a printed value) or capacitor: ceramic body between tinned ends in solder."""
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    half_w, half_h = part.width / 2, part.height / 2
    for side in (-1, 1):
        shifted = u - np.float32(side * (half_w - 0.001))
        fillet = rounded_box(shifted, v, 0.016, half_h * 0.98, 0.006)
        slope = 0.013 * ramp(-fillet, 0.0, 0.012) * n
        surface.lay(box, coverage(fillet, n), height=slope, colour=_TIN, metal=1.0, gloss=0.7)
    sd = rounded_box(u, v, half_w, half_h, 0.003)
    soft = 0.003 if part.sort == "resistor" else 0.007
    top = (0.016 if part.sort == "resistor" else 0.024) - 0.006 * (1 - ramp(-sd, 0.0, soft))
    surface.lay(box, coverage(sd, n), height=top * n, colour=_TIN, metal=0.9, gloss=0.45)
    middle = np.maximum(sd, np.abs(u) - np.float32(half_w * 0.66))
    colour = tuple(c * part.tone for c in part.colour)
    surface.lay(box, coverage(middle, n), colour=colour, metal=0.0, gloss=0.35)
    if part.label:
        _print(surface, part, n, half_w * 1.02, half_h * 0.95, 0.55)


def _can(surface: Surface, part: Part, n: int) -> None:
    """An electrolytic capacitor: a plastic foot, a bright can with a scored top and a dark sector at its minus side."""
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    half = part.width / 2
    for side in (-1, 1):
        tab = rounded_box(u - np.float32(side * half), v, 0.024, 0.011, 0.004)
        surface.lay(box, coverage(tab, n), height=0.004 * n, colour=_TIN, metal=1.0, gloss=0.6)
    foot = np.maximum(
        rounded_box(u, v, half, half, 0.004), (np.abs(u) + v) * np.float32(0.7071) - np.float32(half * 1.14)
    )
    surface.lay(box, coverage(foot, n), height=0.010 * n, colour=_PLASTIC, metal=0.0, gloss=0.3)
    sd = disc(u, v, half * 0.93)
    bead = ramp(-sd, 0.0, 0.008) - 0.25 * ramp(-sd, 0.010, 0.018)
    cross = np.minimum(np.abs(u + v), np.abs(u - v))
    score = ramp(0.004 - cross, 0.0, 0.003) * (sd < -0.03)
    top = (0.052 + 0.014 * bead - 0.0015 * score) * n
    surface.lay(box, coverage(sd, n), height=top, colour=(0.62, 0.62, 0.63), metal=1.0, gloss=0.3)
    sector = np.maximum(sd + np.float32(0.016), u + np.float32(half * 0.42))
    surface.lay(box, coverage(sector, n), colour=(0.03, 0.03, 0.035), metal=0.0, gloss=0.3)


def _led(surface: Surface, part: Part, n: int) -> None:
    """A top-view LED: white housing with a cup of tinted resin."""
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    for side in (-1, 1):
        fillet = rounded_box(u - np.float32(side * part.width / 2), v, 0.012, part.height * 0.36, 0.005)
        surface.lay(
            box, coverage(fillet, n), height=0.006 * n * ramp(-fillet, 0, 0.008), colour=_TIN, metal=1.0, gloss=0.7
        )
    sd = rounded_box(u, v, part.width / 2, part.height / 2, 0.005)
    white = (0.66 * part.tone, 0.65 * part.tone, 0.60 * part.tone)
    surface.lay(box, coverage(sd, n), height=0.022 * n * ramp(-sd, -0.004, 0.004), colour=white, metal=0.0, gloss=0.3)
    cup = disc(u, v, min(part.width, part.height) * 0.36)
    resin = (0.021 - 0.006 * ramp(-cup, 0, 0.007) + 0.004 * ramp(-cup, 0.004, 0.022)) * n
    surface.lay(box, coverage(cup, n), height=resin, colour=part.colour, gloss=0.9)
    die = rounded_box(u, v, 0.0045, 0.0045)
    surface.lay(box, coverage(die, n), colour=tuple(0.4 * c for c in part.colour))


def _header(surface: Surface, part: Part, n: int) -> None:
    """A pin header: cream housing, one square well and gold pin per way, keyed by two ribs."""
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    sd = rounded_box(u, v, part.width / 2, part.height / 2, 0.005)
    cream = (0.60 * part.tone, 0.56 * part.tone, 0.44 * part.tone)
    top = 0.040 - 0.006 * (1 - ramp(-sd, 0.0, 0.005))
    surface.lay(box, coverage(sd, n), height=top * n, colour=cream, metal=0.0, gloss=0.25)
    wall = rounded_box(u, np.asarray(v - 0.006, np.float32), part.width / 2 - 0.011, part.height / 2 - 0.017, 0.004)
    surface.lay(box, coverage(wall, n), height=0.017 * n, colour=tuple(0.72 * c for c in cream), gloss=0.2)
    pins = part.rows["way"]
    count = len(pins.lean)
    pitch = (part.width - 0.04) / count
    lead = np.clip(np.floor(u / pitch + count / 2), 0, count - 1).astype(np.int32)
    lean = np.asarray(pins.lean, np.float32).take(lead)
    du = np.asarray(u - (lead - (count - 1) / 2) * np.float32(pitch) - lean, np.float32)
    dv = np.asarray(v - 0.006 - np.float32(0.4) * np.abs(lean), np.float32)
    pin = rounded_box(du, dv, 0.0085, 0.0085, 0.002)
    height = (0.030 + 0.010 * ramp(-pin, 0.0, 0.006)) * n
    surface.lay(box, coverage(pin, n), height=height, colour=_GOLD, metal=1.0, gloss=0.6)


def _crystal(surface: Surface, part: Part, n: int) -> None:
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    sd = rounded_box(u, v, part.width / 2, part.height / 2, min(part.width, part.height) / 2)
    flange = coverage(sd, n)
    surface.lay(box, flange, height=0.006 * n, colour=(0.60, 0.59, 0.56), metal=1.0, gloss=0.4)
    inner = np.asarray(sd + 0.008, np.float32)
    top = (0.008 + 0.030 * ramp(-inner, 0.0, 0.010)) * n
    surface.lay(box, coverage(inner, n), height=top, colour=(0.66, 0.65, 0.62), metal=1.0, gloss=0.45)
    _print(surface, part, n, 0.62 * max(part.width, part.height), 0.026, 0.12)


def _coil(surface: Surface, part: Part, n: int) -> None:
    """A shielded inductor: dark ferrite block with a round core and a printed value."""
    box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
    sd = rounded_box(u, v, part.width / 2, part.height / 2, 0.016)
    ring = disc(u, v, part.width * 0.40)
    gap = ramp(0.005 - np.abs(ring), 0.0, 0.004)
    top = (0.040 - 0.010 * (1 - ramp(-sd, 0.0, 0.007)) - 0.006 * gap) * n
    grey = 0.055 * part.tone
    surface.lay(box, coverage(sd, n), height=top, colour=(grey, grey, grey * 1.05), metal=0.0, gloss=0.2)
    _print(surface, part, n, part.width * 0.5, part.height * 0.24, 0.42)


_DRAW: dict[str, Callable[[Surface, Part, int], None]] = {
    "can": _can,
    "capacitor": _chip,
    "coil": _coil,
    "crystal": _crystal,
    "header": _header,
    "ic": _ic,
    "led": _led,
    "resistor": _chip,
}


def draw_part(surface: Surface, part: Part, n: int) -> None:
    _DRAW[part.sort](surface, part, n)
