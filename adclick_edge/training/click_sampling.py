"""The training robot: clicks drawn at random as an operator might give them (method section 2).

First a handful of clicks that know the truth only, then corrective clicks that know the network's answer. The evaluation
robot (`adclick_edge.evaluation.click_robot`) draws nothing: the two are kept apart so that a metric never depends on a seed.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import MAX_CLICKS, Click
from adclick_edge.errors import UsageError

__all__ = ["CORRECTIVE_CLICKS", "click_array", "corrective_click", "first_clicks"]

Bool = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

CORRECTIVE_CLICKS: Final = 4
"""Most corrective clicks of a training step; `first_clicks` leaves that many of the network's `MAX_CLICKS` rows free."""
ANY_NEGATIVES: Final = 0.5
"""Share of pictures that get negative clicks before the network has answered."""
RING_SHARE: Final = 0.5
"""Share of those negatives that lie in a ring around the defect; the rest lies anywhere outside of it."""
RING_GAP_PX: Final = 2.0
"""Labels are not exact to the pixel: no negative is drawn closer than this to the defect, where there is other room."""


def first_clicks(mask: Bool, rng: np.random.Generator, most: int = MAX_CLICKS, decay: float = 0.8) -> list[Click]:
    """Clicks that know the truth only: 1 to ``most`` positives, sometimes negatives from a ring around the defect or from
    the background, never more than ``MAX_CLICKS - CORRECTIVE_CLICKS`` in all.

    Each number of positives is ``decay`` times as likely as the number before it. The first lies well inside a region
    (where an operator starts), the others anywhere inside the mask. No place is drawn twice.

    Args:
        mask: bool ``[H, W]``, True where defective; with nothing marked, one negative or more is drawn.
        rng: Source of chance; the same state gives the same clicks.
        most: Most positives, and most negatives; 1 to `MAX_CLICKS`.
        decay: Above 0, at most 1.

    Raises:
        UsageError: ``mask``, ``most`` or ``decay`` is not as above.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
        raise UsageError(f"the mask is {mask.dtype} {list(mask.shape)}; pass bool [H, W]")
    if not 1 <= most <= MAX_CLICKS or not 0 < decay <= 1:
        raise UsageError(f"most is {most}, decay {decay}; pass 1 to {MAX_CLICKS} and a number in (0, 1]")
    room = MAX_CLICKS - CORRECTIVE_CLICKS
    inside = np.flatnonzero(mask)
    positives: list[int] = []
    if inside.size:
        count = min(1 + _decaying(rng, most, decay), room, inside.size)
        deep = _deep_places(_depth(mask))
        positives.append(int(deep[rng.integers(deep.size)]))
        # One place more than needed: the first click may be among them.
        others = inside[rng.choice(inside.size, min(count, inside.size), replace=False)]
        positives += [int(place) for place in others if place != positives[0]][: count - 1]
        negatives = _decaying(rng, most, decay) + 1 if rng.random() < ANY_NEGATIVES else 0
    else:
        negatives = _decaying(rng, most, decay) + 1
    outside = _negative_places(mask, rng, min(negatives, room - len(positives)))
    width = mask.shape[1]
    return [_click(place, width, True) for place in positives] + [_click(place, width, False) for place in outside]


def corrective_click(
    probability: F32, mask: Bool, given: Sequence[Click], rng: np.random.Generator, threshold: float = 0.49
) -> Click | None:
    """A click at a random deep place of the larger error region, or None where no error is left.

    The larger of missed and false pixels is the one whose distance transform reaches higher (borders of the picture count
    as edges); the place is drawn where the transform is above half its maximum. Places of ``given`` are not clicked again.

    Args:
        probability: float32 ``[H, W]``; defective above ``threshold``.
        mask: bool ``[H, W]``, the truth.
        given: Clicks so far.
        rng: Source of chance.
    """
    if probability.shape != mask.shape:
        raise UsageError(f"probability is {list(probability.shape)}, mask {list(mask.shape)}; pass one shape")
    found = probability > threshold
    missed, false = _depth(mask & ~found), _depth(found & ~mask)
    for click in given:
        y, x = round(click.y), round(click.x)
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
            missed[y, x] = false[y, x] = 0
    positive = float(missed.max()) >= float(false.max())
    depth = missed if positive else false
    if not depth.max() > 0:
        return None
    deep = _deep_places(depth)
    return _click(int(deep[rng.integers(deep.size)]), mask.shape[1], positive)


def click_array(clicks: Sequence[Click]) -> F32:
    """The network's form of clicks: float32 ``[24, 3]``, a row (y, x, +1 defect or -1 normal) each, zeros where unused.

    Raises:
        UsageError: More than `MAX_CLICKS` clicks.
    """
    if len(clicks) > MAX_CLICKS:
        raise UsageError(f"{len(clicks)} clicks were given; the network takes at most {MAX_CLICKS}: undo some")
    rows = np.zeros((MAX_CLICKS, 3), np.float32)
    for row, click in zip(rows, clicks, strict=False):
        row[:] = click.y, click.x, 1 if click.positive else -1
    return rows


def _decaying(rng: np.random.Generator, most: int, decay: float) -> int:
    """0 to ``most`` - 1, each ``decay`` times as likely as the one before."""
    weights = decay ** np.arange(most)
    return int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(), side="right").clip(0, most - 1))


def _depth(region: Bool) -> F32:
    """Distance in pixels to the nearest place outside of ``region``, the outside of the picture included."""
    padded = np.pad(region.view(np.uint8), 1)
    # The 5x5 approximation (2 % off) is several times as fast as the exact transform; places are drawn at random anyway.
    return np.ascontiguousarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _deep_places(depth: F32) -> npt.NDArray[np.intp]:
    return np.flatnonzero(depth > depth.max() / 2)


def _negative_places(mask: Bool, rng: np.random.Generator, count: int) -> list[int]:
    """``count`` different places outside the mask, fewer where there are not so many."""
    if count <= 0:
        return []
    if not mask.any():
        away = ring = np.arange(mask.size)
    else:
        distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5).ravel()
        reach = RING_GAP_PX + max(4.0, 0.5 * float(np.sqrt(np.count_nonzero(mask))))
        away = np.flatnonzero(distance > RING_GAP_PX)
        ring = np.flatnonzero((distance > RING_GAP_PX) & (distance <= reach))
        if not away.size:
            away = ring = np.flatnonzero(distance > 0)
    if not away.size:
        return []
    places: dict[int, None] = {}
    for _ in range(count):
        pool = ring if ring.size and rng.random() < RING_SHARE else away
        places[int(pool[rng.integers(pool.size)])] = None
    return list(places)


def _click(place: int, width: int, positive: bool) -> Click:
    y, x = divmod(place, width)
    return Click(float(y), float(x), positive)
