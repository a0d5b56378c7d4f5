"""The parity gate of the click graphs: the mask an operator gets must be the one that was trained, click after click."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adclick_edge.data.resize import fit_mask
from adclick_edge.errors import ParityError
from adclick_edge.runtime.click_view import resize_map, to_probability
from adclick_edge.runtime.engine import ClickEngine

__all__ = ["CLICK_TOLERANCE", "ClickCase", "ClickParityReport", "check_click_parity"]

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

CLICK_TOLERANCE = 1e-3
"""Largest difference of a probability."""
ROUNDS = 3


@dataclass(frozen=True, eq=False)
class ClickCase:
    """A view: the inputs of ``click_encode`` by name, with a batch of 1, the truth bool [H, W] and a prompt [dims]."""

    inputs: Mapping[str, npt.NDArray[Any]]
    mask: Bool
    prompt: F32


@dataclass(frozen=True)
class ClickParityReport:
    frames: int
    rounds: int
    max_probability_difference: float
    changed_mask_share: float
    """Of all pixels, those on another side of one half."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def check_click_parity(
    network: nn.Module, engine: ClickEngine, cases: Sequence[ClickCase], *, max_clicks: int
) -> ClickParityReport:
    """Answer `ROUNDS` clicks on each case with ``network`` and with the graphs that ``engine`` loaded, and compare.

    A click goes to the middle of the largest error of the network's own mask. Each side goes on from its own answer, so
    that differences may add up as they would in use. Raises ParityError with the figures.
    """
    network.eval()
    largest, changed, pixels = 0.0, 0, 0
    for case in cases:
        size = case.mask.shape
        truth = fit_mask(case.mask, (size[0] // 2, size[1] // 2)) > 0.5
        quarter = (size[0] // 4, size[1] // 4)
        inputs = [torch.from_numpy(case.inputs[name]) for name in network.encode_inputs]  # type: ignore[union-attr]
        embedding: dict[str, Tensor] = network.encode(*inputs)  # type: ignore[operator]
        exported = engine.click_encode(case.inputs)
        clicks = np.zeros((1, max_clicks, 3), np.float32)
        expected = found = np.zeros(truth.shape, np.float32)
        for number in range(ROUNDS):
            clicks[0, number] = _next_click(expected > 0.5, truth)
            feeds = [
                {"clicks": clicks, "previous": resize_map(before, quarter)[None, None], "prompt": case.prompt[None]}
                for before in (expected, found)
            ]
            tensors = [torch.from_numpy(value) for value in feeds[0].values()]
            logits: Tensor = network.decode(embedding, *tensors)  # type: ignore[operator]
            expected = torch.sigmoid(logits)[0].numpy()
            found = to_probability(engine.click_decode({**exported, **feeds[1]})[0])
            difference = float(np.abs(found - expected).max())
            largest = max(largest, difference) if np.isfinite(difference) else float("inf")
            changed += int(((expected > 0.5) != (found > 0.5)).sum())
            pixels += expected.size
    report = ClickParityReport(len(cases), ROUNDS, largest, changed / max(1, pixels))
    if not cases or not largest <= CLICK_TOLERANCE:
        raise ParityError(
            f"the exported click graphs differ from the trained network: {report}; allowed is {CLICK_TOLERANCE} on at least "
            "one frame. Nothing was written; this is a defect of the export, please report it"
        )
    return report


def _next_click(mask: Bool, truth: Bool) -> tuple[float, float, float]:
    """The middle of the larger error, in pixels of the view, of maps at half its size; anywhere where there is none."""
    depths = [
        cv2.distanceTransform(np.pad(error.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for error in (truth & ~mask, mask & ~truth)
    ]
    missed = bool(depths[0].max() >= depths[1].max())
    y, x = np.unravel_index(int(depths[0 if missed else 1].argmax()), truth.shape)
    return 2 * float(y) + 0.5, 2 * float(x) + 0.5, 1.0 if missed else -1.0
