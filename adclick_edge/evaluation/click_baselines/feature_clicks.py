"""Feature clicks: a logistic regression per image, fitted to the clicks on a backbone's features, colour and position."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.data.resize import fit
from adclick_edge.evaluation.click_baselines.discs import WORKING_SIDE_PX, enlarged, label_discs, scaled, scaled_clicks
from adclick_edge.evaluation.click_baselines.grabcut import GRABCUT_SIDE_PX, cut
from adclick_edge.evaluation.click_baselines.logistic import fit_logistic

__all__ = ["FeatureClicks", "FeatureClicksSettings", "FeatureSource", "RefinedFeatureClicks", "RefinedSettings"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

FeatureSource = Callable[[U8], Mapping[str, F32]]
"""uint8 ``[1, 512, 512, 3]`` -> feature maps ``map4``, ``map8``, ``map16``, float32 ``[1, C, h, w]``."""

_MAPS: Final = ("map4", "map8", "map16")
_STRIDE: Final = 4
_GRID: Final = WORKING_SIDE_PX // _STRIDE
_CLICK_WEIGHT: Final = 100.0
"""Weight of all pixels of one label together, however many there are."""
_SQUARE: Final = (WORKING_SIDE_PX, WORKING_SIDE_PX)
_BLURS_PX: Final = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class FeatureClicksSettings:
    """Lengths are in pixels of the frame stretched to 512 x 512."""

    disc_px: float = 4.0
    """Radius around a click whose pixels are taken to have its label."""
    ridge: float = 2.0
    deep_scale: float = 0.3
    """Scale of the backbone's features beside those of colour and position: they are many and the clicks few."""
    far_px: float = 100.0
    """Pixels farther than this from every positive click are taken as weak negatives: most of a frame is normal."""
    far_px_later: float = 200.0
    """The same once there is a negative click: then large defects need not be cut short."""
    weak_negatives: int = 1000
    """How many of them, at random."""
    weak_weight: float = 1.0
    """Weight of all weak negatives together relative to that of the negative clicks; 1 before there is one."""
    nearness: float = 1.0
    """Scale of the two position features that say how far the nearest positive and negative click are; 0: none."""


class FeatureClicks:
    """A linear model of this image alone, fitted anew at each click; it knows nothing but the backbone and the clicks.

    Features are linear in the answer, so that those of the backbone are combined on their own grid and enlarged as one
    plane, while colour and position count pixel by pixel.
    """

    name = "feature_clicks"

    def __init__(self, features: FeatureSource, settings: FeatureClicksSettings | None = None) -> None:
        self._features = features
        self._settings = settings or FeatureClicksSettings()
        self._shape = (0, 0)
        self._deep: F32 = np.zeros((0, 0, 0), np.float32)  # [128, 128, C]
        self._fine: F32 = np.zeros((0, 0, 0), np.float32)  # [512, 512, colour and position]
        self._clicks: list[Click] = []

    def set_image(self, frame: U8) -> None:
        square = fit(frame, _SQUARE)
        maps = self._features(square[None])
        self._shape = (frame.shape[0], frame.shape[1])
        deep = _standardised(np.concatenate([_on_grid(maps[name][0]) for name in _MAPS], axis=2))
        self._deep = np.float32(self._settings.deep_scale) * deep
        place = np.indices(_SQUARE, dtype=np.float32).transpose(1, 2, 0)
        self._fine = _standardised(np.concatenate([_colour(square), place], axis=2).astype(np.float32))
        self._clicks = []

    def click(self, y: float, x: float, positive: bool) -> F32:
        self._clicks.append(Click(y, x, positive))
        return enlarged(self._answer(scaled_clicks(self._clicks, self._shape, _SQUARE)), self._shape)

    def _answer(self, clicks: Sequence[Click]) -> F32:
        """Probability, float32 ``[512, 512]``, from clicks on the square."""
        near = [_distance(clicks, positive) for positive in (True, False)]
        fine = self._fine
        if self._settings.nearness > 0:
            nearness = [
                self._settings.nearness * np.log1p(d / 16) if d is not None else np.zeros(_SQUARE) for d in near
            ]
            fine = np.concatenate([fine, np.stack(nearness, axis=2).astype(np.float32)], axis=2)
        labels, weights = self._training_pixels(clicks, near[0])
        used = np.flatnonzero(labels)
        positive = labels.ravel()[used] > 0
        if positive.all() or not positive.any():
            return np.full(_SQUARE, 1.0 if positive.any() else 0.0, np.float32)
        points = np.concatenate([_sampled(self._deep, used), fine.reshape(-1, fine.shape[2])[used]], axis=1)
        found = fit_logistic(points.astype(np.float64), positive, weights.ravel()[used], self._settings.ridge)
        of_deep, of_fine = np.split(found[:-1].astype(np.float32), [self._deep.shape[2]])
        logits = enlarged(self._deep @ of_deep, _SQUARE) + fine @ of_fine + np.float32(found[-1])
        probability: F32 = (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
        return probability

    def _training_pixels(self, clicks: Sequence[Click], near: F32 | None) -> tuple[npt.NDArray[np.int8], F64]:
        """Label (+1, -1, 0: unused) and weight of each pixel, ``[512, 512]``; ``near``: px to the nearest positive."""
        labels = label_discs(_SQUARE, clicks, self._settings.disc_px)
        weights = np.zeros(_SQUARE, np.float64)
        for label in (1, -1):
            chosen = labels == label
            weights[chosen] = _CLICK_WEIGHT / max(int(np.count_nonzero(chosen)), 1)
        known = bool((labels < 0).any())
        share = self._settings.weak_weight if known else 1.0
        least_px = self._settings.far_px_later if known else self._settings.far_px
        far = np.flatnonzero((labels == 0) if near is None else (labels == 0) & (near > least_px))
        if far.size and share > 0:
            weak = np.random.default_rng(0).choice(far, min(far.size, self._settings.weak_negatives), replace=False)
            labels.ravel()[weak] = -1
            weights.ravel()[weak] = share * _CLICK_WEIGHT / weak.size
        return labels, weights


@dataclass(frozen=True)
class RefinedSettings:
    """``sure_px`` is in pixels of the frame scaled to 512 px on its longer side."""

    likely: float = 0.5
    """Probability from which GrabCut starts with a pixel as defective."""
    normal_below: float = 0.05
    """Probability below which a pixel stays background whatever its colour."""
    defect_above: float = 0.98
    """Probability above which a pixel stays defective whatever its colour."""
    sure_px: float = 3.0
    iterations: int = 1


class RefinedFeatureClicks:
    """Feature clicks, and GrabCut started from their answer: its edges follow those of the picture.

    The mask at 0.49 is GrabCut's; within it and outside of it pixels are ranked by the regression.
    """

    name = "feature_clicks_grabcut"

    def __init__(
        self,
        features: FeatureSource,
        settings: FeatureClicksSettings | None = None,
        refined: RefinedSettings | None = None,
    ) -> None:
        self._inner = FeatureClicks(features, settings)
        self._settings = refined or RefinedSettings()
        self._shape = (0, 0)
        self._frame: U8 = np.zeros((0, 0, 3), np.uint8)
        self._clicks: list[Click] = []

    def set_image(self, frame: U8) -> None:
        self._inner.set_image(frame)
        self._shape = (frame.shape[0], frame.shape[1])
        self._frame = scaled(frame, GRABCUT_SIDE_PX)
        self._clicks = []

    def click(self, y: float, x: float, positive: bool) -> F32:
        self._clicks.append(Click(y, x, positive))
        answer = self._inner.click(y, x, positive)
        shape = (self._frame.shape[0], self._frame.shape[1])
        small = fit(answer[:, :, None], shape)[:, :, 0]  # type: ignore[arg-type]
        clicks = scaled_clicks(self._clicks, self._shape, shape)
        sure = label_discs(shape, clicks, self._settings.sure_px * max(shape) / WORKING_SIDE_PX)
        is_open = sure == 0
        sure[is_open & (small < self._settings.normal_below)] = -1
        sure[is_open & (small > self._settings.defect_above)] = 1
        found = cut(self._frame, small > self._settings.likely, sure, self._settings.iterations)
        # 0.5 and more inside, less than 0.49 outside.
        return (0.51 * enlarged(found.astype(np.float32), self._shape) + 0.48 * answer).astype(np.float32)


def _on_grid(plane: F32) -> F32:
    """``[C, h, w]`` -> float32 ``[128, 128, C]``, bilinear."""
    return enlarged(np.ascontiguousarray(plane.transpose(1, 2, 0)), (_GRID, _GRID))


def _colour(square: U8) -> F32:
    """Lightness of each pixel, then bands of Lab colour from fine to coarse: float32 ``[512, 512, 19]``.

    A pixel's contrast to its surroundings tells a crack from ground of the same shade elsewhere.
    """
    finer = cv2.cvtColor(square, cv2.COLOR_RGB2LAB).astype(np.float32)
    planes = [finer[:, :, :1]]
    finer = cv2.GaussianBlur(finer, (0, 0), 1).astype(np.float32)
    for sigma_px in _BLURS_PX:
        coarser = cv2.GaussianBlur(finer, (0, 0), sigma_px).astype(np.float32)
        planes.append(finer - coarser)
        finer = coarser
    return np.concatenate([*planes, finer], axis=2)


def _standardised(planes: F32) -> F32:
    """Each of the planes ``[h, w, C]`` with mean 0 and deviation 1; a constant one becomes zeros."""
    centred = planes - planes.mean(axis=(0, 1))
    standardised: F32 = (centred / (centred.std(axis=(0, 1)) + 1e-6)).astype(np.float32)
    return standardised


def _distance(clicks: Sequence[Click], positive: bool) -> F32 | None:
    """Pixels to the nearest click of that label, float32 ``[512, 512]``; None where there is none."""
    rows, columns = np.ogrid[:WORKING_SIDE_PX, :WORKING_SIDE_PX]
    each = [np.hypot(rows - c.y, columns - c.x).astype(np.float32) for c in clicks if c.positive == positive]
    return np.minimum.reduce(each) if each else None


def _sampled(planes: F32, pixels: I64) -> F32:
    """What ``planes`` (``[128, 128, C]``) are at ``pixels`` (places in the 512 x 512 square), bilinear: ``[n, C]``."""
    y, x = ((place + 0.5) / _STRIDE - 0.5 for place in np.divmod(pixels, WORKING_SIDE_PX))
    y, x = np.clip(y, 0, _GRID - 1), np.clip(x, 0, _GRID - 1)
    top, left = (np.minimum(np.floor(place).astype(np.intp), _GRID - 2) for place in (y, x))
    down, right = ((y - top)[:, None], (x - left)[:, None])
    upper = (1 - right) * planes[top, left] + right * planes[top, left + 1]
    lower = (1 - right) * planes[top + 1, left] + right * planes[top + 1, left + 1]
    sampled: F32 = ((1 - down) * upper + down * lower).astype(np.float32)
    return sampled
