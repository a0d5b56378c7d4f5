"""Models that answer clicks without a network, and labels made by them."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.commands.label import label_product
from adclick_edge.data.dataset import Product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.labels_folder import Labels, LabelSettings

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SETTINGS = LabelSettings(bundle_version="0123456789ab", clicks=3, per_kind=2, words=True, threshold=0.49)


class DiskModel:
    """A disk around each positive click, minus one around each negative click."""

    name = "disks"

    def __init__(self, radius_px: float = 6.0) -> None:
        self.radius_px = radius_px
        self.prompts: list[str | None] = []
        self.images = 0

    def __enter__(self) -> "DiskModel":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_image(self, frame: U8) -> None:
        self.probability = np.zeros(frame.shape[:2], np.float32)
        self.images += 1

    def prompt(self, words: str | None) -> None:
        self.prompts.append(words)

    def click(self, y: float, x: float, positive: bool) -> F32:
        rows, columns = np.indices(self.probability.shape)
        near = (rows - y) ** 2 + (columns - x) ** 2 <= self.radius_px**2
        self.probability[near] = float(positive)
        return self.probability.copy()


class TruthModel(DiskModel):
    """Knows the ground truth of a product's defects, and answers any click with it."""

    name = "truth"

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.masks = {}
        for sample in product.defects():
            image = read_image(sample.path)
            assert sample.mask_path is not None
            self.masks[image.tobytes()] = read_mask(sample.mask_path, shape=image.shape[:2])

    def set_image(self, frame: U8) -> None:
        super().set_image(frame)
        self.truth = self.masks[frame.tobytes()].astype(np.float32)

    def click(self, y: float, x: float, positive: bool) -> F32:
        return self.truth


def true_labels(product: Product, out: Path, **changes: Any) -> Labels:
    """Labels of ``product`` in ``out`` whose masks are the ground truth."""
    return label_product(TruthModel(product), product, out, msgspec.structs.replace(SETTINGS, **changes))
