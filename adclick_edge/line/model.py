"""One product's bundle in memory, ready to judge."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.bundle.names import REGIONS, SETTINGS
from adclick_edge.errors import AdclickError, EngineError, LineError
from adclick_edge.line.engines import Engines, SharedEngine, Turns
from adclick_edge.runtime.inspector import MAP_STRIDE, TILES_PER_BATCH, Inspection, Inspector, Settings, read_bank
from adclick_edge.runtime.regions import valid_mask

__all__ = ["Model", "check_product", "closed_on_error", "load_model"]

REST = 3.0
"""A bundle is checked beside the line for a quarter of the time: after each run, so many times its duration of rest.

Not a thread of low priority: on a busy host that one is kept waiting while it holds the interpreter's lock, and the whole
daemon with it (0.4 s were seen).
"""
MOST_REST_S = 0.5
TILED_SIDE = 2048
"""Pixels a side of a frame that regions of tiled products are tried on, whose frames have any size."""

U8 = npt.NDArray[np.uint8]
Signature = tuple[tuple[int, int, int] | None, ...]


class Model:
    """``load_model`` makes it. The engine's thread judges; whoever changes bundles closes; anybody reads.

    ``users`` counts those who work with it at this moment; it is kept by its owner, under the owner's lock.
    """

    def __init__(
        self, product: str, inspector: Inspector, shared: SharedEngine, engines: Engines, seen: Signature
    ) -> None:
        manifest = inspector.bundle.manifest
        self.product = product
        self.version = manifest.version
        self.location: Path = inspector.bundle.location
        self.tiled = manifest.tiling is not None
        self.input_size: tuple[int, int] = manifest.input_size
        """Height and width frames are brought to before they are judged; tiled products take them as they are."""
        self.users = 0
        self._inspector: Inspector | None = inspector
        self._shared: SharedEngine | None = shared
        self._engines = engines
        self._seen = seen
        self._notice: str | None = None

    @property
    def bundle(self) -> Bundle:
        """EngineError once it was closed."""
        if self._inspector is None:
            raise self._unloaded()
        return self._inspector.bundle

    @property
    def settings(self) -> Settings:
        """The thresholds and regions that judge now."""
        inspector = self._inspector
        return Settings() if inspector is None else inspector.settings

    @property
    def notices(self) -> tuple[str, ...]:
        return (*self.settings.notices, *(() if self._notice is None else (self._notice,)))

    def judge(self, frames: Sequence[U8], names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[Inspection]:
        """Inspections of frames, uint8 RGB [h, w, 3] at the input size (at their own size for tiled products), in order.

        ``shapes`` are the (H, W) of the frames as they came: boxes of blobs are in their pixels. The times of the stages
        are those of the whole batch. LineError for frames of another size, EngineError when the back end fails.
        """
        inspector, shared = self._inspector, self._shared
        if inspector is None or shared is None:
            raise self._unloaded()
        for frame, name, shape in zip(frames, names, shapes, strict=True):
            wanted = shape if self.tiled else self.input_size
            # Resizing a frame a second time would give other pixels than training and calibration saw.
            if frame.shape != (*wanted, 3):
                raise LineError(
                    f"{name}: decoded to {list(frame.shape)}, version {self.version} of {self.product} takes "
                    f"{[*wanted, 3]}; decode it again"
                )
        with shared.turns.judging():
            return inspector.inspect(frames, names, shapes=shapes)

    def valid(self, map_shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        """Cells of a map that are inspected, bool [h4, w4]; None when all are."""
        return None if self._inspector is None else self._inspector.valid(map_shape)

    def takes_frames_of(self, other: "Model") -> bool:
        """Whether frames prepared for ``other`` can be judged by this one too."""
        return self.tiled == other.tiled and (self.tiled or self.input_size == other.input_size)

    def refresh_settings(self) -> bool:
        """Take over thresholds and regions where their files changed; True if those that judge are others now.

        Files that are damaged, gone, of another bundle or halfway through a change (regions without thresholds for them)
        leave what judges as it is, and `notices` says so until they are whole again.
        """
        inspector = self._inspector
        if inspector is None:
            return False
        seen = _signature(inspector.bundle)
        if seen == self._seen:
            return False
        try:
            settings = inspector.read_settings()
            _check_regions(inspector, settings)
            if settings.calibration is None and inspector.settings.calibration is not None:
                raise LineError(settings.notices[0] if settings.notices else "calibration.json is gone")
        except (AdclickError, OSError) as error:
            # Not remembered as seen: a file that is being copied may be whole the next time.
            self._notice = f"the thresholds and regions from before are still used: {error}"
            return False
        self._seen, self._notice = seen, None
        changed = settings != inspector.settings
        inspector.settings = settings
        return changed

    def close(self) -> None:
        """Let go of the bank and, if nobody else uses them, of the networks."""
        inspector, shared = self._inspector, self._shared
        self._inspector = self._shared = None
        if shared is not None:
            self._engines.give_back(shared)
        if inspector is not None:
            inspector.close()

    def _unloaded(self) -> EngineError:
        return EngineError(f"{self.product}: version {self.version} was unloaded; take the one that serves")


@contextmanager
def closed_on_error(model: Model) -> Iterator[None]:
    """Close ``model`` if the block raises."""
    try:
        yield
    except BaseException:
        model.close()
        raise


def load_model(
    product: str,
    path: Path,
    engines: Engines,
    *,
    max_batch: int,
    thresholds_needed: bool,
    beside_line: bool,
    unpack_to: Path | None = None,
) -> Model:
    """Open the bundle at ``path`` for ``product`` and check all of it: hashes, product, thresholds, golden frames.

    Batches of 1 to ``max_batch`` frames were run once on its engine when it returns. ``thresholds_needed`` refuses a
    bundle whose frames would all be uncertain; ``beside_line`` says that the line is being judged meanwhile, which goes
    first. A zip is unpacked below ``unpack_to``. Raises AdclickError.
    """
    bundle = read_bundle(path, unpack_to=unpack_to)
    shared: SharedEngine | None = None
    try:
        check_product(bundle, product)
        bank = read_bank(bundle)
        shared, fresh = engines.lease(bundle, bank)
        seen = _signature(bundle)
        inspector = Inspector(bundle, shared.engine, bank=bank, check_golden=False)
        _check_regions(inspector, inspector.settings)
        if thresholds_needed and inspector.calibration is None:
            why = "; ".join(inspector.notices) or "it has no thresholds: run `adclick calibrate` on it"
            raise LineError(f"{bundle.location}: every frame would be uncertain: {why}, or force it")
        _prove(inspector, shared.turns, max_batch if fresh else 0, REST if beside_line else 0.0)
        return Model(product, inspector, shared, engines, seen)
    except BaseException:
        if shared is not None:
            engines.give_back(shared)
        bundle.close()
        raise


def check_product(bundle: Bundle, product: str) -> None:
    """LineError for a bundle of another product: its verdicts would look right and mean nothing."""
    if bundle.manifest.product != product:
        what = (
            "weights but no product" if bundle.manifest.product is None else f"the product {bundle.manifest.product!r}"
        )
        raise LineError(f"{bundle.location}: holds {what}, not {product!r}; take the bundle of that product")


def _prove(inspector: Inspector, turns: Turns, max_batch: int, rest: float) -> None:
    """Check the golden frames, then run each batch size once; frames of the line that come meanwhile go first.

    ``max_batch`` 0: the engine has run all sizes before, and the line, which judges on it, waits for one frame at most.
    """

    def run(work: Callable[[], None]) -> None:
        with turns.checking():
            began = time.perf_counter()
            work()
            spent = time.perf_counter() - began
        time.sleep(min(MOST_REST_S, rest * spent))

    for golden in inspector.bundle.golden():
        run(partial(inspector.check_golden, golden))
    if max_batch and inspector.bundle.manifest.tiling is not None:
        max_batch = TILES_PER_BATCH
    for frames in range(1, max_batch + 1):
        run(partial(inspector.warm_up, frames))


def _check_regions(inspector: Inspector, settings: Settings) -> None:
    """LineError for regions that leave nothing to inspect: better now than as an error on every frame."""
    manifest = inspector.bundle.manifest
    height, width = manifest.input_size if manifest.tiling is None else (TILED_SIDE, TILED_SIDE)
    if not valid_mask(settings.regions, max(1, height // MAP_STRIDE), max(1, width // MAP_STRIDE)).any():
        raise LineError(
            f"{inspector.bundle.location}: {REGIONS}: the regions leave nothing of the frame to inspect; set others with "
            "`adclick regions --set`, then run `adclick calibrate`"
        )


def _signature(bundle: Bundle) -> Signature:
    """What changes when somebody replaces the bundle's settings."""
    place = bundle.location
    return tuple(_stat(path) for path in ([place / name for name in SETTINGS] if place.is_dir() else [place]))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
