"""The bundles that judge, by product: loaded beside the line, exchanged between two batches, rolled back, shadowed."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adclick_edge.bundle import read_bundle
from adclick_edge.errors import AdclickError, LineError
from adclick_edge.line.bundle_store import BundleStore
from adclick_edge.line.config import LineConfig
from adclick_edge.line.engines import Engines, OpenEngine, give_memory_back, open_cpu_engine
from adclick_edge.line.model import Model, check_product, closed_on_error, load_model
from adclick_edge.line.product_entry import Entry, open_entry
from adclick_edge.line.serving_file import Kept, ServingRecord, read_serving, write_serving
from adclick_edge.line.shadow import Shadow
from adclick_edge.line.swap_outcome import SwapOutcome
from adclick_edge.line.tally import ProductTally
from adclick_edge.runtime.decision import FrameVerdict

__all__ = ["KEPT_VERSIONS", "Model", "Models", "SwapOutcome"]

U8 = npt.NDArray[np.uint8]

KEPT_VERSIONS = 3
"""Copies per product in the store: of the bundle that serves and of those that rollbacks go to."""
DRAIN_S = 10.0
"""How long a change waits for the batch that the outgoing bundle is judging."""


class Models:
    """One set of bundles for a line, and all that changes them.

    The engine's thread calls `using` and `shadow_judge`; any thread may call the others. Changes (`swap`, `rollback`,
    `shadow`) take seconds and come one at a time, each in its caller's thread; they hold up nobody else.
    """

    def __init__(
        self,
        config: LineConfig,
        *,
        threads: int,
        open_engine: OpenEngine = open_cpu_engine,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``threads`` of each engine. Nothing is read before `open`."""
        self._config = config
        self._clock = clock
        state = config.line.state
        self._state = state
        self._serving_file = state / "serving.json"
        self._unpacked = state / "unpacked"
        self._store = BundleStore(state / "bundles")
        self._engines = Engines(open_engine, threads)
        self._codes = {code: name for name, product in config.products.items() for code in product.codes}
        self._records: dict[str, ServingRecord] = {}
        self._entries: dict[str, Entry] = {}
        self._retired: list[Model] = []
        self._changing = threading.Lock()
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)

    def open(self) -> None:
        """Load what served last, or the bundles of line.toml. Raises AdclickError for a product that has neither.

        Where the record of what served last, or the bundle it names, cannot be used, line.toml's serves and the product's
        notices say so. A product whose line.toml names another bundle than when the record was written gets that one.
        """
        with self._changing:
            if self._entries:
                raise LineError("the models are open already; close them first")
            notices = self._read_state()
            try:
                for name, product in self._config.products.items():
                    load = partial(self._load, name, thresholds_needed=False, beside_line=False)
                    entry = open_entry(name, product.bundle, self._records.get(name), self._store, load)
                    entry.notices += notices
                    with self._lock:
                        self._entries[name] = entry
            except BaseException:
                self._close_all()
                raise

    def close(self) -> None:
        """Unload everything; a batch under way is waited for."""
        with self._changing:
            self._close_all()

    def product_for(self, camera: str, code: str | None) -> str:
        """The product of a frame: by the code in its header, else the camera's. LineError for an unknown one."""
        if code is not None:
            if (product := self._codes.get(code)) is None:
                raise LineError(f"no product of line.toml has the code {code!r}; add it to the `codes` of its product")
            return product
        if (about := self._config.cameras.get(camera)) is None:
            raise LineError(f"line.toml names no camera {camera!r}; add it")
        return about.product

    def input_size(self, product: str) -> tuple[int, int] | None:
        """Height and width to bring frames to at this moment; None for a tiled product, whose frames stay as they are."""
        serving = self._entry(product).serving
        return None if serving.tiled else serving.input_size

    @contextmanager
    def using(self, product: str) -> Iterator[Model]:
        """The bundle that serves, for one batch: it stays loaded until the block is left, whatever is swapped meanwhile."""
        entry = self._entry(product)
        with self._lock:
            model = entry.serving
            model.users += 1
        try:
            yield model
        finally:
            self._release([model])

    def swap(self, product: str, bundle: Path | str, *, force: bool = False) -> SwapOutcome:
        """Serve ``bundle`` (a folder or zip) from the next batch on, if it passes every check; else change nothing.

        A copy of it serves, so what later happens at ``bundle`` is of no concern; thresholds are changed in the copy, at
        the place that `tally` names. A bundle without thresholds is refused, since every frame would be uncertain, unless
        ``force`` is set.
        """
        return self._change(product, lambda entry: self._swap(product, entry, Path(bundle), force))

    def rollback(self, product: str, *, force: bool = False) -> SwapOutcome:
        """Serve again what served before; once more goes back further. The same checks as `swap`, on the copy kept then.

        What is rolled back is not come back to by a rollback, only by a swap.
        """
        return self._change(product, lambda entry: self._roll_back(product, entry, force))

    def shadow(self, product: str, bundle: Path | str | None, *, force: bool = False) -> SwapOutcome:
        """Let the candidate ``bundle`` judge too; None: none. It is not remembered over a restart."""
        began = self._clock()
        with self._changing:
            if (entry := self._entries.get(product)) is None:
                return self._outcome(began, product, False, None, None, self._unknown(product))
            serving, before = entry.serving.version, entry.tally().shadow
            try:
                candidate = None if bundle is None else self._load_candidate(product, entry, Path(bundle), force)
            except Exception as error:  # whatever happens to a candidate, the line goes on
                return self._outcome(began, product, False, before, serving, f"nothing changed: {_why(error)}")
            self._retire_shadow(entry)
            if candidate is None:
                return self._outcome(began, product, True, None, serving, "no candidate judges")
            with self._lock:
                entry.shadow, entry.shadow_on = Shadow(candidate), True
            message = "; ".join((f"version {candidate.version} judges too", *candidate.notices))
            return self._outcome(began, product, True, candidate.version, serving, message)

    def shadowed(self, product: str) -> bool:
        """Whether a candidate wants to see the frames of this product."""
        return self._entry(product).shadow_on

    def shadow_judge(
        self,
        product: str,
        frames: Sequence[U8],
        names: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        served: Sequence[FrameVerdict],
    ) -> None:
        """Let the candidate, if there is one, judge frames that were answered with ``served``; its failures are counted.

        It is switched off after several failures in a row, and the product's notices say so.
        """
        entry = self._entry(product)
        with self._lock:
            shadow = entry.shadow if entry.shadow_on else None
            if shadow is None:
                return
            shadow.model.users += 1
        try:
            shadow.judge(frames, names, shapes, served)
        finally:
            self._release([shadow.model])
        if shadow.failed:
            with self._lock:
                if entry.shadow is shadow and (candidate := entry.switch_shadow_off()) is not None:
                    entry.notices += (
                        f"candidate {candidate.version} was switched off, it failed too often: {shadow.last_failure}",
                    )
                    self._retired.append(candidate)  # unloaded by `reload_settings`, not by the engine's thread

    def reload_settings(self) -> list[str]:
        """Take over thresholds and regions that changed on disk; which products' did. Cheap: call it each second."""
        with self._refreshing:
            with self._lock:
                models = [entry.serving for entry in self._entries.values()]
                models += [e.shadow.model for e in self._entries.values() if e.shadow is not None and e.shadow_on]
                for model in models:
                    model.users += 1
            try:
                changed = {model.product for model in models if model.refresh_settings()}
            finally:
                self._release(models)
            self._unload_retired(0.0)
            return sorted(changed)

    def tally(self) -> dict[str, ProductTally]:
        with self._lock:
            return {name: entry.tally() for name, entry in self._entries.items()}

    def _entry(self, product: str) -> Entry:
        entry = self._entries.get(product)
        if entry is None:
            raise LineError(self._unknown(product))
        return entry

    def _unknown(self, product: str) -> str:
        known = ", ".join(sorted(self._entries)) or "none, the models are closed"
        return f"no product {product!r} is served; served: {known}"

    def _read_state(self) -> tuple[str, ...]:
        """Read what served last; what people must be told about it."""
        try:
            shutil.rmtree(self._unpacked, ignore_errors=True)  # of a process that was killed
            self._unpacked.mkdir(parents=True)
            for half_written in self._state.glob(f".{self._serving_file.name}.*"):
                half_written.unlink()
        except OSError as error:
            raise LineError(
                f"{self._state}: cannot be used ({error}); check `state` of line.toml and its rights"
            ) from error
        try:
            self._records = read_serving(self._serving_file)
        except LineError as error:
            self._records = {}
            with suppress(OSError):
                self._serving_file.replace(self._serving_file.with_name("serving.json.damaged"))
            return (f"what served before the restart is not known, the bundle of line.toml serves: {error}",)
        return ()

    def _load(self, product: str, path: Path, *, thresholds_needed: bool, beside_line: bool) -> Model:
        return load_model(
            product,
            path,
            self._engines,
            max_batch=self._config.line.max_batch,
            thresholds_needed=thresholds_needed,
            beside_line=beside_line,
            unpack_to=self._unpacked,
        )

    def _change(self, product: str, change: Callable[[Entry], Model]) -> SwapOutcome:
        began = self._clock()
        with self._changing:
            if (entry := self._entries.get(product)) is None:
                return self._outcome(began, product, False, None, None, self._unknown(product))
            before = entry.serving.version
            try:
                model = change(entry)
            except Exception as error:  # whatever happens to the new one, the old one serves
                message = f"version {before} still serves: {_why(error)}"
                with self._lock:
                    entry.failed_swaps += 1
                    entry.last_failure = message
                give_memory_back()
                return self._outcome(began, product, False, before, before, message)
            self._settle_shadow(entry)
            self._unload_retired(DRAIN_S)
            message = "; ".join((f"version {model.version} serves", *entry.notices, *model.notices))
            return self._outcome(began, product, True, model.version, before, message)

    def _swap(self, product: str, entry: Entry, source: Path, force: bool) -> Model:
        kept = self._copy(product, source, entry.chain)
        place = self._store.path(product, kept)
        try:
            model = self._load(product, place, thresholds_needed=not force, beside_line=True)
            with closed_on_error(model):
                if entry.kept is not None and entry.serving.location != self._store.path(product, entry.kept):
                    self._store.keep_settings(product, entry.kept, entry.serving.settings)
                self._serve(product, entry, model, (*entry.chain, kept)[-KEPT_VERSIONS:])
        except BaseException as error:
            self._store.remove(product, kept)
            if isinstance(error, AdclickError):
                # The copy is gone; what people can look at is the bundle they gave.
                raise LineError(str(error).replace(str(place), str(source))) from error
            raise
        self._store.prune(product, entry.chain)
        return model

    def _roll_back(self, product: str, entry: Entry, force: bool) -> Model:
        if not entry.earlier:
            raise LineError("no earlier version is kept; swap a bundle in")
        place = self._store.path(product, entry.earlier[-1])
        model = self._load(product, place, thresholds_needed=not force, beside_line=True)
        with closed_on_error(model):
            self._serve(product, entry, model, entry.earlier)
        return model

    def _copy(self, product: str, source: Path, beside: tuple[Kept, ...]) -> Kept:
        with read_bundle(source, unpack_to=self._unpacked) as bundle:
            check_product(bundle, product)
            return self._store.keep(product, bundle, beside=beside)

    def _serve(self, product: str, entry: Entry, model: Model, chain: tuple[Kept, ...]) -> None:
        """Record ``chain``, whose last is ``model``'s, then let it serve.

        In this order, the record being what decides: writing can fail (then nothing has changed anywhere), the exchange
        cannot. A crash in between restarts with the new bundle, which had passed all checks; the other way round, a line
        that judged with the new bundle would fall back to the old one at its next start without anybody's doing.
        """
        record = ServingRecord(configured=str(entry.configured), chain=chain)
        records = {**self._records, product: record}
        try:
            write_serving(self._serving_file, records)
        except LineError:
            with suppress(LineError):  # it may be the new record that stands there, not yet durable
                write_serving(self._serving_file, self._records)
            raise
        self._records = records
        with self._lock:
            # One assignment: a batch has the old bundle or the new one.
            self._retired.append(entry.serving)
            entry.serving, entry.kept, entry.earlier = model, chain[-1], chain[:-1]
            entry.notices, entry.last_failure = (), None
            entry.swaps += 1

    def _settle_shadow(self, entry: Entry) -> None:
        """End a comparison that a change of what serves made impossible or pointless."""
        shadow, serving = entry.shadow, entry.serving
        if shadow is None or not entry.shadow_on:
            return
        if not shadow.model.takes_frames_of(serving):
            with self._lock:
                entry.notices += (f"candidate {shadow.model.version} takes frames of another size: switched off",)
        elif shadow.model.version != serving.version:
            return
        self._retire_shadow(entry)

    def _load_candidate(self, product: str, entry: Entry, source: Path, force: bool) -> Model:
        candidate = self._load(product, source, thresholds_needed=not force, beside_line=True)
        with closed_on_error(candidate):
            if not candidate.takes_frames_of(entry.serving):
                raise LineError(
                    f"{source}: judges frames of another size than the bundle that serves (or in tiles, or not); only a "
                    "swap can bring it"
                )
        return candidate

    def _retire_shadow(self, entry: Entry) -> None:
        with self._lock:
            if (candidate := entry.switch_shadow_off()) is not None:
                self._retired.append(candidate)
        self._unload_retired(DRAIN_S)

    def _release(self, models: Sequence[Model]) -> None:
        with self._lock:
            for model in models:
                model.users -= 1
            self._released.notify_all()

    def _unload_retired(self, timeout_s: float) -> None:
        """Close models that were taken out of service and that nobody works with any more."""
        with self._lock:
            self._released.wait_for(lambda: not any(model.users for model in self._retired), timeout_s)
            idle = [model for model in self._retired if not model.users]
            self._retired = [model for model in self._retired if model.users]
        for model in idle:
            with suppress(OSError):  # an unpacked zip that cannot be removed; `open` tries again
                model.close()
        if idle:
            give_memory_back()

    def _close_all(self) -> None:
        with self._lock:
            entries = list(self._entries.values())
            self._entries = {}
            candidates = [entry.switch_shadow_off() for entry in entries]
            self._retired += [entry.serving for entry in entries]
            self._retired += [candidate for candidate in candidates if candidate is not None]
        self._unload_retired(DRAIN_S)
        shutil.rmtree(self._unpacked, ignore_errors=True)

    def _outcome(
        self, began_ns: int, product: str, ok: bool, version: str | None, previous: str | None, message: str
    ) -> SwapOutcome:
        return SwapOutcome(
            ok=ok,
            product=product,
            version=version,
            previous_version=previous,
            message=f"{product}: {message}",
            seconds=(self._clock() - began_ns) / 1e9,
        )


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, AdclickError) else f"{type(error).__name__}: {error}"
