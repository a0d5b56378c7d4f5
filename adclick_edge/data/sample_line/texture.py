"""``fabric``: a 2/1 twill of blue warp and pale weft yarns, seen as on a roll of cloth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .defects import FULL_DEFECTS, Finish, pick_point
from .surface import F32, Surface, grain, ramp, smooth_field

__all__ = ["FABRIC_KINDS", "draw_fabric"]

FABRIC_KINDS = ("broken_thread", "contamination", "hole", "snag", "stain")

_THREADS = 42
_TABLE = 2048
_COSINE = np.cos(np.linspace(0, 2 * np.pi, _TABLE, endpoint=False)).astype(np.float32)


def _cos(turns: F32) -> F32:
    """Cosine by table; ``turns`` counts whole periods."""
    return _COSINE.take((turns * np.float32(_TABLE)).astype(np.int32) & (_TABLE - 1), mode="clip")


@dataclass
class _Yarns:
    """One direction's yarns: continuous coordinate, index and position -0.5..0.5 across the yarn, each ``[n, n]``."""

    along: F32
    index: NDArray[np.int32]
    across: F32


def _yarns(along: F32, rng: np.random.Generator) -> _Yarns:
    index = np.floor(along).astype(np.int32)
    jitter = rng.normal(0, 0.035, 4096).astype(np.float32)
    return _Yarns(along, index, along - index - np.float32(0.5) + jitter.take(index & 4095, mode="clip"))


def _by_yarn(values: F32, yarns: _Yarns) -> F32:
    return values.take(yarns.index & (len(values) - 1), mode="clip")


def _snag(rng: np.random.Generator, u: F32, v: F32, strength: float) -> None:
    """Pull the yarns towards one of them, as a caught loop does."""
    n = u.shape[0]
    cx, cy = pick_point(np.ones((n, n), np.bool_), rng, 0.15)
    at_u, at_v = u[int(cy * n), int(cx * n)], v[int(cy * n), int(cx * n)]
    long, wide = rng.uniform(4, 10), rng.uniform(1.3, 3.0)
    if rng.random() < 0.5:
        u, v, at_u, at_v = v, u, at_v, at_u
    du, dv = (u - at_u) / np.float32(wide), (v - at_v) / np.float32(long)
    window = np.clip(1 - du * du, 0, None) ** 2 * np.clip(1 - dv * dv, 0, None) ** 2
    pull = np.float32(strength * rng.choice([-1, 1]) * rng.uniform(0.6, 1.1))
    u += pull * np.asarray(window, np.float32)


def _broken(rng: np.random.Generator, yarns: _Yarns, crossing: F32, profile: F32, strength: float) -> None:
    """Take out a length of one yarn; its ends fray before they stop."""
    n = crossing.shape[0]
    cx, cy = pick_point(np.ones((n, n), np.bool_), rng, 0.12)
    spot = int(cy * n), int(cx * n)
    half = rng.uniform(1.2, 6) * strength
    gone = np.abs(crossing - crossing[spot]) - np.float32(half)
    gone += np.float32(0.5) * _cos(yarns.across * np.float32(3.7))
    chosen = yarns.index == yarns.index[spot]
    if rng.random() < 0.3:
        chosen |= yarns.index == yarns.index[spot] + 1
    profile -= 6 * chosen * (1 - ramp(gone, -0.3, 0.3))


def draw_fabric(
    scene: np.random.Generator,
    n: int,
    kind: str | None,
    flaw: np.random.Generator,
    strength: float,
    finish: Finish | None = None,
) -> tuple[Surface, None]:
    """Draw one frame of cloth at ``n`` render pixels; ``kind`` None is a good one; ``finish`` draws on it last.

    No part has a footprint."""
    threads = _THREADS * scene.normal(1, 0.012)
    angle = scene.normal(0, 0.012)
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    shift_u, shift_v = scene.uniform(600, 1200, 2)
    c, s = np.cos(angle) * threads, np.sin(angle) * threads
    u = (c * axis[None, :] + s * axis[:, None] + shift_u).astype(np.float32)
    v = ((c * axis[:, None] - s * axis[None, :]) * 0.88 + shift_v).astype(np.float32)
    u += np.float32(0.16) * smooth_field(scene, n, 6)
    v += np.float32(0.16) * smooth_field(scene, n, 6)
    if kind == "snag":
        _snag(flaw, u, v, strength)
    warp, weft = _yarns(u, scene), _yarns(v, scene)

    # 2/1 twill: at the crossing m = (i + j) mod 3 the warp lies above for m = 0, 1 and below for m = 2.
    warp_rise = _cos((v + warp.index - np.float32(1)) * np.float32(1 / 3))
    weft_rise = -_cos((u + weft.index - np.float32(1)) * np.float32(1 / 3))
    fuzz = grain(scene, n, 0.9)
    warp_round = np.sqrt(np.clip(1 - (warp.across * np.float32(1 / 0.53)) ** 2, 0.02, None))
    weft_round = np.sqrt(np.clip(1 - (weft.across * np.float32(1 / 0.53)) ** 2, 0.02, None))
    warp_top = 0.62 * warp_round + 0.34 * warp_rise
    weft_top = 0.62 * weft_round + 0.34 * weft_rise
    if kind == "broken_thread":
        if flaw.random() < 0.5:
            _broken(flaw, warp, v, warp_top, strength)
        else:
            _broken(flaw, weft, u, weft_top, strength)
    if kind == "hole":
        cx, cy = pick_point(np.ones((n, n), np.bool_), flaw, 0.1)
        radius = flaw.uniform(0.9, 3.4) * strength
        du, dv = u - u[int(cy * n), int(cx * n)], v - v[int(cy * n), int(cx * n)]
        far = np.hypot(du, dv * np.float32(flaw.uniform(0.8, 1.5)))
        ragged = smooth_field(flaw, n, 30) * 0.3
        # Yarns end at different lengths round a tear.
        ends = flaw.normal(0, 0.45, 64).astype(np.float32)
        warp_top -= 6 * (1 - ramp(far + ragged + ends[warp.index & 63], radius - 0.15, radius + 0.15))
        weft_top -= 6 * (1 - ramp(far + ragged + ends[weft.index & 63], radius - 0.15, radius + 0.15))

    twist = _cos(
        np.where(warp_top > weft_top, 1.3 * warp.across + 1.1 * v, 1.3 * weft.across - 1.1 * u).astype(np.float32)
    )
    over = ramp(warp_top - weft_top, -0.06, 0.06)
    top = np.maximum(np.maximum(warp_top, weft_top), np.float32(-1.2))
    pitch_px = n / threads
    height = (
        top * np.float32(0.36 * pitch_px) + np.float32(0.05 * pitch_px) * twist + np.float32(0.03 * pitch_px) * fuzz
    )

    tone = scene.normal(1, 0.055, (2, 4096)).astype(np.float32)
    slub = 1 + 0.05 * smooth_field(scene, n, 24) + 0.09 * fuzz + 0.10 * twist
    warp_tone, weft_tone = _by_yarn(tone[0], warp) * slub, _by_yarn(tone[1], weft) * slub
    wash = scene.normal(1, 0.025)
    warp_colour, weft_colour = (0.068 * wash, 0.110 * wash, 0.205), (0.37, 0.37, 0.35)
    warp_part, weft_part = over * warp_tone, (1 - over) * weft_tone
    lost = ramp(-top, 0.35, 0.8)  # between and under the yarns one looks into the dark of the roll
    warp_part *= 1 - 0.96 * lost
    weft_part *= 1 - 0.96 * lost
    albedo = np.stack([warp_part * a + weft_part * b for a, b in zip(warp_colour, weft_colour, strict=True)])
    surface = Surface(
        np.asarray(height, np.float32),
        np.asarray(albedo, np.float32),
        np.zeros((n, n), np.float32),
        np.full((n, n), 0.05, np.float32),
    )
    region = np.ones((n, n), np.bool_)
    if kind in FULL_DEFECTS:
        FULL_DEFECTS[kind](surface, region, flaw, strength)
    if finish is not None:
        finish(surface, region)
    return surface, None
