"""Building a bank from a stream of normal images, in memory bounded by the rows asked for (method section 1.4)."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import DataError
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.coreset import StreamingCoreset
from adclick_edge.features.position import position_code
from adclick_edge.features.retrieval import window_means
from adclick_edge.features.search import TILE_BYTES, augment_queries

__all__ = ["BankBuilder"]

F32 = npt.NDArray[np.float32]

PROBE_CELLS = 2048
"""Cells kept at random, beside the coreset, to measure the scale of residuals on."""


class BankBuilder:
    """`add` the embedding of each normal image, then `build`."""

    def __init__(self, options: BankOptions, *, seed: int = 0) -> None:
        self.options = options
        self.image_hashes: list[str] = []
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._coreset = StreamingCoreset(options.rows)
        self._grid: tuple[int, int] | None = None
        self._dims = 0
        self._random_projection: F32 | None = None
        self._code: F32 | None = None
        self._position_scale = 0.0
        self._windows: list[F32] = []
        self._probe: list[tuple[float, int, int, F32]] = []  # (random key, image, cell, feature)
        self._probe_limit = 1.0

    def add(
        self,
        embedding: F32,
        *,
        image_hash: str,
        new_image: bool = True,
        retrieval_map: F32 | None = None,
        valid: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Offer one normal image, or a further tile of the same image (``new_image=False``).

        ``embedding`` float32 [D, h, w]; ``image_hash`` the SHA-256 of its file; ``retrieval_map`` float32 [c, y, x],
        the stride-4 map, needed when images are retrieved (an image is described by its first tile); ``valid`` bool
        [h, w] leaves cells out (regions not inspected). ValueError if the shape differs from the first embedding's,
        the map is missing, or a tile comes before its image.
        """
        if not new_image and not self.image_hashes:
            raise ValueError("the first tile of an image must be added with new_image=True")
        if self.options.retrieve_images and new_image and retrieval_map is None:
            raise ValueError("retrieval needs the stride-4 map of each image")
        dims, height, width = embedding.shape
        cells = np.ascontiguousarray(embedding.reshape(dims, -1).T)
        number = np.arange(len(cells)) if valid is None else np.flatnonzero(valid)
        if self._grid is None:
            self._start(embedding.shape, cells[number] if len(number) else cells)
        elif (dims, height, width) != (self._dims, *self._grid):
            raise ValueError(f"embedding {embedding.shape} differs from the first, {(self._dims, *self._grid)}")
        if new_image:
            self.image_hashes.append(image_hash)
            if self.options.retrieve_images and retrieval_map is not None:
                self._windows.append(window_means(retrieval_map))
        image = len(self.image_hashes) - 1
        self._remember(cells, number, image)
        where = np.stack([number // width, number % width], axis=1).astype(np.int32)
        self._coreset.add(
            self._coordinates(cells[number], number), cells[number], np.full(len(number), image, np.int32), where
        )

    def build(self) -> Bank:
        """The bank of all images added. DataError if there were none, or no cell of them is inspected."""
        if self._grid is None:
            raise DataError("no normal image could be used: a bank needs at least one")
        if self._coreset.seen == 0:
            raise DataError("no cell of the normal images is inspected: widen the region of interest")
        _, features, images, cells = self._coreset.result()
        order = np.lexsort((cells[:, 1], cells[:, 0], images))
        rows = features[order].astype(np.float32)
        row_image, row_cell = images[order].astype(np.int32), cells[order].astype(np.int32)
        centre, projection = _principal_directions(rows, self.options.search_dims, self.options.variance)
        descriptors, descriptor_centre, descriptor_projection = self._descriptors()
        bank = Bank(
            rows=rows,
            coordinates=np.zeros((len(rows), 0), np.float32),
            row_image=row_image,
            row_cell=row_cell,
            centre=centre,
            projection=projection,
            residual_scale=np.ones(self._dims, np.float32),
            grid=self._grid,
            position_scale=self._position_scale,
            options=self.options,
            image_hashes=tuple(self.image_hashes),
            image_descriptors=descriptors,
            descriptor_centre=descriptor_centre,
            descriptor_projection=descriptor_projection,
        )
        cell = row_cell[:, 0] * self._grid[1] + row_cell[:, 1]
        coordinates = np.concatenate([(rows - centre) @ projection, bank.cell_code[cell]], axis=1).astype(np.float32)
        bank = replace(bank, coordinates=coordinates)
        return replace(bank, residual_scale=self._residual_scale(bank))

    def _start(self, shape: tuple[int, ...], cells: F32) -> None:
        dims, height, width = shape
        self._grid, self._dims = (height, width), dims
        if dims > self.options.coreset_dims:
            normal = np.random.default_rng(self._seed).normal(size=(dims, self.options.coreset_dims))
            self._random_projection = (normal / np.sqrt(self.options.coreset_dims)).astype(np.float32)
        if self.options.position_weight > 0:
            spread = float(np.sqrt(cells.var(axis=0).sum()))
            self._position_scale = self.options.position_weight * spread
            code = position_code(height, width, self.options.position_dims)
            self._code = (code / np.linalg.norm(code, axis=1, keepdims=True) * self._position_scale).astype(np.float32)

    def _coordinates(self, cells: F32, number: npt.NDArray[np.int64]) -> F32:
        out = cells if self._random_projection is None else cells @ self._random_projection
        return out if self._code is None else np.concatenate([out, self._code[number]], axis=1)

    def _remember(self, cells: F32, number: npt.NDArray[np.int64], image: int) -> None:
        """Reservoir sampling by random keys: every cell of every image has the same chance to be kept."""
        keys = self._rng.random(len(number))
        take = keys < self._probe_limit
        self._probe += [
            (float(key), image, int(c), cells[c].copy()) for key, c in zip(keys[take], number[take], strict=True)
        ]
        if len(self._probe) > 2 * PROBE_CELLS:
            self._probe = sorted(self._probe, key=lambda item: item[0])[:PROBE_CELLS]
            self._probe_limit = self._probe[-1][0]

    def _residual_scale(self, bank: Bank) -> F32:
        """Mean residual per channel of the remembered cells against the rows of all *other* images.

        With a single image there is no other: its own rows are left out within 3 cells, since neighbours overlap.
        """
        probe = sorted(self._probe, key=lambda item: item[0])[:PROBE_CELLS]
        tile = max(1, TILE_BYTES // (4 * len(bank.rows)))
        total, count = np.zeros(bank.dims), 0
        for start in range(0, len(probe), tile):
            _, image, cell, feature = zip(*probe[start : start + tile], strict=True)
            residual = self._residuals_of_others(bank, np.array(image), np.array(cell), np.stack(feature))
            total += residual.sum(axis=0, dtype=np.float64)
            count += len(residual)
        if count == 0:
            return np.ones(bank.dims, np.float32)
        scale = total / count
        # A channel that is constant on normals would make any change infinitely loud: keep 1 % of the mean as a floor.
        floored: F32 = np.maximum(scale, 0.01 * scale.mean() + 1e-12).astype(np.float32)
        return floored

    def _residuals_of_others(
        self, bank: Bank, image: npt.NDArray[np.int64], cell: npt.NDArray[np.int64], features: F32
    ) -> F32:
        """Residuals float32 [found, D] of those cells for which a row of another image is left."""
        coordinates = np.concatenate([(features - bank.centre) @ bank.projection, bank.cell_code[cell]], axis=1)
        rank = augment_queries(coordinates) @ bank.search.T
        if len(self.image_hashes) > 1:
            rank[image[:, None] == bank.row_image] = np.inf
        else:
            y, x = np.divmod(cell[:, None], bank.grid[1])
            rank[(np.abs(y - bank.row_cell[:, 0]) <= 3) & (np.abs(x - bank.row_cell[:, 1]) <= 3)] = np.inf
        nearest = rank.argmin(axis=1)
        found = np.isfinite(rank[np.arange(len(rank)), nearest])
        difference: F32 = bank.rows[nearest[found]] - features[found]
        return difference * difference

    def _descriptors(self) -> tuple[F32, F32, F32]:
        empty = np.zeros((0, 0), np.float32)
        if not self._windows:
            return np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32), empty
        windows = np.stack(self._windows)  # images x windows x channels
        centre, projection = _principal_directions(windows.reshape(-1, windows.shape[2]), 16, 1.0)
        return ((windows - centre) @ projection).astype(np.float32), centre, projection


def _principal_directions(rows: F32, most: int, variance: float) -> tuple[F32, F32]:
    """Mean float32 [D] and directions float32 [D, d] that hold ``variance`` of the rows' variance, d <= most."""
    centre = rows.mean(axis=0, dtype=np.float64)
    centred = rows - centre
    values, vectors = np.linalg.eigh(centred.T @ centred)
    share = np.cumsum(values[::-1]) / max(values.sum(), 1e-30)
    keep = min(most, int(np.searchsorted(share, variance)) + 1, rows.shape[1])
    directions = vectors[:, ::-1][:, :keep]
    # The sign of an eigenvector is arbitrary: fix it, so that the same normals give the same bank.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(keep)])
    return centre.astype(np.float32), (directions * signs).astype(np.float32)
