"""How sure an answer is depends on how many clicks it is made from: offsets of the logits, fitted after training.

After one click much is still possible, and a network that says so stays below the threshold where a bolder one would be
right: on held-out worlds the best threshold was 0.2 after one click and 0.4 after five. Operators see one threshold,
so the difference goes into the logits. Fitted on the validation views, on nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adclick_edge.data.clicks import Click
from adclick_edge.evaluation.click_robot import THRESHOLD, next_click

__all__ = ["FITTED_CLICKS", "ClickedView", "fit_offsets"]

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

FITTED_CLICKS = 5
"""Offsets are fitted up to so many clicks; more clicks take the last one."""
_CANDIDATES = np.arange(0.08, 0.72, 0.02)


@dataclass
class ClickedView:
    """A validation view. ``answer`` gives the probability float32 [H, W] after some clicks, from its answer to one click
    less; asked again, it answers anew."""

    mask: Bool
    answer: Callable[[Sequence[Click]], F32]


def fit_offsets(offsets: torch.Tensor, views: Sequence[ClickedView]) -> dict[int, float]:
    """Set ``offsets`` (float32 [25], by number of clicks) so that the mean IoU at the protocol's threshold is best after
    each click, one click after the other: the robot sees the answers the operator would. Returns them by click.
    """
    offsets.zero_()
    clicks: list[list[Click]] = [[] for _ in views]
    found = [np.zeros(view.mask.shape, np.float32) for view in views]
    for count in range(1, FITTED_CLICKS + 1):
        for number, view in enumerate(views):
            click = next_click(found[number], view.mask, clicks[number])
            if click is not None:
                clicks[number].append(click)
                found[number] = view.answer(clicks[number])
        fresh = [len(given) == count for given in clicks]
        ious = [[_overlap(f > t, v.mask) for f, v in zip(found, views, strict=True)] for t in _CANDIDATES]
        best = float(_CANDIDATES[int(np.argmax(np.mean(ious, axis=1)))])
        # The answers carry the offset of the click before already.
        offsets[count:] += _logit(THRESHOLD) - _logit(best)
        for number, view in enumerate(views):
            if fresh[number]:
                found[number] = view.answer(clicks[number])
    return {count: round(float(offsets[count]), 4) for count in range(1, FITTED_CLICKS + 1)}


def _overlap(found: Bool, mask: Bool) -> float:
    return float((found & mask).sum() / max(1, (found | mask).sum()))


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
