"""The three graphs of a bundle in sessions of their own, to try options on that the engine does not offer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from adclick_edge.features.bank import Bank

__all__ = ["GRAPHS", "ChainOptions", "GraphChain"]

GRAPHS = ("features", "residual", "segment")
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ChainOptions:
    """What differs from the engine's sessions."""

    threads: int = 2
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Of ``onnxruntime.SessionOptions``."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Session configuration entries."""
    fixed_shapes: bool = False
    """Tell ONNX Runtime all sizes beforehand."""
    profile_prefix: str = ""


class GraphChain:
    """features, residual and segment of the product bundle in ``folder``, whose bank is ``bank``; one frame or more."""

    def __init__(self, folder: Path, bank: Bank, input_size: tuple[int, int], options: ChainOptions) -> None:
        self._feed = {
            "centre": bank.centre,
            "projection": bank.projection,
            "cell_code": bank.cell_code,
            "search": bank.search,
            "rows": bank.rows,
            "residual_scale": bank.residual_scale.reshape(1, -1, 1, 1),
        }
        self.sessions = {name: _session(folder / f"{name}.onnx", options, {}) for name in GRAPHS}
        if options.fixed_shapes:
            frames = np.zeros((1, *input_size, 3), np.uint8)
            feeds = self.feeds(frames)
            shapes = {name: {key: value.shape for key, value in feeds[name].items()} for name in GRAPHS}
            self.sessions = {name: _session(folder / f"{name}.onnx", options, shapes[name]) for name in GRAPHS}

    def run(self, name: str, feed: Tensors) -> Tensors:
        """One graph: named arrays in and out."""
        session = self.sessions[name]
        names = [tensor.name for tensor in session.get_outputs()]
        return dict(zip(names, session.run(None, feed), strict=True))

    def feeds(self, frames: npt.NDArray[np.uint8]) -> dict[str, Tensors]:
        """What each graph is given for ``frames`` (uint8 [N, H, W, 3])."""
        features = self.run("features", {"frames": frames})
        to_residual = {"embedding": features["embedding"], **self._feed}
        available = {**features, **self.run("residual", to_residual)}
        wanted = [tensor.name for tensor in self.sessions["segment"].get_inputs()]
        return {
            "features": {"frames": frames},
            "residual": to_residual,
            "segment": {name: available[name] for name in wanted},
        }


def _session(path: Path, options: ChainOptions, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    for key, entry in {"session.intra_op.allow_spinning": "0", **options.config}.items():
        chosen.add_session_config_entry(key, entry)
    for key, value in options.attributes.items():
        setattr(chosen, key, value)
    if options.profile_prefix:
        chosen.enable_profiling = True
        chosen.profile_file_prefix = options.profile_prefix
    if shapes:
        probe = onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
        for tensor in probe.get_inputs():
            for free, size in zip(tensor.shape, shapes[tensor.name], strict=True):
                if isinstance(free, str):
                    chosen.add_free_dimension_override_by_name(free, size)
    return onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
