"""What a training step of ADClick sees: windows of prepared views, a target, words or none, and first clicks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.errors import TrainingError
from adclick_edge.training.click_sampling import first_clicks
from adclick_edge.training.click_store import ClickStore
from adclick_edge.words import PromptTable
from adclick_edge.words.templates import kind_key

__all__ = ["ClickBatch", "ClickEpisodes", "view_inputs"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

WINDOWS_PX = {256: 0.25, 320: 0.45, 384: 0.2, 512: 0.1}
SINGLE_CLICK_SHARE = 0.6
"""Share of the pictures that begin with one click on the defect, as an operator does, half of them with one beside it; the
others begin with a handful."""
MOST_FIRST_CLICKS = 20


@dataclass(frozen=True)
class ClickBatch:
    inputs: dict[str, npt.NDArray[np.generic]]
    """What ``encode`` takes, each with the pictures along its first axis."""
    masks: Bool
    """bool [N, S, S]"""
    prompts: F32
    """float32 [N, 384], zeros where there are no words."""
    clicks: list[list[Click]]
    rng: np.random.Generator
    """For the corrective clicks."""


class ClickEpisodes:
    """Batch number ``step`` depends on the seed and ``step`` alone."""

    def __init__(
        self,
        worlds: Sequence[ClickStore],
        products: Sequence[ClickStore],
        words: PromptTable,
        *,
        product_share: float,
        words_share: float,
        batch_pixels: int,
        seed: int,
    ) -> None:
        if not worlds and not products:
            raise TrainingError("no pictures to learn clicks from; give worlds or products")
        self.worlds, self.products, self.words = worlds, products, words
        self.product_share = product_share if worlds and products else float(bool(products))
        self.words_share, self.batch_pixels, self.seed = words_share, batch_pixels, seed
        self._known = frozenset(words.known_kinds())
        whole = min(store.arrays["frames"].shape[1] for store in (*worlds, *products))
        fitting = {side: share for side, share in WINDOWS_PX.items() if side <= whole} or {whole: 1.0}
        self._windows = {side: share / sum(fitting.values()) for side, share in fitting.items()}

    def batch(self, step: int) -> ClickBatch:
        rng = np.random.default_rng([self.seed, step])
        side = int(rng.choice(list(self._windows), p=list(self._windows.values())))
        made = [self._one(rng, side) for _ in range(max(2, self.batch_pixels // side**2))]
        inputs = {name: np.stack([one[0][name] for one in made]) for name in made[0][0]}
        masks = np.stack([one[1] for one in made])
        return ClickBatch(inputs, masks, np.stack([one[2] for one in made]), [one[3] for one in made], rng)

    def _one(
        self, rng: np.random.Generator, side: int
    ) -> tuple[dict[str, npt.NDArray[np.generic]], Bool, F32, list[Click]]:
        stores = self.products if rng.random() < self.product_share else self.worlds
        store = stores[int(rng.integers(len(stores)))]
        view = int(rng.integers(len(store)))
        bits, prompt = self._target(store, view, rng)
        mask = store.arrays["masks"][view] & bits > 0
        if not mask.any():  # a kind that lies outside the view
            mask = store.arrays["masks"][view] > 0
            prompt = np.zeros_like(prompt)
        top, left = _window(mask, side, rng)
        cut = mask[top : top + side, left : left + side]
        most = 1 if rng.random() < SINGLE_CLICK_SHARE else MOST_FIRST_CLICKS
        clicks = first_clicks(cut, rng, most=most)
        return view_inputs(store, view, top, left, side), cut, prompt, clicks

    def _target(self, store: ClickStore, view: int, rng: np.random.Generator) -> tuple[int, F32]:
        """Which kinds are meant, as bits of the mask, and the words that say so.

        With words only the kind they name is meant. Without words it is everything, or, where there are two kinds, the one
        the clicks lie on.
        """
        kinds = store.kinds[view]
        one = int(rng.integers(len(kinds)))
        nothing = np.zeros(self.words.dims, np.float32)
        if rng.random() < self.words_share and kind_key(kinds[one]) in self._known:
            examples = self.words.examples(store.name.rsplit("-", 1)[0], kinds[one])
            return 1 << one, examples[int(rng.integers(len(examples)))]
        return (0xFF if rng.random() < 0.5 else 1 << one), nothing


def view_inputs(store: ClickStore, view: int, top: int, left: int, side: int) -> dict[str, npt.NDArray[np.generic]]:
    """What ``encode`` takes of a window of a view; ``top``, ``left`` and ``side`` in pixels, multiples of 16."""

    def cut(name: str, stride: int) -> npt.NDArray[np.generic]:
        y, x, n = top // stride, left // stride, side // stride
        array: npt.NDArray[np.generic] = store.arrays[name][view][..., y : y + n, x : x + n]
        return array

    relative = np.expm1(np.asarray(cut("relative", 8), np.float32))
    return {
        "frames": store.arrays["frames"][view][top : top + side, left : left + side],
        **{f"map{s}": np.asarray(cut(f"map{s}", s), np.float32) for s in (4, 8, 16)},
        "relative": relative[:-1],
        "relative_distance": relative[-1:],
    }


def _window(mask: Bool, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a window that shows some of ``mask``, multiples of 16."""
    ys, xs = np.nonzero(mask)
    one = int(rng.integers(len(ys)))
    starts = []
    for place, length in ((int(ys[one]), mask.shape[0]), (int(xs[one]), mask.shape[1])):
        low = max(0, -(-(place + 1 - side) // 16))
        high = min(place // 16, (length - side) // 16)
        starts.append(16 * int(rng.integers(low, high + 1)) if high >= low else 0)
    return starts[0], starts[1]
