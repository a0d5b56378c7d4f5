"""Pictures of defects that ADClick learns from: procedural worlds, and products on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.cut_paste import cut_and_paste
from adclick_edge.data.dataset import Product, Sample, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.procedural.defects import DEFECTS, spoil
from adclick_edge.data.procedural.scenes import World
from adclick_edge.data.same_defect import same_defect_groups
from adclick_edge.data.sample_line import PRODUCTS
from adclick_edge.data.sample_line.marker import MARKER
from adclick_edge.data.sample_line.overlap import OVERLAPS, render_overlap
from adclick_edge.data.synthetic import add_defect
from adclick_edge.files import sha256_file

__all__ = ["ClickPictures", "DefectPicture", "DiskPictures", "WorldPictures"]

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

WORLD_NORMALS = 6
WORLD_SIDES_PX = (512, 640)
OVERLAP_TRIES = 6
MOST_NORMALS = 60
SHOTS_PER_DEFECT = 2


@dataclass(frozen=True)
class DefectPicture:
    """One picture with one or two kinds of defect."""

    frame: U8
    masks: tuple[tuple[str, Bool], ...]
    """Kind and mask bool [H, W] of each; the masks of two kinds may overlap."""
    normal: int
    """Which normal it was made from (its bank must not match that one), -1 for a real defect."""


class ClickPictures(Protocol):
    """A product's normals and defects, for the robot to click on."""

    @property
    def name(self) -> str: ...

    def normals(self) -> Sequence[U8]:
        """Pictures uint8 [H, W, 3] for the bank."""
        ...

    def defects(self, normals: Sequence[U8]) -> Iterator[DefectPicture]: ...

    def identity(self) -> str:
        """Changes when any picture would."""
        ...


@dataclass(frozen=True)
class WorldPictures:
    """A procedural product: ``count`` defects on pictures of world ``seed``, half of them of two kinds."""

    seed: int
    count: int

    @property
    def name(self) -> str:
        return f"world_{self.seed}"

    def identity(self) -> str:
        return f"{self.name} x {self.count}, {WORLD_NORMALS} normals, filled"

    def _side(self) -> int:
        return WORLD_SIDES_PX[self.seed % len(WORLD_SIDES_PX)]

    def normals(self) -> list[U8]:
        world, side = World(self.seed), self._side()
        pictures = [world.picture(np.random.default_rng([self.seed, i]), side, side).rgb for i in range(WORLD_NORMALS)]
        return [_to_u8(p) for p in pictures]

    def defects(self, normals: Sequence[U8]) -> Iterator[DefectPicture]:
        world, side = World(self.seed), self._side()
        names = sorted(DEFECTS)
        for place in range(self.count):
            rng = np.random.default_rng([self.seed, 1_000_003, place])
            rgb = world.picture(rng, side, side).rgb
            first, second = (str(k) for k in rng.choice(names, 2, replace=False))
            rgb, mask = spoil(rgb, rng, (first,))
            if not mask.any():
                continue
            masks = [(first, _as_labelled(mask))]
            if place % 2:
                # Two kinds that touch are what words are for; a few tries, then whatever came.
                for _ in range(OVERLAP_TRIES):
                    twice, other = spoil(rgb, rng, (second,))
                    if other.any() and (other & mask).any():
                        break
                if other.any():
                    rgb, masks = twice, [*masks, (second, _as_labelled(other))]
            yield DefectPicture(_to_u8(rgb), tuple(masks), -1)


@dataclass(frozen=True)
class DiskPictures:
    """A product on disk: all its labelled defects, pasted copies of them, and ``synthetic`` made-up ones.

    A product of the sample line also gives ``synthetic`` pictures in which two kinds of its defects overlap.
    """

    data: Path
    product: str
    synthetic: int
    skip_kinds: tuple[str, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        return self.product

    def identity(self) -> str:
        """By content: corrected labels are other labels."""
        samples = self._product().samples
        files = sorted({path for s in samples for path in (s.path, s.mask_path) if path is not None})
        content = [f"{path.relative_to(self.data)} {sha256_file(path)}" for path in files]
        return f"{self.product} {content} {self.synthetic} {self.skip_kinds} {self.seed}"

    def _product(self) -> Product:
        return open_product(self.data, self.product)

    def normals(self) -> list[U8]:
        samples = self._product().normals("train")
        step = -(-len(samples) // MOST_NORMALS)
        return [read_image(s.path) for s in samples[::step]]

    def defects(self, normals: Sequence[U8]) -> Iterator[DefectPicture]:
        product = self._product()
        real = list(self._real(product))
        yield from real
        rng = np.random.default_rng([self.seed, 7])
        for place in range(self.synthetic):
            image = int(rng.integers(len(normals)))
            kind, (frame, mask) = "anomaly", add_defect(normals[image], rng)
            if real and place % 2:
                donor = real[int(rng.integers(len(real)))]
                kind, donor_mask = donor.masks[0]
                frame, mask = cut_and_paste(normals[image], donor.frame, donor_mask, rng)
            if mask.any():
                yield DefectPicture(frame, ((kind, mask),), image)
        if self.product in PRODUCTS and (self.data / MARKER).is_file():
            side = normals[0].shape[0]
            pairs = [pair for pair in OVERLAPS[self.product] if not set(pair) & set(self.skip_kinds)]
            for place in range(self.synthetic if pairs else 0):
                kinds = pairs[place % len(pairs)]
                frame, masks = render_overlap(self.product, kinds, seed=self.seed + 1000, index=place, size=side)
                yield DefectPicture(frame, tuple(masks.items()), -1)

    def _real(self, product: Product) -> Iterator[DefectPicture]:
        """Labelled defects, at most two shots of the same one."""
        for kind in product.kinds():
            if kind in self.skip_kinds:
                continue
            shots = [_read(sample) for sample in product.defects("test", (kind,)) if sample.mask_path is not None]
            seen: dict[int, int] = {}
            for (frame, mask), group in zip(shots, same_defect_groups(shots), strict=True):
                seen[group] = seen.get(group, 0) + 1
                if seen[group] <= SHOTS_PER_DEFECT and mask.any():
                    yield DefectPicture(frame, ((kind, mask),), -1)


def _read(sample: Sample) -> tuple[U8, Bool]:
    frame = read_image(sample.path)
    assert sample.mask_path is not None
    return frame, read_mask(sample.mask_path, shape=frame.shape[:2])


def _as_labelled(mask: Bool) -> Bool:
    """The mask a person would draw: the rim of a dent is a dent, specks that nearly touch are one smear."""
    closed = cv2.morphologyEx(
        mask.view(np.uint8), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    )
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(closed), outlines, -1, 1, cv2.FILLED).astype(np.bool_)


def _to_u8(rgb: npt.NDArray[np.float32]) -> U8:
    return np.asarray(rgb * 255 + 0.5, np.uint8)
