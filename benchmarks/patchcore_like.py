"""A PatchCore-like graph to compare with, written here: not anomalib, but the same steps in the same order.

Features at strides 8 and 16, averaged 3x3 and concatenated on the stride-8 grid; Euclidean distance in all dims to every row
of the bank by expanding the square; nearest distance; enlarged to the input size; Gaussian blur of sigma 4. Without the
re-weighting of the image score, which costs the original a little more.

Two forms: ``plain`` takes roots of all distances and blurs with a two-dimensional kernel, as the straightforward code
does; ``lean`` takes the root of the smallest only and blurs along each axis, what a careful author would write.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.data.resize import fit
from adclick_edge.features.backbones import fold_batch_norms
from adclick_edge.features.extractor import Extractor

__all__ = ["PatchCoreLike", "PeerForm", "export_patchcore_like", "peer_runner"]

PeerForm = Literal["plain", "lean"]
SIGMA_PX = 4.0


class PatchCoreLike(nn.Module):
    """frames uint8 [1, H, W, 3] -> map float32 [1, 1, H, W] and score [1]."""

    def __init__(self, extractor: Extractor, rows: Tensor, form: PeerForm) -> None:
        super().__init__()
        self.extractor = extractor
        self.form = form
        self.register_buffer("columns", rows.T.contiguous())
        self.register_buffer("row_norms", (rows * rows).sum(dim=1))
        radius = int(4 * SIGMA_PX + 0.5)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / SIGMA_PX) ** 2)
        self.radius = radius
        self.register_buffer("taps", taps / taps.sum())

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.extractor(frames)["embedding"]
        height, width = embedding.shape[2:]
        cells = embedding.flatten(2)[0].T  # Q, D
        norms = (cells * cells).sum(dim=1, keepdim=True)
        products = cells @ self.get_buffer("columns")  # Q, M
        if self.form == "plain":
            distances = (norms - 2 * products + self.get_buffer("row_norms")).clamp(min=0).sqrt()
            nearest = distances.min(dim=1).values
        else:
            partial = (self.get_buffer("row_norms") - 2 * products).amin(dim=1)
            nearest = (partial + norms[:, 0]).clamp(min=0).sqrt()
        small = nearest.reshape(1, 1, height, width)
        large = F.interpolate(small, size=frames.shape[1:3], mode="bilinear", align_corners=False)
        return self._blurred(large), nearest.max().reshape(1)

    def _blurred(self, large: Tensor) -> Tensor:
        taps = self.get_buffer("taps")
        padded = F.pad(large, (self.radius,) * 4, mode="reflect")
        if self.form == "plain":
            return F.conv2d(padded, (taps[:, None] * taps)[None, None])
        return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])


def export_patchcore_like(
    extractor: Extractor, rows: npt.NDArray[np.float32], input_size: tuple[int, int], form: PeerForm, path: Path
) -> Path:
    """Write the graph, with its bank inside, to ``path``."""
    network = fold_batch_norms(PatchCoreLike(extractor, torch.from_numpy(rows), form)).eval()
    frames = torch.zeros(1, *input_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of no use here
        torch.onnx.export(
            network, (frames,), path, dynamo=True, input_names=["frames"], output_names=["map", "score"], verbose=False
        )
    return path


def peer_runner(
    path: Path, input_size: tuple[int, int], threads: int
) -> Callable[[npt.NDArray[np.uint8]], dict[str, Any]]:
    """A function of a frame (uint8 [H, W, 3]): resized as ours is, then the graph, with the engine's session options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(frame: npt.NDArray[np.uint8]) -> dict[str, Any]:
        anomaly_map, score = session.run(None, {"frames": fit(frame, input_size)[None]})
        return {"map": anomaly_map, "score": float(score[0])}

    return run
