"""BTAD: PRODUCT/train/ok, PRODUCT/test/ok, PRODUCT/test/ko, PRODUCT/ground_truth/ko with the same stems."""

from pathlib import Path

from adclick_edge.data.layouts.layout import Layout, Reading, samples_of_kind
from adclick_edge.data.sample import DEFECT, GOOD

__all__ = ["LAYOUT"]


def _matches(folder: Path) -> bool:
    return any((folder / sub).is_dir() for sub in ("train/ok", "test/ok", "test/ko"))


def _read(folder: Path) -> Reading:
    has_split = (folder / "train" / "ok").is_dir()
    samples = samples_of_kind(folder / "train" / "ok", "train", GOOD) if has_split else []
    if (folder / "test" / "ok").is_dir():
        samples += samples_of_kind(folder / "test" / "ok", "test", GOOD)
    if (folder / "test" / "ko").is_dir():
        masks = folder / "ground_truth" / "ko"
        samples += samples_of_kind(folder / "test" / "ko", "test", DEFECT, masks, required=masks.is_dir())
    return Reading(tuple(samples), has_split)


LAYOUT = Layout("btad", "train/ok, test/ok, test/ko, ground_truth/ko", _matches, _read)
