"""The inspection cell: one area lamp and a dome over a telecentric camera, and the camera's own faults.

Lighting is looked up by the surface normal: for each picture the lamp's diffuse, broad and tight reflections are
tabulated over all normals once, which costs a few thousand evaluations where direct shading needs half a million.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .surface import F32, Surface, ramp

__all__ = ["Camera", "Light", "add_noise", "expose", "shade", "to_levels"]

_TABLE = 96
_SHADOW_STEPS = 10


@dataclass(frozen=True)
class Light:
    """One setting of the lamp: angles in radians, powers relative to the nominal one, gradient per frame width."""

    azimuth_rad: float
    elevation_rad: float
    power: float
    ambient: float
    gradient: tuple[float, float]
    warmth: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Light":
        return cls(
            azimuth_rad=float(np.deg2rad(-128 + rng.normal(0, 9))),
            elevation_rad=float(np.deg2rad(np.clip(rng.normal(50, 3), 40, 60))),
            power=float(np.clip(rng.normal(1, 0.05), 0.85, 1.15)),
            ambient=float(rng.uniform(0.40, 0.48)),
            gradient=(float(rng.normal(0, 0.07)), float(rng.normal(0, 0.07))),
            warmth=float(np.clip(rng.normal(0, 0.013), -0.03, 0.03)),
        )


@dataclass(frozen=True)
class Camera:
    """Lens and sensor of one shot: blur in picture pixels, ``full_well`` in electrons, ``read_noise`` in electrons."""

    blur_px: float
    vignette: float
    full_well: float
    read_noise: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Camera":
        return cls(
            blur_px=float(rng.uniform(0.45, 0.72)),
            vignette=float(rng.uniform(0.06, 0.14)),
            full_well=float(rng.uniform(5000, 8000)),
            read_noise=float(rng.uniform(7, 11)),
        )


def _reflection_table(light: Light) -> F32:
    """Float32 ``[T, T, 3]``: diffuse, broad and tight reflection for the normal (x, y) in -1..1."""
    axis = np.linspace(-1, 1, _TABLE, dtype=np.float32)
    nx, ny = np.meshgrid(axis, axis)
    nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0.0025, 1))
    cos_e, sin_e = np.cos(light.elevation_rad), np.sin(light.elevation_rad)
    lx, ly, lz = cos_e * np.cos(light.azimuth_rad), cos_e * np.sin(light.azimuth_rad), sin_e
    diffuse = np.clip(nx * lx + ny * ly + nz * lz, 0, None)
    rx, ry, rz = 2 * nz * nx, 2 * nz * ny, 2 * nz * nz - 1
    key = rx * lx + ry * ly + rz * lz
    back = -rx * lx - ry * ly + rz * lz
    dome = 0.16 + 0.34 * ramp(rz, -0.35, 0.75)
    # The lens looks through a hole in the dome: a mirror that faces the camera sees it dark.
    port = 1 - 0.35 * ramp(rz, 0.955, 0.995)
    broad = dome + 1.5 * np.exp(7 * (key - 1)) + 0.25 * np.exp(7 * (back - 1))
    tight = dome * port + 4.5 * np.exp(34 * (key - 1)) + 0.5 * np.exp(30 * (back - 1))
    return np.ascontiguousarray(np.stack([diffuse, broad, tight], axis=-1), np.float32)


def _shadow(height: F32, light: Light) -> F32:
    """Share of the lamp that reaches each point, float32 ``[n, n]``, traced at half the render size."""
    n = height.shape[0]
    low = cv2.resize(height, (n // 2, n // 2), interpolation=cv2.INTER_AREA)
    relief = float(low.max() - low.min())
    reach = min(relief / np.tan(light.elevation_rad), 0.12 * n / 2)
    if reach < 0.75:
        return np.ones_like(height)
    ux, uy = np.cos(light.azimuth_rad), np.sin(light.azimuth_rad)
    rise = 0.5 * float(np.tan(light.elevation_rad))
    low = low * np.float32(0.5)
    highest = np.full_like(low, -np.inf)
    for k in range(1, _SHADOW_STEPS + 1):
        distance = reach * (k / _SHADOW_STEPS) ** 1.3
        shift = np.array([[1, 0, -ux * distance], [0, 1, -uy * distance]], np.float32)
        moved = cv2.warpAffine(low, shift, (n // 2, n // 2), borderMode=cv2.BORDER_REPLICATE)
        np.maximum(highest, moved - np.float32(2 * rise * distance), out=highest)
    blocked = np.clip((highest - low) * np.float32(0.5), 0, 1)
    blocked = cv2.GaussianBlur(blocked, (0, 0), max(0.8, 0.0045 * n))
    return np.asarray(1 - 0.88 * cv2.resize(blocked, (n, n), interpolation=cv2.INTER_LINEAR), np.float32)


def _openness(height: F32) -> F32:
    """Ambient occlusion, float32 ``[n, n]``: points below their surroundings see less of the dome."""
    n = height.shape[0]
    low = cv2.resize(height, (n // 2, n // 2), interpolation=cv2.INTER_AREA)
    sigma = max(1.0, 0.006 * n)
    depth = np.maximum(cv2.GaussianBlur(low, (0, 0), sigma) - low, 0) * np.float32(0.9 / sigma)
    open_share = np.float32(1) / (1 + depth)
    return np.asarray(cv2.resize(open_share, (n, n), interpolation=cv2.INTER_LINEAR), np.float32)


def shade(surface: Surface, light: Light) -> F32:
    """Light a surface: linear float32 ``[3, n, n]``, 1.0 near the sensor's full well."""
    n = surface.side
    gx = cv2.Scharr(surface.height, cv2.CV_32F, 1, 0, scale=1 / 32)
    gy = cv2.Scharr(surface.height, cv2.CV_32F, 0, 1, scale=1 / 32)
    to_table = np.float32((_TABLE - 1) / 2) / np.sqrt(1 + gx * gx + gy * gy)
    centre = np.float32((_TABLE - 1) / 2)
    # The outward normal of a height map z(x, y) is (-dz/dx, -dz/dy, 1).
    seen = cv2.remap(_reflection_table(light), centre - gx * to_table, centre - gy * to_table, cv2.INTER_LINEAR)
    diffuse, broad, tight = cv2.split(seen)
    lit, open_share = _shadow(surface.height, light), _openness(surface.height)
    across = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    field = np.float32(light.power) * (1 + light.gradient[0] * across[None, :] + light.gradient[1] * across[:, None])
    field = np.asarray(field, np.float32)
    mirror = (broad + surface.gloss * (tight - broad)) * open_share * (0.35 + 0.65 * lit)
    matte = 0.78 * diffuse * lit + np.float32(light.ambient) * open_share
    weight = field * (matte + surface.metal * (mirror - matte))
    veil = field * mirror * (1 - surface.metal) * (0.012 + 0.033 * surface.gloss)
    picture = surface.albedo * weight
    picture += veil
    picture[0] *= np.float32(1 + light.warmth)
    picture[2] *= np.float32(1 - light.warmth)
    return np.asarray(picture, np.float32)


def expose(linear: F32, camera: Camera, size: int) -> F32:
    """Scale down to ``size``, blur and vignette: linear float32 ``[3, size, size]``."""
    sigma = camera.blur_px * max(size / 320, 0.5)
    planes = [cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in linear]
    picture = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])
    across = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    fall = 1 - np.float32(2 * camera.vignette) * (across[:, None] ** 2 + across[None, :] ** 2)
    return np.asarray(picture * fall, np.float32)


def to_levels(linear: F32) -> F32:
    """Grey levels 0..255 (float32, not rounded) as the camera writes them: soft shoulder, then gamma 2.2."""
    bent = np.maximum(linear, 0)
    # Highlights above 0.7 are rolled off as a camera's knee does, so that they keep some shape.
    high = bent > 0.7
    bent[high] = 1 - 0.3 * np.exp((0.7 - bent[high]) / 0.3)
    return np.asarray(np.power(bent, np.float32(1 / 2.2)) * np.float32(255), np.float32)


def add_noise(linear: F32, camera: Camera, rng: np.random.Generator) -> F32:
    """Photon noise (grows with the root of the light) and read noise, on linear light."""
    spread = np.sqrt(np.clip(linear, 0, None) / camera.full_well + (camera.read_noise / camera.full_well) ** 2)
    return np.asarray(linear + spread * rng.standard_normal(linear.shape, dtype=np.float32), np.float32)
