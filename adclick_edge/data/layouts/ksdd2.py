"""KolektorSDD2: train/ and test/ with NUMBER.png beside NUMBER_GT.png; an all-black GT means normal."""

from pathlib import Path

from adclick_edge.data.image_header import read_header
from adclick_edge.data.images import list_images, read_mask
from adclick_edge.data.layouts.layout import Layout, Reading
from adclick_edge.data.sample import DEFECT, GOOD, Sample, Split
from adclick_edge.errors import DataError, ImageError

__all__ = ["LAYOUT"]

ENDING = "_GT"
SPLITS: tuple[Split, Split] = ("train", "test")


def _matches(folder: Path) -> bool:
    return any(next((folder / split).glob(f"*{ENDING}.png"), None) is not None for split in SPLITS)


def _read(folder: Path) -> Reading:
    samples = []
    for split in SPLITS:
        if not (folder / split).is_dir():
            continue
        for path in list_images(folder / split):
            if path.stem.endswith(ENDING):
                continue
            mask_path = path.with_name(f"{path.stem}{ENDING}.png")
            if not mask_path.is_file():
                raise DataError(f"{path}: has no ground truth; expected {mask_path}. Copy it or remove the image")
            is_defect = _marks_anything(mask_path)
            samples.append(Sample(path, split, DEFECT if is_defect else GOOD, mask_path if is_defect else None))
    return Reading(tuple(samples), has_split=(folder / "train").is_dir())


def _marks_anything(mask_path: Path) -> bool:
    try:
        header = read_header(mask_path.read_bytes(), str(mask_path))
    except OSError as error:
        raise ImageError(f"{mask_path}: cannot be read ({error.strerror}); check the file's rights") from error
    return bool(read_mask(mask_path, (header.height, header.width)).any())


LAYOUT = Layout("ksdd2", "train and test with NUMBER.png and NUMBER_GT.png", _matches, _read)
