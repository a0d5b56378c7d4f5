"""The ONNX Runtime CPU back end."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import EngineError
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.candidates import NO_IMAGE, candidate_lists
from adclick_edge.runtime.engine import BankHandle, Features, Maps

__all__ = ["OrtCpuEngine"]

FRAMES_PER_RUN = 2
"""Frames that the features graph is given at once: a large batch falls out of the caches. On two busy cores 8 at once took
1.1 to 1.2 times as long per frame as one at a time, 2 at once as long (docs/performance.md)."""

_NO_MAP = np.zeros((0, 0, 0, 0), np.float32)
_RESIDUAL_OUTPUTS = ("index", "distance", "residual", "relative", "relative_distance")


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
        if missing := set(self._segment_inputs) - {*self._feature_names, *_RESIDUAL_OUTPUTS}:
            raise EngineError(
                f"{folder}: segment.onnx takes {min(missing)!r}, which neither features.onnx nor residual.onnx gives: "
                "graphs of two exports were mixed; export the bundle anew"
            )

    def features(self, frames: npt.NDArray[np.uint8]) -> Features:
        if len(frames) == 0:
            raise EngineError(f"no frames to take features of (their shape is {frames.shape}); give at least one")
        each = [
            self._run("features", {"frames": frames[start : start + FRAMES_PER_RUN]})
            for start in range(0, len(frames), FRAMES_PER_RUN)
        ]
        # A single run's outputs are handed on as they are, not copied.
        outputs = each[0] if len(each) == 1 else [np.concatenate(parts) for parts in zip(*each, strict=True)]
        return dict(zip(self._feature_names, outputs, strict=True))

    def load_bank(self, bank: Bank) -> BankHandle:
        feed = {
            "centre": bank.centre,
            "projection": bank.projection,
            "cell_code": bank.cell_code,
            "search": bank.search,
            "rows": bank.rows,
            "residual_scale": bank.residual_scale.reshape(1, -1, 1, 1),
        }
        window = {} if bank.window is None else candidate_lists(bank, _NO_MAP)
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

    def residuals(self, frames: npt.NDArray[np.uint8], bank: BankHandle) -> Features:
        features, own = self.features(frames), self._own(bank)
        found = self._residual(features, own, None)
        return {**features, "relative": found["relative"], "relative_distance": found["relative_distance"]}

    def click_encode(self, feed: Mapping[str, npt.NDArray[Any]]) -> Features:
        outputs = self._run("click_encode", self._wanted("click_encode", feed))
        names = [output.name for output in self._sessions["click_encode"].get_outputs()]
        return dict(zip(names, outputs, strict=True))

    def click_decode(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        return self._run("click_decode", self._wanted("click_decode", feed))[0]

    def _wanted(self, name: str, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Of ``feed``, what a graph of clicks takes: presets differ in which of the features they look at."""
        inputs = [tensor.name for tensor in self._session(name).get_inputs()]
        if missing := [key for key in inputs if key not in feed]:
            raise EngineError(
                f"{self._folder}: {name}.onnx takes {missing[0]!r}, which the other graphs do not give: graphs of two "
                "exports were mixed; export the bundle anew"
            )
        return {key: feed[key] for key in inputs}

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
        own = exclude_images if exclude_images is not None else [NO_IMAGE] * len(embedding)
        if bank.bank.options.retrieve_images or max(own) > NO_IMAGE:
            # Frame by frame: each has its own list of rows, of its own length.
            outputs = self._frame_by_frame(features, bank, own)
        elif bank.window:
            outputs = self._run("residual_candidates", {"embedding": embedding, **bank.feed, **bank.window})
        else:
            outputs = self._run("residual", {"embedding": embedding, **bank.feed})
        return dict(zip(_RESIDUAL_OUTPUTS, outputs, strict=True))

    def _frame_by_frame(
        self, features: Features, bank: _CpuBank, exclude_images: Sequence[int]
    ) -> list[npt.NDArray[Any]]:
        each = []
        for number, own in enumerate(exclude_images):
            lists = candidate_lists(bank.bank, features.get("map4", _NO_MAP)[number : number + 1], own)
            embedding = features["embedding"][number : number + 1]
            each.append(self._run("residual_candidates", {"embedding": embedding, **bank.feed, **lists}))
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            path = self._folder / f"{name}.onnx"
            try:
                session = self._onnxruntime.InferenceSession(path, self._options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's exceptions share no base of their own
                raise EngineError(f"{path}: ONNX Runtime cannot load it ({error}); export the bundle anew") from error
            outputs = tuple(output.name for output in session.get_outputs())
            if name.startswith("residual") and outputs != _RESIDUAL_OUTPUTS:
                raise EngineError(
                    f"{path}: gives {', '.join(outputs)}, this release expects {', '.join(_RESIDUAL_OUTPUTS)}: another "
                    "release made it; export the bundle anew"
                )
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
