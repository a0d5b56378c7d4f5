"""MVTec AD: PRODUCT/train/good, PRODUCT/test/KIND, PRODUCT/ground_truth/KIND/NAME_mask.png.

A product without any ground_truth folder is read as labelled per image only. Without train/good there is no split.
"""

from pathlib import Path

from adclick_edge.data.layouts.layout import Layout, Reading, samples_of_kind, subfolders
from adclick_edge.data.sample import GOOD

__all__ = ["LAYOUT"]


def _matches(folder: Path) -> bool:
    return any((folder / split / GOOD).is_dir() for split in ("train", "test"))


def _read(folder: Path) -> Reading:
    train, truth = folder / "train" / GOOD, folder / "ground_truth"
    has_split = train.is_dir()
    samples = samples_of_kind(train, "train", GOOD) if has_split else []
    for kind in subfolders(folder / "test"):
        if kind.name == GOOD:
            samples += samples_of_kind(kind, "test", GOOD)
        elif truth.is_dir():
            samples += samples_of_kind(kind, "test", kind.name, truth / kind.name, mask_ending="_mask", required=True)
        else:
            samples += samples_of_kind(kind, "test", kind.name)
    return Reading(tuple(samples), has_split)


LAYOUT = Layout("mvtec", "train/good, test/KIND, ground_truth/KIND/NAME_mask.png", _matches, _read)
