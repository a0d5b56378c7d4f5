"""What the daemon knows of one product's bundles, and how it comes by them at a start."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adclick_edge.bundle import read_bundle
from adclick_edge.errors import AdclickError, BundleError
from adclick_edge.line.bundle_store import BundleStore
from adclick_edge.line.model import Model
from adclick_edge.line.serving_file import Kept, ServingRecord
from adclick_edge.line.shadow import Shadow
from adclick_edge.line.tally import ProductTally

__all__ = ["Entry", "open_entry"]


@dataclass(eq=False)
class Entry:
    """Its fields change under the lock of its owner."""

    configured: Path
    """The bundle that line.toml names."""
    serving: Model
    kept: Kept | None
    """Copy in the store of what serves; None where none could be made."""
    earlier: tuple[Kept, ...]
    """What rollbacks go to, the next one last."""
    notices: tuple[str, ...] = ()
    swaps: int = 0
    failed_swaps: int = 0
    last_failure: str | None = None
    shadow: Shadow | None = None
    """The last candidate; its counts can be read after it was switched off."""
    shadow_on: bool = False

    @property
    def chain(self) -> tuple[Kept, ...]:
        return self.earlier if self.kept is None else (*self.earlier, self.kept)

    def switch_shadow_off(self) -> Model | None:
        """The candidate to unload, if there was one."""
        model = self.shadow.model if self.shadow is not None and self.shadow_on else None
        self.shadow_on = False
        return model

    def tally(self) -> ProductTally:
        calibration, shadow = self.serving.settings.calibration, self.shadow
        return ProductTally(
            bundle=str(self.serving.location),
            version=self.serving.version,
            previous=self.earlier[-1].version if self.earlier else None,
            swaps=self.swaps,
            failed_swaps=self.failed_swaps,
            last_failure=self.last_failure,
            lower=None if calibration is None else calibration.lower,
            upper=None if calibration is None else calibration.upper,
            notices=(*self.notices, *self.serving.notices),
            shadow=shadow.model.version if shadow is not None and self.shadow_on else None,
            shadow_frames=0 if shadow is None else shadow.frames,
            shadow_changed={} if shadow is None else dict(shadow.changed),
            shadow_failures=0 if shadow is None else shadow.failures,
        )


def open_entry(
    product: str, configured: Path, record: ServingRecord | None, store: BundleStore, load: Callable[[Path], Model]
) -> Entry:
    """What served last by ``record``, else the bundle of line.toml, with a notice of why. Raises AdclickError."""
    store.clear_leftovers(product)
    notices: list[str] = []
    earlier: tuple[Kept, ...] = () if record is None else record.chain
    if record is not None and record.configured == str(configured):
        last = record.chain[-1]
        try:
            return Entry(configured, load(store.path(product, last)), last, record.chain[:-1])
        except (AdclickError, OSError) as error:
            earlier = record.chain[:-1]
            notices.append(
                f"version {last.version}, which served before the restart, cannot be loaded, the bundle of line.toml "
                f"serves: {error}"
            )
    elif record is not None:
        notices.append(
            f"line.toml names another bundle than when version {record.chain[-1].version} was swapped in: it serves now"
        )
    model = load(configured)
    kept: Kept | None = None
    try:
        kept = _kept(product, model, store, earlier)
    except (AdclickError, OSError) as error:
        notices.append(f"after a swap there can be no rollback to version {model.version}: {error}")
    if not model.notices and model.settings.calibration is None:
        notices.append(f"{model.location} has no thresholds, every frame is uncertain: run `adclick calibrate` on it")
    return Entry(configured, model, kept, earlier, tuple(notices))


def _kept(product: str, model: Model, store: BundleStore, earlier: tuple[Kept, ...]) -> Kept:
    """A whole copy of what line.toml names: by the time of a swap another bundle may have taken its place there."""
    before = Kept(folder=model.version, version=model.version)
    if before not in earlier and store.path(product, before).exists():
        with suppress(BundleError), read_bundle(store.path(product, before)) as copy:
            if copy.manifest == model.bundle.manifest:
                return before
        store.remove(product, before)
    return store.keep(product, model.bundle, beside=earlier)
