"""The parity gate: what is exported must compute what was trained, on real frames, before it may become a bundle."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from adclick_edge.errors import ParityError
from adclick_edge.features.bank import Bank
from adclick_edge.features.extractor import Extractor
from adclick_edge.features.residual_torch import TorchBank, nearest_residual
from adclick_edge.models.build import Segmenter, run_segmenter
from adclick_edge.models.distance import relative_distance
from adclick_edge.runtime.ort_cpu import OrtCpuEngine

__all__ = ["TOLERANCE", "ParityReport", "check_parity"]

TOLERANCE = 1e-3
"""Largest difference allowed, as a share of the spread (max - min) of the frames' maps."""
QUANTILE = 0.999
"""Share of map pixels held to the tolerance. A cell whose two nearest rows are equally near may take either, since back
ends sum in different orders; the maximum is reported beside."""


@dataclass(frozen=True)
class ParityReport:
    frames: int
    max_map_difference: float
    """Over all pixels, as a share of the spread."""
    quantile_map_difference: float
    max_score_difference: float
    changed_verdicts: int
    """Frames on another side of the threshold in the widest gap between the trained network's scores."""
    other_rows: int
    """Cells that matched another row of the bank."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_parity(
    extractor: Extractor,
    segmenter: Segmenter,
    bank: Bank,
    graphs: Mapping[str, bytes],
    frames: Sequence[npt.NDArray[np.uint8]],
) -> ParityReport:
    """Run ``frames`` (uint8 [H, W, 3] each) through torch and through the exported graphs, and compare.

    The bank is searched whole on both sides, as in training: a position window and retrieval leave out rows afterwards.

    Raises ParityError, with the figures, when a map or score differs by more than `TOLERANCE` or a verdict changes.
    """
    bank = replace(bank, options=msgspec.structs.replace(bank.options, window_radius=-1, retrieve_images=0))
    expected, expected_rows = _with_torch(extractor, segmenter, bank, frames)
    with tempfile.TemporaryDirectory(prefix=".adclick-parity.") as scratch:
        for name, data in graphs.items():
            (Path(scratch) / name).write_bytes(data)
        engine = OrtCpuEngine(Path(scratch))
        handle = engine.load_bank(bank)
        results = [engine.run(frame[None], handle) for frame in frames]
        rows = [engine.matched_rows(frame[None], handle) for frame in frames]
    found = np.concatenate([r.maps for r in results])
    spread = float(np.ptp(expected)) + 1e-12
    difference = np.abs(found - expected) / spread
    before, after = expected.max(axis=(1, 2)), found.max(axis=(1, 2))
    report = ParityReport(
        frames=len(frames),
        max_map_difference=float(difference.max()),
        quantile_map_difference=float(np.quantile(difference, QUANTILE)),
        max_score_difference=float(np.abs(after - before).max() / spread),
        changed_verdicts=_changed_verdicts(before, after),
        other_rows=int((np.concatenate(rows) != expected_rows).sum()),
    )
    if (
        not np.isfinite(found).all()
        or max(report.quantile_map_difference, report.max_score_difference) > TOLERANCE
        or report.changed_verdicts
    ):
        raise ParityError(
            f"the exported graphs differ from the trained network: {report}; allowed are {TOLERANCE} of the maps' spread "
            "and no changed verdict. Nothing was written; this is a defect of the export, please report it"
        )
    return report


def _changed_verdicts(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> int:
    """Frames that change sides of the threshold in the widest gap of the scores: where a user would put one."""
    if len(before) < 2:
        return 0
    ordered = np.sort(before)
    gap = int(np.diff(ordered).argmax())
    threshold = (ordered[gap] + ordered[gap + 1]) / 2
    return int(((before >= threshold) != (after >= threshold)).sum())


@torch.no_grad()
def _with_torch(
    extractor: Extractor, segmenter: Segmenter, bank: Bank, frames: Sequence[npt.NDArray[np.uint8]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    torch_bank = TorchBank.of(bank, torch.device("cpu"))
    maps, rows = [], []
    for frame in frames:
        features = extractor(torch.from_numpy(frame[None]))
        index, _, residual = nearest_residual(features["embedding"], torch_bank)
        relative = residual / torch_bank.residual_scale.reshape(1, -1, 1, 1)
        inputs = {
            **features,
            "residual": residual,
            "relative": relative,
            "relative_distance": relative_distance(residual, torch_bank.residual_scale),
        }
        maps.append(run_segmenter(segmenter, segmenter.inputs, inputs).numpy())
        rows.append(index.numpy())
    return np.concatenate(maps), np.concatenate(rows)
