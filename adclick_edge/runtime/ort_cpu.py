"""The ONNX Runtime CPU back end."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import EngineError
from adclick_edge.features.bank import Bank
from adclick_edge.features.retrieval import retrieve_rows
from adclick_edge.runtime.engine import BankHandle, Features, Maps

__all__ = ["OrtCpuEngine"]

_RESIDUAL_OUTPUTS = ("index", "distance", "residual", "relative")


@dataclass(frozen=True)
class _CpuBank:
    bank: Bank
    feed: dict[str, npt.NDArray[Any]]
    window: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """order, place and candidates of the hard position window; empty without one."""


class OrtCpuEngine:
    """Runs ``features.onnx``, ``residual.onnx`` (or ``residual_candidates.onnx``) and ``segment.onnx`` of ``folder``.

    ``threads`` is the number of threads of each graph, all cores by default. Waiting threads sleep: spinning costs more
    than it saves where the line shares the cores.
    """

    name = "onnxruntime-cpu"

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                "onnxruntime is not installed; install one of adclick-edge[cpu] and adclick-edge[gpu]"
            ) from error
        self._onnxruntime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options = options
        self._folder = folder
        self._sessions: dict[str, Any] = {}
        for name in ("features", "residual", "segment"):
            self._session(name)
        self._feature_names = [output.name for output in self._sessions["features"].get_outputs()]
        self._segment_inputs = [tensor.name for tensor in self._sessions["segment"].get_inputs()]

    def features(self, frames: npt.NDArray[np.uint8]) -> Features:
        # Frame by frame: the maps of one frame stay in the cache, those of a batch do not. On two cores a batch of 8
        # takes 1.1 to 1.2 times as long per frame; residual and segment gain nothing by it (docs/performance.md).
        each = [self._run("features", {"frames": frame[None]}) for frame in frames]
        if not each:
            raise EngineError(f"no frames to take features of (shape {frames.shape}); give at least one")
        if len(each) == 1:
            return dict(zip(self._feature_names, each[0], strict=True))
        return {name: np.concatenate([outputs[i] for outputs in each]) for i, name in enumerate(self._feature_names)}

    def load_bank(self, bank: Bank) -> BankHandle:
        feed = {
            "centre": bank.centre,
            "projection": bank.projection,
            "cell_code": bank.cell_code,
            "search": bank.search,
            "rows": bank.rows,
            "residual_scale": bank.residual_scale.reshape(1, -1, 1, 1),
        }
        window = {}
        if bank.window is not None:
            order, candidates = (array.astype(np.int64) for array in bank.window)
            place = np.zeros(bank.grid[0] * bank.grid[1], np.int64)
            place[order.reshape(-1)] = np.arange(order.size)
            window = {"order": order, "place": place, "candidates": candidates[None]}
        return _CpuBank(bank, feed, window)

    def run(
        self, frames: npt.NDArray[np.uint8], bank: BankHandle, *, exclude_images: Sequence[int] | None = None
    ) -> Maps:
        own = self._own(bank)
        began = time.perf_counter()
        features = self.features(frames)
        with_features = time.perf_counter()
        residual = self._residual(features, own, exclude_images)
        with_residual = time.perf_counter()
        available = {**features, **residual}
        maps = self._run("segment", {name: available[name] for name in self._segment_inputs})[0]
        done = time.perf_counter()
        stage_ms = {
            "features": 1e3 * (with_features - began),
            "residual": 1e3 * (with_residual - with_features),
            "segment": 1e3 * (done - with_residual),
        }
        return Maps(maps, stage_ms)

    def matched_rows(self, frames: npt.NDArray[np.uint8], bank: BankHandle) -> npt.NDArray[np.int64]:
        """The bank row each cell of frames (uint8 [N, H, W, 3]) matches, int64 [N, h, w]."""
        features, own = self.features(frames), self._own(bank)
        return self._residual(features, own, None)["index"]  # type: ignore[return-value]

    def _own(self, bank: BankHandle) -> _CpuBank:
        if not isinstance(bank, _CpuBank):
            raise EngineError(f"the bank was loaded by another back end ({type(bank).__name__}); load it with this one")
        return bank

    def _residual(self, features: Features, bank: _CpuBank, exclude_images: Sequence[int] | None) -> Features:
        embedding = features["embedding"]
        grid = embedding.shape[2:]
        if (embedding.shape[1], *grid) != (bank.bank.dims, *bank.bank.grid):
            raise EngineError(
                f"frames give {embedding.shape[1]} features on a grid of {grid[0]} x {grid[1]} cells, the bank holds "
                f"{bank.bank.dims} on {bank.bank.grid[0]} x {bank.bank.grid[1]}: it was made with other weights or "
                "another input size; make it anew with `adclick bank`"
            )
        if exclude_images is not None:
            try:
                left = bank.bank.residual(embedding, exclude_images=np.asarray(exclude_images))
            except ValueError as error:
                raise EngineError(f"frames cannot be matched without their own image's rows: {error}") from error
            relative = left.residual / bank.feed["residual_scale"]
            return {"distance": left.distance, "residual": left.residual, "relative": relative}
        feed = {"embedding": embedding, **bank.feed}
        if bank.window:
            outputs = self._run("residual_candidates", {**feed, **bank.window})
        elif bank.bank.options.retrieve_images:
            # Frame by frame: each has its own list of rows, of its own length.
            return self._residual_of_retrieved(features, bank)
        else:
            outputs = self._run("residual", feed)
        return dict(zip(_RESIDUAL_OUTPUTS, outputs, strict=True))

    def _residual_of_retrieved(self, features: Features, bank: _CpuBank) -> Features:
        cells = np.arange(bank.bank.grid[0] * bank.bank.grid[1], dtype=np.int64)
        each = []
        for embedding, retrieval_map in zip(features["embedding"], features["map4"], strict=True):
            rows = retrieve_rows(bank.bank, retrieval_map, bank.bank.options.retrieve_images)
            lists = {"order": cells[None], "place": cells, "candidates": rows.astype(np.int64)[None, None]}
            each.append(self._run("residual_candidates", {"embedding": embedding[None], **bank.feed, **lists}))
        return {name: np.concatenate([outputs[i] for outputs in each]) for i, name in enumerate(_RESIDUAL_OUTPUTS)}

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            path = self._folder / f"{name}.onnx"
            try:
                session = self._onnxruntime.InferenceSession(path, self._options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's exceptions share no base of their own
                raise EngineError(f"{path}: ONNX Runtime cannot load it ({error}); export the bundle anew") from error
            self._sessions[name] = session
        return self._sessions[name]

    def _run(self, name: str, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        session = self._session(name)
        try:
            outputs: list[npt.NDArray[Any]] = session.run(None, feed)
        except Exception as error:
            shapes = {key: (value.dtype.name, value.shape) for key, value in feed.items()}
            raise EngineError(f"the {name} graph failed on {shapes}: {error}") from error
        return outputs
