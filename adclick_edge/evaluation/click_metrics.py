"""Figures of the click protocol (method section 4): defect images only, on the probability map after click k."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.evaluation.click_robot import THRESHOLD
from adclick_edge.evaluation.inspection import InspectionMetrics

__all__ = ["NOC_TARGETS", "ClickMetrics", "ClickResult", "ClickScores", "intersection_over_union", "reported_clicks"]

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

NOC_TARGETS: Final = (0.80, 0.85, 0.90)
_USUAL: Final = (1, 2, 3, 5)
_MAX_BINS: Final = 1 << 18
"""Distinct probabilities kept apart per click count; see `InspectionMetrics`."""


class ClickScores(msgspec.Struct, frozen=True, kw_only=True):
    """Figures after ``clicks`` clicks, each in 0..1; None where no picture has both defective and normal pixels.

    Attributes:
        ap: Average precision of the pixels of all defect images together. Not the inspection protocol's: no normal image
            is among them.
        pro: Per-region overlap up to a pixel false-positive rate of 0.3.
        auroc: Area under the ROC curve of the same pixels.
        mean_iou: Intersection over union of ``probability > 0.49`` and the truth per image, the mean over images.
    """

    clicks: int
    ap: float | None
    pro: float | None
    auroc: float | None
    mean_iou: float


class ClickResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a click model reached on a set of pictures.

    Attributes:
        name: The model's.
        images: Defect images clicked on.
        per_click: Figures at each click count reported, ascending.
        noc80: Mean number of clicks to an IoU of 0.80, ``noc_clicks`` where never reached; None when not asked for.
        noc85: The same to 0.85.
        noc90: The same to 0.90.
        noc_clicks: Most clicks given for ``noc80``, ``noc85`` and ``noc90``.
        seconds_per_click: Mean time of a click.
        seconds_per_image: Mean time to take a new image.
        reduced_images: Pictures scaled down to `max_side_px` of the protocol first.
    """

    name: str
    images: int
    per_click: tuple[ClickScores, ...]
    noc80: float | None
    noc85: float | None
    noc90: float | None
    noc_clicks: int | None
    seconds_per_click: float
    seconds_per_image: float
    reduced_images: int


def reported_clicks(clicks: int) -> tuple[int, ...]:
    """The click counts to report: 1, 2, 3 and 5 as far as ``clicks`` goes, and ``clicks`` itself."""
    return tuple(sorted({*(k for k in _USUAL if k <= clicks), clicks}))


def intersection_over_union(probability: F32, truth: Bool, threshold: float = THRESHOLD) -> float:
    """Of ``probability > threshold`` and ``truth``, both ``[H, W]``; 1.0 where neither marks anything."""
    found = probability > threshold
    union = np.count_nonzero(found | truth)
    return 1.0 if union == 0 else np.count_nonzero(found & truth) / union


class ClickMetrics:
    """Adds up images one by one; memory does not grow with their number.

    Args:
        clicks: Click counts to report, ascending.
        noc_clicks: Most clicks counted for NoC; None: NoC is not asked for.
        threshold: Of the masks.
    """

    def __init__(self, clicks: Sequence[int], noc_clicks: int | None, threshold: float = THRESHOLD) -> None:
        self.clicks = tuple(clicks)
        self.noc_clicks = noc_clicks
        self.threshold = threshold
        self._pixels = {k: InspectionMetrics(max_bins=_MAX_BINS) for k in self.clicks}
        self._overlaps: list[tuple[float, ...]] = []
        self._needed: list[tuple[int, ...]] = []

    def add(self, probabilities: dict[int, F32], truth: Bool, overlaps: Sequence[float], name: str) -> None:
        """Add one image.

        Args:
            probabilities: The map, float32 ``[H, W]``, at each of the click counts reported.
            truth: bool ``[H, W]``, with a pixel marked.
            overlaps: IoU after 1, 2, 3, ... clicks; where it ends, the last one counts for the clicks that follow.
            name: To name the image in an error (`InspectionMetrics.add`).
        """
        for k in self.clicks:
            found = probabilities[k]
            self._pixels[k].add(found, truth, float(found.max()), defective=True, name=name)
        self._overlaps.append(tuple(overlaps[min(k, len(overlaps)) - 1] for k in self.clicks))
        if self.noc_clicks is not None:
            self._needed.append(tuple(_clicks_needed(overlaps, target, self.noc_clicks) for target in NOC_TARGETS))

    def compute(
        self, name: str, seconds_per_click: float, seconds_per_image: float, reduced_images: int
    ) -> ClickResult:
        """The figures of all images added, of which there is at least one."""
        mean_iou = np.mean(np.array(self._overlaps, np.float64), axis=0)
        per_click = []
        for k, overlap in zip(self.clicks, mean_iou, strict=True):
            pixels = self._pixels[k].compute()
            per_click.append(
                ClickScores(
                    clicks=k,
                    ap=pixels.pixel_ap,
                    pro=pixels.pro,
                    auroc=pixels.pixel_auroc,
                    mean_iou=float(overlap),
                )
            )
        needed = [float(n) for n in np.mean(self._needed, axis=0)] if self._needed else [None, None, None]
        return ClickResult(
            name=name,
            images=len(self._overlaps),
            per_click=tuple(per_click),
            noc80=needed[0],
            noc85=needed[1],
            noc90=needed[2],
            noc_clicks=self.noc_clicks,
            seconds_per_click=seconds_per_click,
            seconds_per_image=seconds_per_image,
            reduced_images=reduced_images,
        )


def _clicks_needed(overlaps: Sequence[float], target: float, most: int) -> int:
    return next((k for k, overlap in enumerate(overlaps[:most], start=1) if overlap >= target), most)
