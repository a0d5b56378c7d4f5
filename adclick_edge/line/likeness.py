"""How alike two frames are to an operator: the same picture again, or something else to look at.

Two pictures are alike where their grey thumbnails agree, once laid over each other: as a whole, around the strongest
place of the one and around that of the other. The least of the three counts, so that a part that looks like all others
but for a new defect is new, and a part that was merely triggered twice is not. Only the fine structure is compared: what
is common to all frames of a product (its broad light and dark areas) would make everything alike. The maps themselves
are not compared: a shift of one pixel changes a map far more than the picture it comes from.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.data.resize import fit
from adclick_edge.errors import LineError

__all__ = ["THUMBNAIL_SIDE", "QueuedLately", "Signature", "likeness", "most_alike", "signature"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

THUMBNAIL_SIDE = 128
_COARSE_SIDE = 32
_REACH = 4  # thumbnail pixels that two pictures may be shifted against each other: 3 % of the frame
_WINDOW = 14  # thumbnail pixels around the strongest place
_SMOOTH_SIGMA, _BROAD_SIGMA = 0.7, 4.0  # the band between them is compared
_NOISE_VARIANCE = 3.0  # of that band, in squared grey levels: plain surfaces differ by their noise alone
_LOOKED_AT = 4  # remembered frames, by their coarse thumbnails, that are compared closely


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a frame is remembered to know it again. 16 KiB."""

    thumbnail: bytes
    """Grey levels, uint8 [THUMBNAIL_SIDE, THUMBNAIL_SIDE] in rows."""
    x: float
    """Where its map is strongest, as fractions of width and height."""
    y: float

    def __post_init__(self) -> None:
        if len(self.thumbnail) != THUMBNAIL_SIDE**2:
            raise ValueError(f"a thumbnail of {len(self.thumbnail)} bytes; expected {THUMBNAIL_SIDE**2}")
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise ValueError(f"the strongest place ({self.x}, {self.y}) is outside the frame, 0..1")


def signature(frame: U8, anomaly_map: F32, valid: npt.NDArray[np.bool_] | None = None) -> Signature:
    """Of a frame uint8 [H, W, 3] RGB or [H, W] grey and its map float32 [h4, w4], where ``valid`` is set."""
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or frame.size == 0:
        raise LineError(f"a frame of {frame.dtype} {list(frame.shape)}; expected uint8 [H, W, 3] or [H, W]")
    small = fit(frame, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if small.ndim == 3:
        small = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    values = anomaly_map if valid is None else np.where(valid, anomaly_map, -np.inf)
    row, column = divmod(int(values.argmax()), values.shape[1])
    return Signature(
        thumbnail=small.tobytes(),
        x=(column + 0.5) / values.shape[1],
        y=(row + 0.5) / values.shape[0],
    )


def likeness(one: Signature, other: Signature) -> float:
    """0 (nothing in common) to 1 (the same picture), the same whichever comes first but for rounding."""
    a, b = _fine(one), _fine(other)
    dx, dy = _shift(a, b)
    inside = np.s_[_REACH:-_REACH, _REACH:-_REACH]
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    b = np.asarray(cv2.warpAffine(b, move, b.shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT), np.float32)
    found = [_agreement(a[inside], b[inside])]
    moved_x, moved_y = other.x - dx / THUMBNAIL_SIDE, other.y - dy / THUMBNAIL_SIDE
    for x, y in ((one.x, one.y), (moved_x, moved_y)):
        found.append(_agreement(_window(a, x, y), _window(b, x, y)))
    return min(1.0, max(0.0, min(found)))


def _shift(a: F32, b: F32) -> tuple[float, float]:
    """(dx, dy) in thumbnail pixels, with a[y, x] = b[y + dy, x + dx] as nearly as can be."""
    core = a[_REACH:-_REACH, _REACH:-_REACH]
    found = cv2.matchTemplate(b, core, cv2.TM_CCOEFF_NORMED)
    _, _, _, (column, row) = cv2.minMaxLoc(found)
    dx, dy = float(column - _REACH), float(row - _REACH)
    # Least squares on the gradients finds the rest of the way, below a pixel.
    gradient_x, gradient_y = (
        cv2.Sobel(core, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(core, cv2.CV_32F, 0, 1, scale=1 / 8),
    )
    xx, yy = float((gradient_x**2).sum()), float((gradient_y**2).sum())
    xy = float((gradient_x * gradient_y).sum())
    determinant = xx * yy - xy * xy
    if determinant <= 1e-3 * xx * yy or determinant <= 0:
        return dx, dy
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    for _ in range(2):
        move = np.array([[1, 0, _REACH + dx], [0, 1, _REACH + dy]], np.float32)
        rest = core - cv2.warpAffine(b, move, core.shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
        rx, ry = float((gradient_x * rest).sum()), float((gradient_y * rest).sum())
        step_x, step_y = (yy * rx - xy * ry) / determinant, (xx * ry - xy * rx) / determinant
        if not (math.isfinite(step_x) and math.isfinite(step_y)) or max(abs(step_x), abs(step_y)) > 1:
            break
        dx, dy = dx + step_x, dy + step_y
    return dx, dy


def _window(levels: F32, x: float, y: float) -> F32:
    half, side = _WINDOW // 2, THUMBNAIL_SIDE
    column = min(max(round(x * side), half + _REACH), side - half - _REACH)
    row = min(max(round(y * side), half + _REACH), side - half - _REACH)
    return levels[row - half : row + half, column - half : column + half]


def _agreement(a: F32, b: F32) -> float:
    """Normalised correlation, where what the sensor's noise explains counts as agreement."""
    covariance = float((a * b).mean() - a.mean() * b.mean())
    return (2 * covariance + _NOISE_VARIANCE) / (float(a.var()) + float(b.var()) + _NOISE_VARIANCE)


def most_alike(seen: Signature, others: Sequence[Signature]) -> float:
    """The highest likeness to any of ``others``, 0..1; 0 where there are none."""
    return _most_alike(seen, [_Remembered(other) for other in others])


class QueuedLately:
    """The last ``limit`` frames of each product that were handed over. Thread-safe."""

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._frames: dict[str, deque[_Remembered]] = {}

    def __len__(self) -> int:
        with self._lock:
            return sum(len(frames) for frames in self._frames.values())

    def add(self, product: str, seen: Signature) -> None:
        remembered = _Remembered(seen)
        with self._lock:
            self._frames.setdefault(product, deque(maxlen=self._limit)).append(remembered)

    def most_alike(self, product: str, seen: Signature) -> float:
        """The highest likeness to a remembered frame of the product, 0..1; 0 where there is none."""
        with self._lock:
            frames = list(self._frames.get(product, ()))
        return _most_alike(seen, frames)


class _Remembered:
    def __init__(self, seen: Signature) -> None:
        self.signature = seen
        small = fit(_grey(seen)[..., None], (_COARSE_SIDE, _COARSE_SIDE)).astype(np.float32).ravel()
        small -= small.mean()
        self.coarse: F32 = small / np.float32(max(float(np.linalg.norm(small)), 1e-6))
        """Unit vector that picks the frames worth a close look."""


def _most_alike(seen: Signature, others: Sequence[_Remembered]) -> float:
    if not others:
        return 0.0
    near = np.stack([other.coarse for other in others]) @ _Remembered(seen).coarse
    nearest = np.argsort(-near, kind="stable")[:_LOOKED_AT]
    return max(likeness(seen, others[index].signature) for index in nearest.tolist())


def _grey(seen: Signature) -> U8:
    return np.frombuffer(seen.thumbnail, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def _fine(seen: Signature) -> F32:
    levels = _grey(seen).astype(np.float32)
    smooth = cv2.GaussianBlur(levels, (0, 0), _SMOOTH_SIGMA)
    return np.asarray(smooth - cv2.GaussianBlur(levels, (0, 0), _BROAD_SIGMA), np.float32)
