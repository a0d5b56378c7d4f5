"""What the network knows of a view before any click: features of its pixels, residuals of the frame, one embedding."""

import time
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.bundle import Manifest
from adclick_edge.data.resize import fit
from adclick_edge.runtime.click_view import View, crop_grid, whole_view
from adclick_edge.runtime.engine import BankHandle, ClickEngine, Features
from adclick_edge.runtime.tiles import cut_tile, plan_tiles

__all__ = ["MIRRORS", "Mirror", "ViewEncoder", "mirrored"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

Mirror = tuple[bool, bool]
"""Whether a view is seen upside down, and left side right."""
MIRRORS: tuple[Mirror, ...] = ((False, False), (False, True), (True, False), (True, True))

CELL = 8
KEPT_VIEWS = 3
"""Embeddings kept: of the whole frame, of the view in use and of the one before it, which undo returns to."""


def mirrored(maps: F32, mirror: Mirror) -> F32:
    """float32 [..., h, w] turned over; twice gives back what it was."""
    upside_down, left_right = mirror
    return np.ascontiguousarray(maps[..., :: -1 if upside_down else 1, :: -1 if left_right else 1])


class ViewEncoder:
    """Embeds views of one frame, each once for each of ``mirrors``. Residuals are taken of the whole frame as it is, at the
    size its bank was made for: neither an enlarged part nor a mirrored one has its counterpart there.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: ClickEngine,
        bank: BankHandle | None,
        mirrors: tuple[Mirror, ...] = MIRRORS[:1],
    ) -> None:
        assert manifest.click is not None
        self.size = manifest.click.size
        self._manifest = manifest
        self._engine = engine
        self._bank = bank
        self.mirrors = mirrors
        self._frame: U8 = np.zeros((0, 0, 3), np.uint8)
        self._kept: OrderedDict[View, list[Features]] = OrderedDict()
        self._relative: F32 = np.zeros((manifest.embedding_dims, 1, 1), np.float32)
        self._distance: F32 = np.zeros((1, 1, 1), np.float32)

    def set_frame(self, frame: U8) -> dict[str, float]:
        """Take a frame (uint8 [H, W, 3]) and embed the whole of it; milliseconds by stage."""
        began = time.perf_counter()
        self._kept.clear()
        self._frame = frame
        features = self._take_residuals()
        residual_ms = 1e3 * (time.perf_counter() - began)
        _, stage_ms = self._embed(whole_view((frame.shape[0], frame.shape[1])), features)
        return {"residual": residual_ms, **stage_ms}

    def embed(self, view: View) -> tuple[list[Features], dict[str, float]]:
        """The embeddings of ``view``, one for each mirror, and the milliseconds by stage; none where they were kept."""
        if view in self._kept:
            self._kept.move_to_end(view)
            return self._kept[view], {}
        return self._embed(view, None)

    def _embed(self, view: View, features: Features | None) -> tuple[list[Features], dict[str, float]]:
        """``features`` of the view, not mirrored, where they are known already."""
        began = time.perf_counter()
        part = self._frame[view.top : view.top + view.height, view.left : view.left + view.width]
        shown = fit(np.ascontiguousarray(part), self.size)
        frame_size = (self._frame.shape[0], self._frame.shape[1])
        grid = (self.size[0] // CELL, self.size[1] // CELL)
        relative = crop_grid(self._relative, view, frame_size, grid)
        distance = crop_grid(self._distance, view, frame_size, grid)
        spent = {"resize": time.perf_counter() - began, "features": 0.0, "click_encode": 0.0}
        embeddings = []
        for upside_down, left_right in self.mirrors:
            began = time.perf_counter()
            seen = np.ascontiguousarray(shown[:: -1 if upside_down else 1, :: -1 if left_right else 1])[None]
            if features is None or upside_down or left_right:
                features = self._engine.features(seen)
            with_features = time.perf_counter()
            feed: dict[str, npt.NDArray[Any]] = {
                **features,
                "frames": seen,
                "relative": mirrored(relative, (upside_down, left_right))[None],
                "relative_distance": mirrored(distance, (upside_down, left_right))[None],
            }
            embeddings.append(self._engine.click_encode(feed))
            spent["features"] += with_features - began
            spent["click_encode"] += time.perf_counter() - with_features
        self._keep(view, embeddings)
        return embeddings, {stage: 1e3 * seconds for stage, seconds in spent.items()}

    def _keep(self, view: View, embeddings: list[Features]) -> None:
        self._kept[view] = embeddings
        whole = whole_view((self._frame.shape[0], self._frame.shape[1]))
        while len(self._kept) > KEPT_VIEWS:
            del self._kept[next(kept for kept in self._kept if kept != whole)]

    def _take_residuals(self) -> Features | None:
        """The features of the whole frame, where they come along."""
        if self._bank is None:
            return None  # zeros say that there is no bank
        if self._manifest.tiling is not None:
            self._relative, self._distance = self._tiled_residuals()
            return None
        input_size = self._manifest.input_size
        found = self._engine.residuals(fit(self._frame, input_size)[None], self._bank)
        self._relative, self._distance = found["relative"][0], found["relative_distance"][0]
        return found if input_size == self.size else None

    def _tiled_residuals(self) -> tuple[F32, F32]:
        """Residuals [D, h, w] and distances [1, h, w] of the frame, scaled and cut as its bank was; where tiles overlap,
        their mean.
        """
        tiling, tile_size = self._manifest.tiling, self._manifest.input_size
        assert tiling is not None
        assert self._bank is not None
        rows, columns = (max(1, round(side * tiling.scale / CELL)) for side in self._frame.shape[:2])
        scaled = fit(self._frame, (rows * CELL, columns * CELL))
        # Distances are the first channel.
        total = np.zeros((1 + self._manifest.embedding_dims, rows, columns), np.float32)
        count = np.zeros((rows, columns), np.float32)
        for tile in plan_tiles(scaled.shape[0], scaled.shape[1], tile_size, tiling.overlap, scale=CELL):
            found = self._engine.residuals(cut_tile(scaled, tile)[None], self._bank)
            cells = np.s_[
                tile.top // CELL : min(rows, (tile.top + tile.height) // CELL),
                tile.left // CELL : min(columns, (tile.left + tile.width) // CELL),
            ]
            inside = count[cells].shape
            count[cells] += 1
            total[:1, *cells] += found["relative_distance"][0, :, : inside[0], : inside[1]]
            total[1:, *cells] += found["relative"][0, :, : inside[0], : inside[1]]
        total /= count
        return total[1:], total[:1]
