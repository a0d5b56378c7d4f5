"""The images a run did worst on, kept while it streams by."""

import heapq
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError
from adclick_edge.evaluation.inspection import check_frame
from adclick_edge.evaluation.ranking import best_iou, rank

__all__ = ["WorstCollector", "WorstImage", "WorstKind"]

WorstKind = Literal["missed", "false_alarm", "overlap"]

MAX_SIDE_PX: Final = 400

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class WorstImage:
    """One image of a list, reduced to at most 400 px.

    Attributes:
        kind: ``missed`` (a defect that scored low), ``false_alarm`` (a normal that scored high) or ``overlap`` (a
            defect whose map does not follow it).
        name: The frame's name.
        score: Its score.
        overlap: The best intersection over union that any one threshold reaches on this frame; ``None`` without a mask.
        frame: uint8 RGB ``[h, w, 3]``.
        anomaly_map: float32 ``[h, w]``; each value is the highest of those it stands for.
        mask: bool ``[h, w]``, or ``None``; True where any pixel is defective.
    """

    kind: WorstKind
    name: str
    score: float
    overlap: float | None
    frame: U8
    anomaly_map: F32
    mask: Bool | None


class WorstCollector:
    """Keeps ``per_list`` images of each kind; an image costs at most 1.3 MB, whatever its size and however many pass.

    Args:
        per_list: Images to keep in each of the three lists, at least 1.
    """

    def __init__(self, per_list: int = 6) -> None:
        if per_list < 1:
            raise UsageError(f"per_list is {per_list}; pass at least 1")
        self._per_list = per_list
        # Of equally bad images the first stays: the count breaks ties before the image is compared.
        self._heaps: dict[WorstKind, list[tuple[float, int, WorstImage]]] = {
            "missed": [],
            "false_alarm": [],
            "overlap": [],
        }
        self._count = 0

    def add(
        self,
        name: str,
        frame: U8,
        anomaly_map: F32,
        mask: Bool | None,
        score: float,
        *,
        defective: bool | None = None,
        valid: Bool | None = None,
    ) -> None:
        """Look at one frame; map, mask, score, ``defective`` and ``valid`` are those of ``InspectionMetrics.add``.

        Args:
            name: How the report calls the frame.
            frame: uint8 RGB ``[H, W, 3]``, any size with the proportions of the map.

        Raises:
            UsageError, DataError: As ``InspectionMetrics.add``, and a frame that is not uint8 RGB.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            raise UsageError(f"{name}: the frame is {frame.dtype} {list(frame.shape)}; pass uint8 RGB [H, W, 3]")
        is_defective = check_frame(name, anomaly_map, mask, score, defective, valid)
        self._count += 1
        overlap = None
        if is_defective and mask is not None:
            inside = np.ones_like(mask) if valid is None else valid
            if (mask & inside).any():
                overlap = best_iou(rank(anomaly_map[inside], mask[inside]))
        badness: list[tuple[WorstKind, float]] = [("missed", -score) if is_defective else ("false_alarm", score)]
        if overlap is not None:
            badness.append(("overlap", -overlap))
        for kind, bad in badness:
            heap = self._heaps[kind]
            if len(heap) == self._per_list and heap[0][:2] >= (bad, -self._count):
                continue
            shown = anomaly_map
            if valid is not None:  # what is not evaluated shall not glow
                shown = np.where(valid, anomaly_map, anomaly_map[valid].min(initial=score))
            image = WorstImage(
                kind=kind,
                name=name,
                score=float(score),
                overlap=overlap,
                frame=_reduced(frame),
                anomaly_map=_highest(shown, frame.shape),
                mask=None if mask is None else _highest(mask.astype(np.uint8), frame.shape) > 0,
            )
            heapq.heappush(heap, (bad, -self._count, image))
            if len(heap) > self._per_list:
                heapq.heappop(heap)

    def images(self) -> list[WorstImage]:
        """Return the images kept, list by list, the worst of each first."""
        return [entry[2] for heap in self._heaps.values() for entry in sorted(heap, key=lambda e: e[:2], reverse=True)]


def _reduced_size(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, MAX_SIDE_PX / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _reduced(frame: U8) -> U8:
    return cv2.resize(frame, _reduced_size(frame.shape), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _highest(values: npt.NDArray[np.generic], frame_shape: tuple[int, ...]) -> F32:
    """Reduce a map so that its peaks stay: averaging would hide the small defects the report is to show."""
    width, height = _reduced_size(frame_shape)
    peaks = values.astype(np.float32)
    for axis, size in enumerate((height, width)):
        if peaks.shape[axis] > size:
            peaks = np.maximum.reduceat(peaks, np.arange(size) * peaks.shape[axis] // size, axis=axis)
    return cv2.resize(peaks, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32)
