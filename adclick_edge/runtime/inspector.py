"""A bundle at work: frames in, verdicts out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from adclick_edge.bundle import Bundle, GoldenFrame, read_bundle
from adclick_edge.bundle.names import BANK, CALIBRATION
from adclick_edge.data.resize import fit
from adclick_edge.errors import BundleError
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.calibration import Calibration, load_calibration, made_under
from adclick_edge.runtime.decision import FrameVerdict, judge
from adclick_edge.runtime.engine import Engine
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.runtime.regions import Regions, load_regions, valid_mask
from adclick_edge.runtime.tiles import MapBlender, cut_tile, plan_tiles

__all__ = ["MAP_STRIDE", "TILES_PER_BATCH", "Inspection", "Inspector", "Settings", "read_bank", "scaled_size"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

GOLDEN_TOLERANCE = 1e-2
"""Largest difference of a golden map, relative to the spread of that map, that a loaded bundle may show: other CPUs sum
in another order, and a cell whose two nearest rows are equally near may take either."""
GOLDEN_QUANTILE = 0.999
MAP_STRIDE = 4
TILES_PER_BATCH = 8


@dataclass(frozen=True)
class Inspection:
    verdict: FrameVerdict
    map: F32
    """Raw map, float32 [h4, w4]."""


@dataclass(frozen=True)
class Settings:
    """Thresholds and the regions they hold for, taken over together: a batch never meets one without the other."""

    calibration: Calibration | None = None
    regions: Regions = field(default_factory=Regions)
    notices: tuple[str, ...] = ()
    """What the people who use the bundle must be told about them."""


class Inspector:
    """Loads a product bundle, checks its golden frames, and inspects.

    Thresholds are read when the inspector opens and by `reload_settings`; the networks and the bank stay as they are.
    With ``thresholds=False`` those in the bundle are not even read, so that ones nobody can read can be replaced.
    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        bank: Bank | None = None,
        check_golden: bool = True,
        thresholds: bool = True,
    ) -> None:
        """``bank`` is the bundle's where it was read before. Several inspectors may share an engine, one at a time."""
        self.bundle = bundle
        self.engine = engine
        self.bank = read_bank(bundle) if bank is None else bank
        self._handle = engine.load_bank(self.bank)
        self._thresholds = thresholds
        self.settings = self.read_settings()
        """Replaced as a whole; a batch under way goes on with those it began with."""
        if check_golden:
            for golden in bundle.golden():
                self.check_golden(golden)

    @classmethod
    def open(
        cls, path: Path | str, *, threads: int | None = None, check_golden: bool = True, thresholds: bool = True
    ) -> Self:
        """Open the bundle at ``path`` with the ONNX Runtime CPU back end."""
        bundle = read_bundle(path, unread=() if thresholds else (CALIBRATION,))
        try:
            engine = OrtCpuEngine(bundle.path("features.onnx").parent, threads=threads)
            return cls(bundle, engine, check_golden=check_golden, thresholds=thresholds)
        except BaseException:
            bundle.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bundle.close()

    @property
    def calibration(self) -> Calibration | None:
        return self.settings.calibration

    @property
    def regions(self) -> Regions:
        return self.settings.regions

    @property
    def notices(self) -> tuple[str, ...]:
        """What the people who use this bundle must be told about its settings."""
        return self.settings.notices

    def reload_settings(self) -> None:
        """Take over thresholds and regions as they stand in the bundle now; `read_settings` says which."""
        self.settings = self.read_settings()

    def read_settings(self) -> Settings:
        """Thresholds and regions as they stand in the bundle now. Raises AdclickError where they cannot be read.

        Thresholds set under other regions are not taken: every frame would be uncertain, and the notice says why.
        """
        calibration = load_calibration(self.bundle) if self._thresholds else None
        regions = load_regions(self.bundle)
        if calibration is None or made_under(calibration, regions):
            return Settings(calibration, regions)
        notice = "the regions changed after the thresholds were set: run `adclick calibrate`"
        return Settings(None, regions, (notice,))

    def inspect(
        self,
        frames: Sequence[U8],
        names: Sequence[str],
        *,
        shapes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Inspection]:
        """Verdicts on frames (uint8 [H, W, 3] each, any sizes), in order.

        ``shapes`` are the (H, W) that frames had before they were brought to the input size, where that was done
        already: boxes of blobs are in pixels of those.
        """
        settings = self.settings
        maps, stage_ms = self.maps(frames)
        if shapes is None:
            shapes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        return [
            Inspection(
                judge(
                    anomaly_map,
                    settings.calibration,
                    frame=name,
                    bundle_version=self.bundle.manifest.version,
                    valid=_valid(settings.regions, anomaly_map.shape),
                    frame_shape=shape,
                    stage_ms=stage_ms,
                ),
                anomaly_map,
            )
            for name, shape, anomaly_map in zip(names, shapes, maps, strict=True)
        ]

    def maps(
        self, frames: Sequence[U8], *, exclude_images: Sequence[int] | None = None
    ) -> tuple[list[F32], dict[str, float]]:
        """Raw maps of frames and the milliseconds per stage, for the whole call; no frames give no maps."""
        if not frames:
            return [], {}
        if self.bundle.manifest.tiling is not None:
            return self._tiled(frames, exclude_images)
        began = time.perf_counter()
        batch = np.stack([fit(frame, self.bundle.manifest.input_size) for frame in frames])
        resize_ms = 1e3 * (time.perf_counter() - began)
        result = self.engine.run(batch, self._handle, exclude_images=exclude_images)
        return list(result.maps), {"resize": resize_ms, **result.stage_ms}

    def valid(self, map_shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        """Cells of the map that count, bool [h4, w4]; None when all do."""
        return _valid(self.regions, map_shape)

    def warm_up(self, frames: int) -> None:
        """Run the graphs once on so many black frames of the input size: the first batch of a size is slow."""
        self.engine.run(np.zeros((frames, *self.bundle.manifest.input_size, 3), np.uint8), self._handle)

    def _tiled(self, frames: Sequence[U8], exclude_images: Sequence[int] | None) -> tuple[list[F32], dict[str, float]]:
        """Each frame cut into overlapping tiles of the input size, their maps blended."""
        tiling = self.bundle.manifest.tiling
        assert tiling is not None
        size = self.bundle.manifest.input_size
        total: dict[str, float] = {"resize": 0.0}
        maps = []
        for number, frame in enumerate(frames):
            began = time.perf_counter()
            scaled = fit(frame, scaled_size(frame.shape, tiling.scale))
            tiles = plan_tiles(scaled.shape[0], scaled.shape[1], size, tiling.overlap, scale=MAP_STRIDE)
            blender = MapBlender(scaled.shape[0], scaled.shape[1], scale=MAP_STRIDE)
            total["resize"] += 1e3 * (time.perf_counter() - began)
            for start in range(0, len(tiles), TILES_PER_BATCH):
                some = tiles[start : start + TILES_PER_BATCH]
                own = None if exclude_images is None else [exclude_images[number]] * len(some)
                result = self.engine.run(
                    np.stack([cut_tile(scaled, t) for t in some]), self._handle, exclude_images=own
                )
                for tile, tile_map in zip(some, result.maps, strict=True):
                    blender.add(tile, tile_map)
                for stage, spent in result.stage_ms.items():
                    total[stage] = total.get(stage, 0.0) + spent
            maps.append(blender.result())
        return maps, total

    def check_golden(self, golden: GoldenFrame) -> None:
        """BundleError where this engine does not give the map that the exporting machine computed."""
        (found,), _ = self.maps([golden.frame])
        if found.shape != golden.map.shape:
            raise BundleError(
                f"{self.bundle.location}: golden frame {golden.name} gives a map of {found.shape}, expected "
                f"{golden.map.shape}; the bundle's graphs and golden frames do not belong together: export it anew"
            )
        spread = float(np.ptp(golden.map)) + 1e-6
        difference = float(np.quantile(np.abs(found - golden.map), GOLDEN_QUANTILE)) / spread
        if not difference <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"{self.bundle.location}: golden frame {golden.name} differs by {difference:.3g} of its map's spread "
                f"on {self.engine.name} (at most {GOLDEN_TOLERANCE}); this machine does not compute what was "
                "exported: do not use the bundle here, export it anew"
            )


def read_bank(bundle: Bundle) -> Bank:
    """The bank of a product bundle. BundleError for a bundle of weights, and for a file that is no bank."""
    if bundle.manifest.kind != "product":
        raise BundleError(
            f"{bundle.location} holds weights but no product; make one with `adclick bank --weights {bundle.location}`"
        )
    return Bank.from_bytes(bundle.read(BANK), name=f"{bundle.location}: {BANK}")


def scaled_size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Height and width of a frame of ``shape`` after scaling for tiles: multiples of the map's stride, so that the map
    covers the frame exactly and not up to three pixels more.
    """
    height, width = (max(1, round(side * scale / MAP_STRIDE)) * MAP_STRIDE for side in shape[:2])
    return height, width


def _valid(regions: Regions, map_shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    if not regions.roi and not regions.ignore:
        return None
    return valid_mask(regions, map_shape[0], map_shape[1])
