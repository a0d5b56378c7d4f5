"""The click protocol: a robot that knows the truth clicks, the model answers, the answers are measured (method section 4)."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import MAX_CLICKS, Click
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.resize import fit, fit_mask
from adclick_edge.data.sample import Sample
from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.click_metrics import (
    NOC_TARGETS,
    ClickMetrics,
    ClickResult,
    intersection_over_union,
    reported_clicks,
)
from adclick_edge.evaluation.click_model import ClickModel, PromptedModel
from adclick_edge.evaluation.click_robot import THRESHOLD, next_click

__all__ = ["MAX_SIDE_PX", "NOC_CLICKS", "ClickedImage", "evaluate_clicks"]

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

NOC_CLICKS: Final = 20
"""Clicks after which an image counts as never outlined well enough."""
MAX_SIDE_PX: Final = 1024
"""Longer pictures are scaled down to this before anything is clicked or measured on them."""


@dataclass(frozen=True, eq=False)
class ClickedImage:
    """An image after the last click reported.

    Attributes:
        sample: What it is.
        frame: uint8 ``[H, W, 3]``.
        truth: bool ``[H, W]``.
        probability: float32 ``[H, W]``.
        clicks: Those given until then.
        overlaps: IoU after 1, 2, 3, ... clicks, those for NoC included.
    """

    sample: Sample
    frame: U8
    truth: Bool
    probability: F32
    clicks: tuple[Click, ...]
    overlaps: tuple[float, ...]


def evaluate_clicks(
    model: ClickModel,
    samples: Iterable[Sample],
    clicks: int = 5,
    *,
    noc_clicks: int | None = NOC_CLICKS,
    threshold: float = THRESHOLD,
    max_side_px: int = MAX_SIDE_PX,
    words: Callable[[Sample], str | None] | None = None,
    each: Callable[[ClickedImage], object] | None = None,
) -> ClickResult:
    """Click on each of ``samples`` and measure the model's answers.

    ``clicks`` clicks are given as far as there is an error left to click on; the last map then counts for the rest. For
    NoC the robot goes on to ``noc_clicks``, or until an IoU of 0.90. Figures are at the pictures' own resolution, or at
    ``max_side_px`` for larger ones (``reduced_images`` says how many).

    Args:
        model: Answers clicks.
        samples: Defects with masks.
        clicks: Clicks to report, 1 to `MAX_CLICKS`.
        noc_clicks: Most clicks for NoC, at most `MAX_CLICKS`; None skips NoC.
        threshold: Probability above which a pixel counts as found.
        max_side_px: See above.
        words: What to tell the model about each sample (None: nothing); for a model with a `prompt` method.
        each: Called with each image after its clicks.

    Raises:
        UsageError: A number of clicks is out of range, or the model takes no words.
        DataError: A sample has no mask or an empty one, or there is no sample.
        ImageError: A picture or mask cannot be read.
    """
    if not 1 <= clicks <= MAX_CLICKS or (noc_clicks is not None and not 1 <= noc_clicks <= MAX_CLICKS):
        raise UsageError(f"clicks is {clicks}, noc_clicks {noc_clicks}; pass 1 to {MAX_CLICKS}")
    if words is not None and not isinstance(model, PromptedModel):
        raise UsageError(f"{model.name} takes no words; leave them out")
    metrics = ClickMetrics(reported_clicks(clicks), noc_clicks, threshold)
    click_seconds: list[float] = []
    image_seconds: list[float] = []
    reduced = 0
    for sample in samples:
        frame, truth, was_reduced = _read(sample, max_side_px)
        reduced += was_reduced
        began = time.perf_counter()
        model.set_image(frame)
        image_seconds.append(time.perf_counter() - began)
        if words is not None and isinstance(model, PromptedModel):
            model.prompt(words(sample))
        given: list[Click] = []
        probability = np.zeros(truth.shape, np.float32)
        overlaps: list[float] = []
        kept: dict[int, F32] = {}
        while len(given) < clicks or (
            noc_clicks is not None and len(given) < noc_clicks and max(overlaps) < max(NOC_TARGETS)
        ):
            click = next_click(probability, truth, given, threshold)
            if click is None:
                break
            given.append(click)
            began = time.perf_counter()
            answer = model.click(click.y, click.x, click.positive)
            click_seconds.append(time.perf_counter() - began)
            probability = _checked(answer, truth, model.name, sample)
            overlaps.append(intersection_over_union(probability, truth, threshold))
            kept[len(given)] = probability
        last = min(len(given), clicks)
        at = {k: kept[min(k, last)] for k in metrics.clicks}
        metrics.add(at, truth, overlaps, str(sample.path))
        if each is not None:
            each(ClickedImage(sample, frame, truth, kept[last], tuple(given[:last]), tuple(overlaps)))
    if not image_seconds:
        raise DataError("there is no defect with a mask to click on; choose other kinds or outline some")
    return metrics.compute(model.name, float(np.mean(click_seconds)), float(np.mean(image_seconds)), reduced)


def _read(sample: Sample, max_side_px: int) -> tuple[U8, Bool, bool]:
    """Frame and truth of at most ``max_side_px``, and whether they had to be scaled down for that."""
    if sample.mask_path is None:
        raise DataError(
            f"{sample.path}: has no mask, so there is nothing to click on or to measure against; leave it out"
        )
    frame = read_image(sample.path)
    truth = read_mask(sample.mask_path, shape=(frame.shape[0], frame.shape[1]))
    if not truth.any():
        raise DataError(f"{sample.mask_path}: marks nothing, so there is nothing to click on; leave the picture out")
    ratio = max_side_px / max(truth.shape)
    if ratio >= 1:
        return frame, truth, False
    size = (max(1, round(truth.shape[0] * ratio)), max(1, round(truth.shape[1] * ratio)))
    share = fit_mask(truth, size)
    # A defect thinner than half a pixel must not vanish.
    return fit(frame, size), share >= min(0.5, float(share.max())), True


def _checked(answer: F32, truth: Bool, name: str, sample: Sample) -> F32:
    if answer.shape != truth.shape or answer.dtype != np.float32:
        raise UsageError(
            f"{name} answered a click on {sample.path} with {answer.dtype} {list(answer.shape)}; "
            f"a click model returns float32 {list(truth.shape)}, the size of its frame"
        )
    return answer
