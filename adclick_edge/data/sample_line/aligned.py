"""``board``: a populated circuit board in a fixture, always the same way round up to the fixture's play."""

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .board_parts import Part, Pins, draw_part, reach_of
from .defects import FULL_DEFECTS, Finish
from .lettering import text_cover
from .surface import F32, Surface, coverage, grain, local_grid, rounded_box, smooth_field

__all__ = ["BOARD_KINDS", "draw_board"]

BOARD_KINDS = ("bent", "contamination", "misprint", "missing", "scratch", "swapped")

_EDGE = 0.034
_MASK, _MASK_ON_COPPER = (0.014, 0.105, 0.045), (0.036, 0.175, 0.066)
_QUARTER = float(np.pi / 2)
_R, _C, _C2 = (0.030, 0.030, 0.034), (0.34, 0.22, 0.12), (0.40, 0.34, 0.27)
_RED, _GREEN, _AMBER = (0.50, 0.055, 0.045), (0.10, 0.42, 0.14), (0.66, 0.40, 0.05)

_DESIGN = (
    Part("U1", "ic", 0.400, 0.415, 0.225, 0.225, label="AC740"),
    Part("U2", "ic", 0.770, 0.235, 0.105, 0.130, label="X24"),
    Part("C1", "can", 0.765, 0.530, 0.165, 0.165),
    Part("J1", "header", 0.410, 0.885, 0.420, 0.105),
    Part("Y1", "crystal", 0.140, 0.440, 0.175, 0.080, _QUARTER, label="8.000"),
    Part("L1", "coil", 0.160, 0.705, 0.120, 0.120, label="220"),
    Part("R1", "resistor", 0.300, 0.690, 0.072, 0.038, _QUARTER, label="103", colour=_R),
    Part("R2", "resistor", 0.370, 0.690, 0.072, 0.038, _QUARTER, label="103", colour=_R),
    Part("C4", "capacitor", 0.440, 0.690, 0.072, 0.038, _QUARTER, colour=_C),
    Part("R3", "resistor", 0.510, 0.690, 0.072, 0.038, _QUARTER, label="472", colour=_R),
    Part("C5", "capacitor", 0.580, 0.690, 0.072, 0.038, _QUARTER, colour=_C),
    Part("C2", "capacitor", 0.290, 0.190, 0.072, 0.038, colour=_C2),
    Part("R4", "resistor", 0.400, 0.190, 0.072, 0.038, label="220", colour=_R),
    Part("C3", "capacitor", 0.510, 0.190, 0.072, 0.038, colour=_C2),
    Part("D1", "led", 0.740, 0.790, 0.072, 0.056, _QUARTER, colour=_RED),
    Part("D2", "led", 0.815, 0.790, 0.072, 0.056, _QUARTER, colour=_GREEN),
    Part("D3", "led", 0.890, 0.790, 0.072, 0.056, _QUARTER, colour=_AMBER),
)
_LEADS = {"U1": {"e": 9, "s": 9, "w": 9, "n": 9}, "U2": {"e": 4, "w": 4}, "J1": {"way": 7}}
_SWAPS = (
    ("D1", "D2"),
    ("D2", "D3"),
    ("D1", "D3"),
    ("R2", "C4"),
    ("C4", "R3"),
    ("R3", "C5"),
    ("C2", "R4"),
    ("R4", "C3"),
)
_OMITTED = ("R1", "R2", "R3", "R4", "C1", "C2", "C3", "C4", "C5", "D1", "D2", "D3", "Y1", "L1", "U2")
_HOLES = ((0.085, 0.085), (0.915, 0.085), (0.085, 0.915), (0.915, 0.915))


def _text(canvas: NDArray[np.uint8], text: str, x: float, y: float, height: float) -> None:
    """Write ``text`` centred on (x, y)."""
    n = canvas.shape[0]
    patch = text_cover(text, round(0.62 * height * n * len(text)), round(height * n))
    top, left = round(y * n - patch.shape[0] / 2), round(x * n - patch.shape[1] / 2)
    np.maximum(
        canvas[top : top + patch.shape[0], left : left + patch.shape[1]],
        patch,
        out=canvas[top : top + patch.shape[0], left : left + patch.shape[1]],
    )


def _route(canvas: NDArray[np.uint8], vias: NDArray[np.uint8], n: int) -> None:
    """Traces that fan out of the parts and bend by 45 degrees on their way to a via."""

    def px(point: tuple[float, float]) -> tuple[int, int]:
        return round(point[0] * n * 16), round(point[1] * n * 16)

    rng = np.random.default_rng(11)
    thick = max(1, round(0.0065 * n))
    for side in range(4):
        for k in range(9):
            along, out = (k - 4) * 0.0235, 0.15
            run, drift = rng.uniform(0.01, 0.09), rng.choice([-1, 1]) * rng.uniform(0.01, 0.06)
            local = [(out, along), (out + run, along), (out + run + abs(drift), along + drift)]
            c, s = round(np.cos(side * _QUARTER)), round(np.sin(side * _QUARTER))
            path = [(0.40 + c * a - s * b, 0.415 + s * a + c * b) for a, b in local]
            points = np.asarray([px(p) for p in path], np.int32)
            cv2.polylines(canvas, [points], False, 255, thick, cv2.LINE_AA, 4)
            cv2.circle(canvas, px(path[-1]), round(0.011 * n * 16), 255, -1, cv2.LINE_AA, 4)
            cv2.circle(vias, px(path[-1]), round(0.0055 * n * 16), 255, -1, cv2.LINE_AA, 4)
    for k in range(7):
        x = 0.230 + 0.060 * k
        path = [(x, 0.85), (x, 0.80 - 0.004 * k), (x + 0.02, 0.78 - 0.004 * k), (x + 0.02, 0.74)]
        cv2.polylines(canvas, [np.asarray([px(p) for p in path], np.int32)], False, 255, thick, cv2.LINE_AA, 4)


@lru_cache(maxsize=4)
def _artwork(n: int) -> NDArray[np.uint8]:
    """The bare board at its nominal place, uint8 ``[n, n, 4]``: board, copper, pads, print."""
    board, copper, pads, silk, vias = (np.zeros((n, n), np.uint8) for _ in range(5))
    box, u, v = local_grid(n, (0.5, 0.5), 0.5)
    board[box] = np.round(255 * coverage(rounded_box(u, v, 0.5 - _EDGE, 0.5 - _EDGE, 0.018), n))
    _route(copper, vias, n)
    for x0, y0, x1, y1 in ((0.63, 0.10, 0.69, 0.33), (0.64, 0.40, 0.90, 0.66), (0.68, 0.72, 0.95, 0.86)):
        cv2.rectangle(copper, (round(x0 * n), round(y0 * n)), (round(x1 * n), round(y1 * n)), 255, -1)

    def block(target: NDArray[np.uint8], part: Part, dx: float, dy: float, w: float, h: float, *, frame: bool) -> None:
        c, s = np.cos(part.angle_rad), np.sin(part.angle_rad)
        box, u, v = local_grid(
            n, (part.x + c * dx - s * dy, part.y + s * dx + c * dy), max(w, h) + 0.02, part.angle_rad
        )
        sd = rounded_box(u, v, w, h, 0.003)
        cover = coverage(np.asarray(np.abs(sd) - 0.0022, np.float32) if frame else sd, n)
        target[box] = np.maximum(target[box], np.round(255 * cover).astype(np.uint8))

    for part in _DESIGN:
        half_w, half_h = part.width / 2, part.height / 2
        upright = abs(np.sin(part.angle_rad)) > 0.5
        tall = half_w if upright else half_h
        if part.sort in ("resistor", "capacitor", "led"):
            for side in (-1, 1):
                block(pads, part, side * half_w, 0, 0.022, half_h * 1.12, frame=False)
            block(silk, part, 0, 0, half_w + 0.030, half_h + 0.008, frame=True)
            _text(silk, part.name, part.x, part.y - tall - (0.048 if upright else 0.026), 0.022)
        elif part.sort == "can":
            for side in (-1, 1):
                block(pads, part, side * half_w, 0, 0.034, 0.016, frame=False)
            block(silk, part, 0, 0, half_w + 0.008, half_h + 0.008, frame=True)
            _text(silk, part.name, part.x - 0.115, part.y - 0.07, 0.022)
        elif part.sort in ("coil", "crystal"):
            for side in (-1, 1):
                block(pads, part, side * half_w * 0.62, 0, 0.022, half_h * 0.55, frame=False)
            block(silk, part, 0, 0, half_w + 0.009, half_h + 0.009, frame=True)
            _text(silk, part.name, part.x, part.y - tall - 0.030, 0.022)
        elif part.sort == "ic":
            for side in (-1, 1):
                reach = half_w + 0.024
                for k in range(_LEADS[part.name]["e"]):
                    pitch = part.height * 0.94 / _LEADS[part.name]["e"]
                    along = (k - (_LEADS[part.name]["e"] - 1) / 2) * pitch
                    block(pads, part, side * reach, along, 0.024, 0.32 * pitch, frame=False)
                    if "n" in _LEADS[part.name]:
                        block(pads, part, along, side * reach, 0.32 * pitch, 0.024, frame=False)
            block(silk, part, 0, 0, half_w - 0.004, half_h - 0.004, frame=True)
    _text(silk, "AE-2040 C", 0.400, 0.082, 0.034)
    _text(silk, "PWR", 0.740, 0.868, 0.022)
    _text(silk, "RUN", 0.815, 0.868, 0.022)
    _text(silk, "ERR", 0.885, 0.868, 0.022)
    for hole in _HOLES:
        at = (round(hole[0] * n * 16), round(hole[1] * n * 16))
        for layer, radius, value in ((copper, 0.042, 255), (silk, 0.042, 0), (pads, 0.037, 255)):
            cv2.circle(layer, at, round(radius * n * 16), value, -1, cv2.LINE_AA, 4)
        for layer in (board, pads, copper):
            cv2.circle(layer, at, round(0.023 * n * 16), 0, -1, cv2.LINE_AA, 4)
    silk[pads > 0] = 0
    copper = np.where(vias > 0, np.maximum(copper, 255 - vias), copper).astype(np.uint8)
    board = np.minimum(board, 255 - (vias // 2)).astype(np.uint8)
    return np.ascontiguousarray(np.stack([board, copper, pads, silk], axis=-1))


def _misprint(silk: F32, flaw: np.random.Generator, pose: NDArray[np.float32], strength: float) -> None:
    """Spoil the board's printed name: letters lost, printed twice, smeared, or shifted."""
    n = silk.shape[0]
    x, y = (pose @ np.asarray([0.400 * n, 0.082 * n, 1.0], np.float32)).tolist()
    x0, x1, y0, y1 = (round(p) for p in (x - 0.115 * n, x + 0.115 * n, y - 0.028 * n, y + 0.028 * n))
    mark = silk[y0:y1, x0:x1]
    way = int(flaw.integers(0, 4))
    if way == 0:
        start = flaw.uniform(0, 0.6)
        stop = start + flaw.uniform(0.15, 0.4)
        w = mark.shape[1]
        mark[:, round(start * w) : round(stop * w)] *= np.float32(max(0.0, 0.4 - 0.3 * strength))
        return
    dx, dy = flaw.uniform(0.006, 0.016, 2) * n * flaw.choice([-1, 1], 2)
    if way == 1:
        ghost = cv2.warpAffine(mark, np.asarray([[1, 0, dx], [0, 1, dy]], np.float32), mark.shape[::-1])
        np.maximum(mark, np.float32(0.6) * ghost, out=mark)
    elif way == 2:
        trail = cv2.blur(mark, (max(3, round(flaw.uniform(0.03, 0.06) * n)), 1))
        np.maximum(mark * np.float32(0.75), 1.3 * trail, out=mark)
    else:
        turn = cv2.getRotationMatrix2D(
            (mark.shape[1] / 2, mark.shape[0] / 2), flaw.choice([-1, 1]) * flaw.uniform(4, 9), 1
        )
        turn[:, 2] += (0.4 * dx, 0.4 * dy)
        mark[:] = cv2.warpAffine(mark, turn.astype(np.float32), mark.shape[::-1])


def _bend(part: Part, flaw: np.random.Generator, strength: float) -> Part:
    """Bend one lead of an integrated circuit, or one pin of the header, sometimes two neighbours."""
    rows = dict(part.rows)
    side = str(flaw.choice(sorted(rows)))
    pins = rows[side]
    which = int(flaw.integers(0, len(pins.lean)))
    away = float(flaw.choice([-1, 1]) * flaw.uniform(0.009, 0.018) * strength)
    pins = pins.bend(which, away, float(flaw.uniform(0, 0.6)), float(flaw.uniform(0.8, 1.05)))
    if flaw.random() < 0.25 and which + 1 < len(pins.lean):
        pins = pins.bend(which + 1, 0.7 * away, 0.2, 0.95)
    return replace(part, rows={**rows, side: pins})


def _populate(scene: np.random.Generator, pose: NDArray[np.float32], n: int, turn: float) -> dict[str, Part]:
    """The design's parts at this board's pose, each with its placement error and look."""
    parts = {}
    for design in _DESIGN:
        dx, dy, da, tone = scene.normal(0, 1, 4).clip(-2.5, 2.5).tolist()
        x, y = (pose @ np.asarray([design.x * n, design.y * n, 1.0], np.float32)).tolist()
        play = 0.0008 if design.sort in ("ic", "header") else 0.0017
        rows = {side: Pins.random(count, scene) for side, count in _LEADS.get(design.name, {}).items()}
        parts[design.name] = replace(
            design,
            x=x / n + play * dx,
            y=y / n + play * dy,
            angle_rad=design.angle_rad + turn + 8 * play * da,
            tone=1 + 0.06 * tone,
            rows=rows,
        )
    return parts


def _bare_board(scene: np.random.Generator, layers: list[F32], n: int) -> Surface:
    board, copper, pads, silk = layers
    tray = 0.055 * scene.uniform(0.85, 1.2)
    surface = Surface.plain(n, (tray, tray, tray * 1.05), gloss=0.2)
    weave = grain(scene, n, 1.1)
    hue = scene.normal(1, 0.04, 3).tolist()
    everything = (slice(0, n), slice(0, n))
    surface.height += np.float32(0.25) * grain(scene, n, 0.8) - np.float32(0.018 * n)
    mottled = 1 + 0.05 * weave + 0.05 * smooth_field(scene, n, 8)
    solder_mask = [
        np.asarray((bare * tone + copper * ((over - bare) * tone)) * mottled, np.float32)
        for bare, over, tone in zip(_MASK, _MASK_ON_COPPER, hue, strict=True)
    ]
    relief = cv2.GaussianBlur(copper, (0, 0), 0.0014 * n) * np.float32(0.0016 * n) + np.float32(0.05) * weave
    surface.lay(everything, board, height=relief, colour=solder_mask, gloss=0.55)
    ink = silk * np.float32(0.9)
    surface.height += ink * np.float32(0.0008 * n)
    surface.lay(everything, ink, colour=(0.62, 0.63, 0.60), gloss=0.1)
    solder = cv2.GaussianBlur(pads, (0, 0), 0.004 * n) * pads * np.float32(0.005 * n)
    surface.height += solder
    surface.lay(everything, pads, colour=(0.66, 0.65, 0.62), metal=0.9, gloss=0.4)
    return surface


def draw_board(
    scene: np.random.Generator,
    n: int,
    kind: str | None,
    flaw: np.random.Generator,
    strength: float,
    finish: Finish | None = None,
) -> tuple[Surface, NDArray[np.bool_] | None]:
    """Draw one board at ``n`` render pixels; ``kind`` None is a good one; ``finish`` draws on it last.

    Returns the surface and, for ``missing`` and ``swapped``, the place of the parts concerned, bool ``[n, n]``.
    """
    degrees = float(np.clip(scene.normal(0, 0.35), -0.9, 0.9))
    shift = scene.normal(0, 0.0035, 2).clip(-0.009, 0.009) * n
    pose = cv2.getRotationMatrix2D((n / 2, n / 2), degrees, 1).astype(np.float32)
    pose[:, 2] += shift
    placed = cv2.warpAffine(_artwork(n), pose, (n, n), flags=cv2.INTER_LINEAR)
    board, copper, pads, silk = (np.asarray(a, np.float32) / np.float32(255) for a in cv2.split(placed))
    if kind == "misprint":
        _misprint(silk, flaw, pose, strength)
    surface = _bare_board(scene, [board, copper, pads, silk], n)
    parts = _populate(scene, pose, n, -float(np.deg2rad(degrees)))
    touched: tuple[str, ...] = ()
    if kind == "missing":
        touched = (str(flaw.choice(_OMITTED)),)
    if kind == "swapped":
        touched = _SWAPS[int(flaw.integers(0, len(_SWAPS)))]
        a, b = (parts[name] for name in touched)
        parts[touched[0]] = replace(a, x=b.x, y=b.y)
        parts[touched[1]] = replace(b, x=a.x, y=a.y)
    if kind == "bent":
        name = str(flaw.choice(["U1", "U1", "U2", "J1"]))
        parts[name] = _bend(parts[name], flaw, strength)
    footprint = np.zeros((n, n), np.bool_)
    for name, part in parts.items():
        if name in touched:
            box, u, v = local_grid(n, (part.x, part.y), reach_of(part), part.angle_rad)
            leads = 0.03 if part.sort == "ic" else 0.006
            footprint[box] |= rounded_box(u, v, part.width / 2 + leads, part.height / 2 + 0.003) < 0
        if not (kind == "missing" and name in touched):
            draw_part(surface, part, n)
    region = board > 0.99
    if kind in FULL_DEFECTS:
        FULL_DEFECTS[kind](surface, region, flaw, strength)
    if finish is not None:
        finish(surface, region)
    return surface, footprint if touched else None
