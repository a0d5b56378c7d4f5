"""Engines shared by the products whose bundles hold the same graphs: one set of weights, one bank a product."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adclick_edge.bundle import Bundle
from adclick_edge.bundle.names import CLICK_GRAPHS
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.engine import Engine
from adclick_edge.runtime.ort_cpu import OrtCpuEngine

__all__ = ["Engines", "OpenEngine", "SharedEngine", "Turns", "give_memory_back", "open_cpu_engine"]

OpenEngine = Callable[[Path, int], Engine]
"""Folder of the graphs, threads -> engine. It must not need the folder once a batch was run."""

Key = tuple[tuple[str, str], ...]


def open_cpu_engine(folder: Path, threads: int) -> Engine:
    return OrtCpuEngine(folder, threads=threads)


class Turns:
    """One run of an engine at a time; frames of the line go before those that check a bundle.

    On a line that leaves no gap a check that has waited for ``patience_s`` goes next, or a bundle could never be checked.
    """

    def __init__(self, patience_s: float = 0.25) -> None:
        self._patience_s = patience_s
        self._free = threading.Condition()
        self._busy = False
        self._judges_waiting = 0
        self._checks_overdue = 0

    @contextmanager
    def judging(self) -> Iterator[None]:
        with self._free:
            self._judges_waiting += 1
            self._free.wait_for(lambda: not self._busy and not self._checks_overdue)
            self._judges_waiting -= 1
            self._busy = True
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def checking(self) -> Iterator[None]:
        with self._free:
            if not self._free.wait_for(lambda: not self._busy and not self._judges_waiting, self._patience_s):
                self._checks_overdue += 1
                self._free.wait_for(lambda: not self._busy)
                self._checks_overdue -= 1
            self._busy = True
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._free:
            self._busy = False
            self._free.notify_all()


@dataclass(eq=False)
class SharedEngine:
    engine: Engine
    key: Key
    turns: Turns
    users: int = 0


class Engines:
    """The engines in memory. An engine lives as long as somebody leases it."""

    def __init__(self, open_engine: OpenEngine, threads: int) -> None:
        self._open_engine, self._threads = open_engine, threads
        self._lock = threading.Lock()
        self._by_key: dict[Key, SharedEngine] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._by_key)

    def lease(self, bundle: Bundle, bank: Bank) -> tuple[SharedEngine, bool]:
        """An engine of the bundle's graphs, and whether it was opened just now. Raises EngineError.

        Not for two threads at once: whoever changes bundles does so one at a time.
        """
        key = _key(bundle, bank)
        with self._lock:
            shared = self._by_key.get(key)
            if shared is not None:
                shared.users += 1
                return shared, False
        shared = SharedEngine(self._open_engine(bundle.path("features.onnx").parent, self._threads), key, Turns(), 1)
        with self._lock:
            self._by_key[key] = shared
        return shared, True

    def give_back(self, shared: SharedEngine) -> None:
        with self._lock:
            shared.users -= 1
            if shared.users == 0:
                del self._by_key[shared.key]


def _key(bundle: Bundle, bank: Bank) -> Key:
    """The graphs the line runs, by content.

    Banks that are searched by candidates are kept apart: their residual graph is loaded by the first batch that needs
    it, out of a folder that may be another bundle's by the time a second product comes.
    """
    graphs = {n: e.sha256 for n, e in bundle.manifest.files.items() if n.endswith(".onnx") and n not in CLICK_GRAPHS}
    by_candidates = bank.options.window_radius >= 0 or bank.options.retrieve_images > 0
    return (*sorted(graphs.items()), ("by candidates", str(by_candidates)))


def give_memory_back() -> None:
    """Let the C library return what was freed; without this a swap an hour would look like a leak."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
