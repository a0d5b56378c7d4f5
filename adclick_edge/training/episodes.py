"""What a training step sees: normal pictures, some with a made-up, pasted or real defect.

Each picture of each step depends only on (seed, step, place in the batch), so a run that was killed goes on with exactly
the pictures it would have seen, and several processes share a batch without talking to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.data.cut_paste import cut_and_paste
from adclick_edge.data.synthetic import add_defect
from adclick_edge.errors import TrainingError

__all__ = ["Batch", "EpisodeMix", "Episodes", "ProductPictures"]

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


class EpisodeMix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the kinds of training pictures. ``real`` and ``pasted`` fall to ``synthetic`` where no label exists.

    The paper (method section 3) makes 20 augmented copies of each labelled defect once: cut out, turned by up to 45 degrees,
    scaled by 0.8 to 1.2 and pasted on a normal picture, or a synthetic defect added. ``pasted`` and ``synthetic`` are the same
    two, made anew for every step, without a limit to the copies; the labels may be outlined by hand or by clicks.
    """

    clean: float = 0.2
    synthetic: float = 0.4
    pasted: float = 0.15
    real: float = 0.25
    flip: bool = False
    """Mirror pictures at random: for textures, whose bank holds both hands anyway."""
    gain: float = 0.06
    """Brightness of each picture varies by up to this factor."""


@dataclass(frozen=True)
class ProductPictures:
    """A product's training pictures at input size."""

    name: str
    normals: Sequence[U8]
    """uint8 [H, W, 3] each; picture i is image i of the product's training bank."""
    defects: Sequence[tuple[U8, Bool]]
    """Real labelled defects with their masks."""


@dataclass(frozen=True)
class Batch:
    frames: U8
    """uint8 [B, H, W, 3]"""
    masks: Bool
    """bool [B, H, W]"""
    products: tuple[int, ...]
    exclude_images: tuple[int, ...]
    """Bank image each frame was made from, which it must not match; -1 for real defects."""


class Episodes:
    def __init__(self, products: Sequence[ProductPictures], mix: EpisodeMix, *, seed: int) -> None:
        empty = [p.name for p in products if not p.normals]
        if not products or empty:
            raise TrainingError(f"no normal training picture for {', '.join(empty) or 'any product'}; add normals")
        self.products = products
        self.mix = mix
        self.seed = seed

    def batch(self, step: int, places: range) -> Batch:
        """Pictures number ``places`` of the batch of ``step``."""
        made = [self._one(np.random.default_rng([self.seed, step, place])) for place in places]
        return Batch(
            np.stack([frame for frame, _, _, _ in made]),
            np.stack([mask for _, mask, _, _ in made]),
            tuple(product for _, _, product, _ in made),
            tuple(image for _, _, _, image in made),
        )

    def _one(self, rng: np.random.Generator) -> tuple[U8, Bool, int, int]:
        number = int(rng.integers(len(self.products)))
        product = self.products[number]
        shares = np.array([self.mix.clean, self.mix.synthetic, self.mix.pasted, self.mix.real])
        if not product.defects:
            shares = np.array([shares[0], shares[1:].sum(), 0.0, 0.0])
        way = rng.choice(4, p=shares / shares.sum())
        image = int(rng.integers(len(product.normals)))
        frame = product.normals[image]
        if way == 0:
            mask = np.zeros(frame.shape[:2], bool)
        elif way == 1:
            frame, mask = add_defect(frame, rng)
        else:
            donor, donor_mask = product.defects[int(rng.integers(len(product.defects)))]
            if way == 2:
                frame, mask = cut_and_paste(frame, donor, donor_mask, rng)
            else:
                frame, mask, image = donor, donor_mask, -1
        if self.mix.flip:
            if rng.random() < 0.5:
                frame, mask = frame[:, ::-1], mask[:, ::-1]
            if rng.random() < 0.5:
                frame, mask = frame[::-1], mask[::-1]
        gain = 1.0 + rng.uniform(-self.mix.gain, self.mix.gain)
        bright = np.clip(frame * np.float32(gain) + 0.5, 0, 255).astype(np.uint8)
        return bright, mask, number, image
