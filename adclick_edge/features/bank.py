"""The bank: features of a product's normal parts, and what is needed to search them.

A bank belongs to one product and one set of weights. It is data, not part of a graph: replacing it needs no export.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from adclick_edge.errors import BundleError
from adclick_edge.features.position import position_code, query_order, window_candidates
from adclick_edge.features.search import augment_queries, augment_rows, nearest_rows, nearest_rows_in_blocks

__all__ = ["Bank", "BankOptions", "Residual"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class BankOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bank is made and searched. Part of a preset; a product may override it."""

    rows: int = 2000
    """Most rows kept by the coreset."""
    search_dims: int = 64
    """Most principal components searched; fewer when 95 % of the variance needs fewer."""
    variance: float = 0.95
    """Share of the coreset's variance the principal components keep (method section 1.4)."""
    position_weight: float = 0.0
    """Weight of the position code relative to the spread of the features: 0.03 for textures, 0.15 for aligned parts
    (section 1.3)."""
    position_dims: int = 16
    window_radius: int = -1
    """Hard position window in cells for aligned parts; -1 searches everywhere."""
    retrieve_images: int = 0
    """Search only the rows of this many nearest normal images (section 1.5); 0 searches all."""
    coreset_dims: int = 128
    """Distances of the coreset choice are taken in a random projection to this many dims where features have more."""


@dataclass(frozen=True)
class Residual:
    """What is left of each cell after matching: arrays over [N, h, w]."""

    index: npt.NDArray[np.int64]
    """Row matched, int64 [N, h, w]."""
    distance: F32
    """Squared distance in the full feature space, float32 [N, 1, h, w]: the residual summed over channels."""
    residual: F32
    """(row - feature)^2 per channel, float32 [N, D, h, w] (section 1.6)."""


@dataclass(frozen=True)
class Bank:
    rows: F32
    """Features, float32 [M, D], sorted by the image they come from."""
    coordinates: F32
    """Search coordinates, float32 [M, s]: principal components, then the weighted position code."""
    row_image: I32
    """Index of the source image of each row, int32 [M], ascending."""
    row_cell: I32
    """Cell (y, x) of each row in its image's grid, int32 [M, 2]."""
    centre: F32
    """Mean feature, float32 [D]."""
    projection: F32
    """Principal directions, float32 [D, d]."""
    residual_scale: F32
    """Mean residual per channel of normal cells against other images' rows, float32 [D]: makes residuals of different
    products and channels comparable."""
    grid: tuple[int, int]
    """Cells (h, w) of a frame."""
    position_scale: float
    """Factor of the position code in the search coordinates; 0 = none."""
    options: BankOptions
    image_hashes: tuple[str, ...]
    """SHA-256 of each source image file, in the order of ``row_image``."""
    image_descriptors: F32 = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """Retrieval descriptors, float32 [images, windows, c]; empty when the bank is searched whole."""
    descriptor_centre: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    descriptor_projection: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def dims(self) -> int:
        return int(self.rows.shape[1])

    @cached_property
    def search(self) -> F32:
        """Rows as the search wants them, float32 [M, s + 1]."""
        return augment_rows(self.coordinates)

    @cached_property
    def cell_code(self) -> F32:
        """Weighted position code of each cell, float32 [h*w, p]; p = 0 without position."""
        height, width = self.grid
        if self.position_scale == 0.0:
            return np.zeros((height * width, 0), np.float32)
        code = position_code(height, width, self.options.position_dims)
        scaled: F32 = (code / np.linalg.norm(code, axis=1, keepdims=True) * self.position_scale).astype(np.float32)
        return scaled

    @cached_property
    def window(self) -> tuple[I32, I32] | None:
        """``(order [B, q], candidates [B, m])`` of the hard position window, None when it is off."""
        if self.options.window_radius < 0:
            return None
        height, width = self.grid
        order = query_order(height, width, 8)
        return order, window_candidates(self.row_cell, height, width, 8, self.options.window_radius)

    def queries(self, embedding: F32) -> F32:
        """Cells of one frame (float32 [D, h, w]) as the search wants them, float32 [h*w, s + 1]."""
        cells = embedding.reshape(self.dims, -1).T
        return augment_queries(np.concatenate([(cells - self.centre) @ self.projection, self.cell_code], axis=1))

    def residual(self, embedding: F32, *, exclude_images: npt.NDArray[np.integer[Any]] | None = None) -> Residual:
        """Match every cell and subtract: the reference that graphs and kernels are checked against.

        ``embedding`` float32 [N, D, h, w]; ``exclude_images`` int [N]: the bank image whose rows frame n must not match
        (-1 = none), for leave-one-out; such a frame is matched to all other images' rows, also where the bank has a
        position window. ValueError if the grid is another than the bank's or no row is left.
        """
        if embedding.shape[1:] != (self.dims, *self.grid):
            raise ValueError(
                f"embedding of shape {embedding.shape} against a bank of {self.dims} dims on grid {self.grid}"
            )
        out_index, out_residual = [], []
        for n, frame in enumerate(embedding):
            queries = self.queries(frame)
            if exclude_images is not None and exclude_images[n] >= 0:
                index = nearest_rows(queries, self.search, allowed=self.row_image != exclude_images[n])
            elif self.window is not None:
                index = nearest_rows_in_blocks(queries, self.search, *self.window)
            else:
                index = nearest_rows(queries, self.search)
            difference = self.rows[index].T.reshape(frame.shape) - frame
            out_index.append(index.reshape(self.grid))
            out_residual.append(difference * difference)
        residual = np.stack(out_residual)
        return Residual(np.stack(out_index), residual.sum(axis=1, keepdims=True), residual)

    def to_bytes(self) -> bytes:
        """The bank as a safetensors file; the same bank gives the same bytes."""
        tensors = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name in _TENSORS}
        about = {
            "schema": "1",
            "grid": json.dumps(self.grid),
            "position_scale": json.dumps(self.position_scale),
            "options": msgspec.json.encode(self.options).decode(),
            "image_hashes": json.dumps(self.image_hashes),
        }
        data = safetensors.numpy.save(tensors, metadata=about)
        # The metadata come out in random order.
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "bank.safetensors") -> Self:
        """BundleError if ``data`` is no bank of this schema."""
        try:
            tensors = safetensors.numpy.load(data)
            header_size = int.from_bytes(data[:8], "little")
            about: Mapping[str, str] = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
            if about.get("schema") != "1":
                raise BundleError(
                    f"{name}: bank of schema {about.get('schema')!r}, this version reads '1'; make it anew"
                )
            bank = cls(
                **{key: tensors[key] for key in _TENSORS},
                grid=msgspec.json.decode(about["grid"], type=tuple[int, int]),
                position_scale=msgspec.json.decode(about["position_scale"], type=float),
                options=msgspec.json.decode(about["options"], type=BankOptions),
                image_hashes=msgspec.json.decode(about["image_hashes"], type=tuple[str, ...]),
            )
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{name} is not a readable bank ({error}); make it anew with `adclick bank`") from error
        problem = bank._problem()
        if problem:
            raise BundleError(f"{name} is not a usable bank: {problem}; make it anew with `adclick bank`")
        return bank

    def _problem(self) -> str:
        """What would make the bank fail or mislead when it is searched; empty if nothing."""
        for key, kind in _TENSORS.items():
            tensor = getattr(self, key)
            if tensor.dtype != kind:
                return f"{key} is {tensor.dtype}, expected {np.dtype(kind)}"
            if not np.isfinite(tensor).all():
                return f"{key} holds values that are not finite"
        code_dims = self.options.position_dims if self.position_scale else 0
        images = len(self.image_hashes)
        sizes = {"two": 2}
        for key, names in _SHAPES.items():
            shape = getattr(self, key).shape
            if len(shape) != len(names) or any(sizes.setdefault(n, s) != s for n, s in zip(names, shape, strict=True)):
                expected = ", ".join(f"{n} = {sizes[n]}" if n in sizes else n for n in names)
                return f"{key} has shape {list(shape)}, expected [{expected}]"
        if 0 in (sizes["M"], sizes["D"]):
            return f"it has {sizes['M']} rows of {sizes['D']} features"
        if sizes["s"] != sizes["d"] + code_dims:
            return f"{sizes['s']} search coordinates for {sizes['d']} components and {code_dims} of position"
        if not (0 <= self.position_scale < np.inf) or (code_dims < 4 and self.position_scale):
            return f"the position code has scale {self.position_scale} and {code_dims} dims"
        height, width = self.grid
        if height < 1 or width < 1 or height * width > _MOST_CELLS:
            return f"its grid is {height} x {width} cells"
        if self.row_cell.min() < 0 or (self.row_cell >= self.grid).any():
            return f"it has rows of cells outside its grid of {height} x {width}"
        if self.row_image[0] < 0 or self.row_image[-1] >= images or (np.diff(self.row_image) < 0).any():
            return f"its rows are not sorted by the {images} images they come from"
        if self.residual_scale.min() <= 0:
            return "residual_scale holds values that are not positive"
        if self.options.retrieve_images and (len(self.image_descriptors) != images or sizes["windows"] == 0):
            return f"it has {len(self.image_descriptors)} descriptors for {images} images to retrieve"
        return ""


_TENSORS: dict[str, type[np.generic]] = {
    "rows": np.float32,
    "coordinates": np.float32,
    "row_image": np.int32,
    "row_cell": np.int32,
    "centre": np.float32,
    "projection": np.float32,
    "residual_scale": np.float32,
    "image_descriptors": np.float32,
    "descriptor_centre": np.float32,
    "descriptor_projection": np.float32,
}
_SHAPES = {
    "rows": ("M", "D"),
    "coordinates": ("M", "s"),
    "row_image": ("M",),
    "row_cell": ("M", "two"),
    "centre": ("D",),
    "projection": ("D", "d"),
    "residual_scale": ("D",),
    "image_descriptors": ("images", "windows", "c"),
    "descriptor_centre": ("C",),
    "descriptor_projection": ("C", "c"),
}
_MOST_CELLS = 1 << 24
"""More than any picture has; a grid from a file is believed no further."""
