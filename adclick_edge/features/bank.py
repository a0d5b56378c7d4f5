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
    """Weight of the position code relative to the spread of the features; 0.03 textures, 0.15 aligned parts (section 1.3)."""
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
        unit = code / np.linalg.norm(code, axis=1, keepdims=True)
        return (unit * self.position_scale).astype(np.float32)

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
        (-1 = none), for leave-one-out. ValueError if the grid is another than the bank's or no row is left.
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
        tensors = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self) if f.name in _TENSORS}
        about = {
            "schema": "1",
            "grid": json.dumps(self.grid),
            "position_scale": json.dumps(self.position_scale),
            "options": msgspec.json.encode(self.options).decode(),
            "image_hashes": json.dumps(self.image_hashes),
        }
        return safetensors.numpy.save(tensors, metadata=about)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "bank.safetensors") -> Self:
        """BundleError if ``data`` is no bank of this schema."""
        try:
            header_size = int.from_bytes(data[:8], "little")
            about: Mapping[str, str] = json.loads(data[8 : 8 + header_size]).get("__metadata__", {})
            tensors = safetensors.numpy.load(data)
            if about.get("schema") != "1":
                raise BundleError(
                    f"{name}: bank of schema {about.get('schema')!r}, this version reads '1'; make it anew"
                )
            grid = json.loads(about["grid"])
            bank = cls(
                **{key: tensors[key] for key in _TENSORS},
                grid=(int(grid[0]), int(grid[1])),
                position_scale=float(json.loads(about["position_scale"])),
                options=msgspec.json.decode(about["options"], type=BankOptions),
                image_hashes=tuple(json.loads(about["image_hashes"])),
            )
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, msgspec.ValidationError) as error:
            raise BundleError(f"{name} is not a readable bank ({error}); make it anew with `adclick bank`") from error
        bank._check(name)
        return bank

    def _check(self, name: str) -> None:
        rows, dims = self.rows.shape
        expected = {
            "coordinates": (rows, self.projection.shape[1] + self.cell_code.shape[1]),
            "row_image": (rows,),
            "row_cell": (rows, 2),
            "centre": (dims,),
            "projection": (dims, self.projection.shape[1]),
            "residual_scale": (dims,),
        }
        for key, shape in expected.items():
            if getattr(self, key).shape != shape:
                raise BundleError(f"{name}: {key} has shape {getattr(self, key).shape}, expected {shape}; make it anew")
        if rows == 0 or not np.isfinite(self.rows).all():
            raise BundleError(f"{name}: the bank is empty or holds values that are not finite; make it anew")


_TENSORS = (
    "rows",
    "coordinates",
    "row_image",
    "row_cell",
    "centre",
    "projection",
    "residual_scale",
    "image_descriptors",
    "descriptor_centre",
    "descriptor_projection",
)
