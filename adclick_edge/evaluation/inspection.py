"""Metrics of an inspection run, over any number of images in bounded memory."""

from array import array
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.binning import DEFAULT_MAX_BINS, KeyHistogram, key_values, sortable_keys
from adclick_edge.evaluation.pro import limited_area, region_weights
from adclick_edge.evaluation.ranking import Ranking, average_precision, best_f1, rank, rank_counts, roc_area

__all__ = ["InspectionMetrics", "InspectionResult", "check_frame"]

_NORMAL: Final = 0
_DEFECT: Final = 1
_REGION: Final = 2

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class InspectionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run scored; every metric is in 0..1, higher is better, ``None`` where ``undefined`` says why.

    All figures are over all images added, normal and defective: the inspection protocol. Average precision over defect
    images alone, the click protocol, is another number. Whoever wants it adds defect images only; the two are never
    compared or mixed.

    Attributes:
        pixel_ap: Average precision of pixels.
        pixel_auroc: Area under the ROC curve of pixels.
        pro: Area under the per-region overlap up to ``fpr_limit``, divided by it.
        fpr_limit: The pixel false-positive rate at which PRO stops.
        pixel_f1_max: Highest F1 of pixels over all thresholds.
        pixel_f1_max_threshold: Where it is reached by ``map >= threshold``.
        image_auroc: Area under the ROC curve of frames by score.
        image_ap: Average precision of frames by score.
        f1_max: Highest F1 of frames over all thresholds.
        f1_max_threshold: Where it is reached by ``score >= threshold``. Chosen with the truth at hand: it describes the
            scores and is no threshold to run a line with.
        images: Frames added.
        normal_images: Frames without a defect.
        defect_images: Frames with a defect.
        unmasked_defect_images: Defect frames without a mask; they count for the image metrics only.
        regions: Defect regions (8-connected) that PRO is the mean of.
        normal_pixels: Evaluated pixels without a defect.
        defect_pixels: Evaluated pixels with a defect.
        pixel_resolution: Pixel values closer than this, relative to their size, may have counted as equal; 0.0 means
            that the pixel metrics are exact.
        undefined: Name of each metric that is ``None`` -> the reason.
    """

    pixel_ap: float | None
    pixel_auroc: float | None
    pro: float | None
    fpr_limit: float
    pixel_f1_max: float | None
    pixel_f1_max_threshold: float | None
    image_auroc: float | None
    image_ap: float | None
    f1_max: float | None
    f1_max_threshold: float | None
    images: int
    normal_images: int
    defect_images: int
    unmasked_defect_images: int
    regions: int
    normal_pixels: int
    defect_pixels: int
    pixel_resolution: float
    undefined: Mapping[str, str]


def check_frame(
    name: str, anomaly_map: F32, mask: Bool | None, score: float, defective: bool | None, valid: Bool | None
) -> bool:
    """Return whether the frame is defective, or say what is wrong with it.

    Raises:
        UsageError: A shape or dtype is not what :meth:`InspectionMetrics.add` asks for.
        DataError: A value that counts is NaN or infinite, or ``mask`` and ``defective`` contradict each other.
    """
    if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32 or not anomaly_map.size:
        raise UsageError(f"{name}: the map is {anomaly_map.dtype} {list(anomaly_map.shape)}; pass float32 [H, W]")
    for what, array_2d in (("mask", mask), ("valid", valid)):
        if array_2d is not None and (array_2d.dtype != np.bool_ or array_2d.shape != anomaly_map.shape):
            raise UsageError(
                f"{name}: {what} is {array_2d.dtype} {list(array_2d.shape)}; "
                f"pass bool {list(anomaly_map.shape)}, the shape of the map"
            )
    if not np.isfinite(score):
        raise DataError(f"{name}: the score is {score}; leave the frame out and find out why its model gave no number")
    finite = np.isfinite(anomaly_map)
    bad = ~finite if valid is None else valid & ~finite
    if bad.any():
        row, column = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise DataError(
            f"{name}: {np.count_nonzero(bad)} values of the map are NaN or infinite, the first "
            f"({anomaly_map[row, column]}) at row {row}, column {column}; "
            "leave the frame out and find out why its model gave no number"
        )
    if mask is None:
        return bool(defective)
    masked = bool(mask.any())
    if defective is not None and defective != masked:
        state, content = ("defective", "marks nothing") if defective else ("normal", "marks a defect")
        hint = "; pass mask=None if the defect was never outlined" if defective else ""
        raise DataError(f"{name}: the frame is said to be {state} but its mask {content}{hint}")
    return masked


class InspectionMetrics:
    """Adds up frames one by one; memory does not grow with their number but for 9 bytes each.

    Pixel values are counted in :class:`~adclick_edge.evaluation.binning.KeyHistogram`: exactly until more than
    ``max_bins`` distinct float32 values were seen, then with the relative resolution that
    ``InspectionResult.pixel_resolution`` states. The metrics are always the exact ones of the maps rounded down to that
    resolution; rounding makes ties of neighbours and never swaps two values. Image metrics are exact. With the default
    of 2**19 bins the table takes 15 MB, and up to about 100 MB while a megapixel image is merged into it.

    Args:
        fpr_limit: Pixel false-positive rate at which PRO stops, in (0, 1].
        max_bins: Distinct pixel values to keep, at least 1024.
    """

    def __init__(self, *, fpr_limit: float = 0.3, max_bins: int = DEFAULT_MAX_BINS) -> None:
        if not 0 < fpr_limit <= 1:
            raise UsageError(f"fpr_limit is {fpr_limit}; pass a rate above 0 and at most 1")
        self.fpr_limit = fpr_limit
        self.regions = 0
        self._pixels = KeyHistogram(channels=3, max_bins=max_bins)
        self._scores = array("d")
        self._defective = array("b")
        self._unmasked = 0

    def add(
        self,
        anomaly_map: F32,
        mask: Bool | None,
        score: float,
        *,
        defective: bool | None = None,
        valid: Bool | None = None,
        name: str | None = None,
    ) -> None:
        """Add one frame.

        Args:
            anomaly_map: float32 ``[H, W]``, higher = more anomalous, any range.
            mask: bool ``[H, W]``, True where defective. ``None`` means no defect, or, with ``defective=True``, a defect
                nobody outlined: such a frame counts for the image metrics only.
            score: The frame's score, finite.
            defective: Whether the frame has a defect, where the mask does not say; default: ``mask`` marks a pixel,
                be it ``valid`` or not.
            valid: bool ``[H, W]``, False where pixels are left out of all pixel metrics, whatever the map holds there;
                default: all count.
            name: How to name the frame in an error.

        Raises:
            UsageError: A shape or dtype is wrong.
            DataError: A NaN or infinite value, or a mask that contradicts ``defective``. Nothing was added.
        """
        label = name if name is not None else f"frame {len(self._scores)}"
        is_defective = check_frame(label, anomaly_map, mask, score, defective, valid)
        self._scores.append(score)
        self._defective.append(is_defective)
        if is_defective and mask is None:
            self._unmasked += 1
            return
        if mask is None or not is_defective:
            self._pixels.add(_NORMAL, sortable_keys(anomaly_map.ravel() if valid is None else anomaly_map[valid]))
            return
        counted = np.ones_like(mask) if valid is None else valid
        weights, regions = region_weights(mask, counted)
        defect_keys = sortable_keys(anomaly_map[mask & counted])
        self._pixels.add(_NORMAL, sortable_keys(anomaly_map[~mask & counted]))
        self._pixels.add(_DEFECT, defect_keys)
        self._pixels.add(_REGION, defect_keys, weights)
        self.regions += regions

    def image_ranking(self) -> Ranking:
        """Rank the frames by score."""
        return rank(np.array(self._scores, dtype=np.float64), np.array(self._defective, dtype=np.bool_))

    def frame_scores(self, *, defective: bool) -> F64:
        """Return the scores of all defective, or of all normal, frames, in the order added."""
        chosen = np.array(self._defective, dtype=np.bool_) == defective
        scores: F64 = np.array(self._scores, dtype=np.float64)[chosen]
        return scores

    def pixel_ranking(self) -> tuple[Ranking, F64]:
        """Return the ranking of the pixels and the mean overlap of regions at each of its thresholds ``[T]``."""
        keys, sums = self._pixels.totals()
        ranking = rank_counts(key_values(keys), sums[_NORMAL], sums[_DEFECT])
        overlap = np.cumsum(sums[_REGION][::-1]) / max(self.regions, 1)
        return ranking, np.minimum(overlap, 1.0)  # the sum of many 1 / area may end a rounding error above 1

    def compute(self) -> InspectionResult:
        """Return the metrics of all frames added so far; more may be added after."""
        frames = self.image_ranking()
        pixels, overlap = self.pixel_ranking()
        undefined: dict[str, str] = {}
        image_auroc = image_ap = f1 = f1_threshold = None
        if reason := _why_undefined(frames, "images"):
            undefined |= dict.fromkeys(("image_auroc", "image_ap", "f1_max", "f1_max_threshold"), reason)
        else:
            image_auroc, image_ap = roc_area(frames), average_precision(frames)
            f1, f1_threshold = best_f1(frames)
        pixel_auroc = pixel_ap = pro = pixel_f1 = pixel_f1_threshold = None
        if reason := _why_undefined(pixels, "evaluated pixels"):
            names = ("pixel_ap", "pixel_auroc", "pro", "pixel_f1_max", "pixel_f1_max_threshold")
            undefined |= dict.fromkeys(names, reason)
        else:
            pixel_auroc, pixel_ap = roc_area(pixels), average_precision(pixels)
            pro = limited_area(pixels.false_alarm_rate(), overlap, self.fpr_limit)
            pixel_f1, pixel_f1_threshold = best_f1(pixels)
        defects = sum(self._defective)
        return InspectionResult(
            pixel_ap=pixel_ap,
            pixel_auroc=pixel_auroc,
            pro=pro,
            fpr_limit=self.fpr_limit,
            pixel_f1_max=pixel_f1,
            pixel_f1_max_threshold=pixel_f1_threshold,
            image_auroc=image_auroc,
            image_ap=image_ap,
            f1_max=f1,
            f1_max_threshold=f1_threshold,
            images=len(self._scores),
            normal_images=len(self._scores) - defects,
            defect_images=defects,
            unmasked_defect_images=self._unmasked,
            regions=self.regions,
            normal_pixels=int(pixels.normals),
            defect_pixels=int(pixels.defects),
            pixel_resolution=2.0 ** (self._pixels.shift - 23) if self._pixels.shift else 0.0,
            undefined=undefined,
        )


def _why_undefined(ranking: Ranking, items: str) -> str | None:
    """Without normals every AP and F1 would be 1 whatever the scores, so those are refused like the areas are."""
    missing = [kind for kind, number in (("defective", ranking.defects), ("normal", ranking.normals)) if not number]
    return f"no {' and no '.join(missing)} {items} were added" if missing else None
