"""Where clicks are answered: the whole frame, or a closer view of the region they mark.

Coordinates are pixels with the integer i at the centre of pixel i, so the frame spans -0.5 to H - 0.5. A view is a
rectangle of whole pixels that the network sees enlarged or reduced to its own size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.data.resize import fit
from adclick_edge.features.view import crop_cells

__all__ = [
    "View",
    "click_rows",
    "crop_grid",
    "marked_box",
    "next_view",
    "paste",
    "resize_map",
    "to_frame",
    "to_probability",
    "to_view",
    "whole_view",
]

F32 = npt.NDArray[np.float32]
Size = tuple[int, int]

EXPANSION = 1.8
"""A view is this many times as long as what is marked: the network sees what lies around."""
LEAST_SIDE_PX = 96
LEAST_SIDE_SHARE = 1 / 6
MOST_SIDE_SHARE = 0.6
"""A view this large would show hardly more than the whole frame does."""
LEAST_FILL_SHARE = 0.4
"""A view is kept until a new one would be smaller than this share of it."""
BORDER_SHARE = 0.04
"""A mask that comes this close to a border of its view, as a share of the view, may go on behind it."""


@dataclass(frozen=True)
class View:
    """A rectangle of the frame in whole pixels; also the box around what is marked."""

    top: int
    left: int
    height: int
    width: int


def whole_view(frame_size: Size) -> View:
    return View(0, 0, *frame_size)


def to_view(y: float, x: float, view: View, size: Size) -> tuple[float, float]:
    """A place of the frame in pixels of the network's input of ``size`` (height, width) that shows ``view``."""
    return (
        (y - view.top + 0.5) * size[0] / view.height - 0.5,
        (x - view.left + 0.5) * size[1] / view.width - 0.5,
    )


def to_frame(y: float, x: float, view: View, size: Size) -> tuple[float, float]:
    """The inverse of `to_view`."""
    return (
        (y + 0.5) * view.height / size[0] - 0.5 + view.top,
        (x + 0.5) * view.width / size[1] - 0.5 + view.left,
    )


def click_rows(clicks: Sequence[Click], view: View, size: Size, most: int) -> F32:
    """Clicks as the network takes them: float32 [most, 3], a row of y, x (pixels of the input) and +1 or -1 each.

    Clicks outside the view are left out; unused rows are zero. Rows are sorted, so that the order in which the clicks
    were given changes not even the rounding.
    """
    rows = []
    for click in clicks:
        y, x = to_view(click.y, click.x, view, size)
        if -0.5 <= y <= size[0] - 0.5 and -0.5 <= x <= size[1] - 0.5:
            rows.append((y, x, 1.0 if click.positive else -1.0))
    out = np.zeros((most, 3), np.float32)
    out[: len(rows)] = np.array(sorted(rows), np.float32).reshape(-1, 3)
    return out


def marked_box(probability: F32, clicks: Sequence[Click], threshold: float = 0.5) -> View | None:
    """The box around the mask so far (``probability`` [H, W] above ``threshold``) and the positive clicks; None where
    there are neither.
    """
    mask = probability > threshold
    height, width = probability.shape
    ys = [_pixel(click.y, height) for click in clicks if click.positive]
    xs = [_pixel(click.x, width) for click in clicks if click.positive]
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size:
        columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
        ys += [int(rows[0]), int(rows[-1])]
        xs += [int(columns[0]), int(columns[-1])]
    if not ys:
        return None
    return View(min(ys), min(xs), max(ys) - min(ys) + 1, max(xs) - min(xs) + 1)


def next_view(box: View | None, frame_size: Size, current: View) -> View:
    """The view that answers the next click, given the box around what is marked and the view of the answer before.

    That of before, where the box still lies well inside it and fills enough of it; the whole frame, where the box is
    large or nothing is marked; otherwise a new view around the box with the frame's proportions.
    """
    whole = whole_view(frame_size)
    if box is None:
        return whole
    wanted = _around(box, frame_size)
    if wanted is None:
        return whole
    # One side tells: views have the frame's proportions.
    filled = wanted.height >= LEAST_FILL_SHARE * current.height
    return current if current != whole and filled and _well_inside(box, current, frame_size) else wanted


def crop_grid(maps: F32, view: View, frame_size: Size, grid: Size) -> F32:
    """What maps [C, h, w] over the whole frame say about ``view``, as in training: float32 [C, *grid], bilinear."""
    if view == whole_view(frame_size) and maps.shape[1:] == grid:
        return maps
    height, width = frame_size
    bottom, right = view.top + view.height, view.left + view.width
    return crop_cells(maps, (view.top / height, view.left / width, bottom / height, right / width), grid)


def resize_map(values: F32, size: Size) -> F32:
    """A map float32 [h, w] at ``size``, by the rule for frames: averaged where it shrinks, bilinear where it grows."""
    return fit(values[:, :, None], size)[:, :, 0]  # type: ignore[arg-type, return-value]


def paste(probability: F32, part: F32, view: View) -> F32:
    """A copy of ``probability`` [H, W] with ``part`` [view.height, view.width] in the place of ``view``."""
    out = probability.copy()
    out[view.top : view.top + view.height, view.left : view.left + view.width] = part
    return out


def to_probability(logits: F32) -> F32:
    """The sigmoid, by tanh: no overflow at either end."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)


def _pixel(place: float, side: int) -> int:
    return min(max(round(place), 0), side - 1)


def _around(box: View, frame_size: Size) -> View | None:
    """The view around ``box``; None where it would be nearly the whole frame."""
    height, width = frame_size
    share = max(
        EXPANSION * box.height / height,
        EXPANSION * box.width / width,
        LEAST_SIDE_PX / min(frame_size),
        LEAST_SIDE_SHARE,
    )
    if share >= MOST_SIDE_SHARE:
        return None
    rows, columns = math.ceil(share * height), math.ceil(share * width)
    return View(
        _start(box.top + box.height / 2, rows, height), _start(box.left + box.width / 2, columns, width), rows, columns
    )


def _start(centre: float, length: int, side: int) -> int:
    return min(max(round(centre - length / 2), 0), side - length)


def _well_inside(box: View, view: View, frame_size: Size) -> bool:
    """Inside, and away from those borders of the view that are not the frame's."""
    for start, length, view_start, view_length, side in (
        (box.top, box.height, view.top, view.height, frame_size[0]),
        (box.left, box.width, view.left, view.width, frame_size[1]),
    ):
        margin = BORDER_SHARE * view_length
        before, behind = start - view_start, view_start + view_length - start - length
        if before < (margin if view_start > 0 else 0) or behind < (margin if view_start + view_length < side else 0):
            return False
    return True
