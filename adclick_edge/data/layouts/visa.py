"""VisA: PRODUCT/Data/Images/Normal and Anomaly, PRODUCT/Data/Masks/Anomaly with the same stems.

The split stands in ROOT/split_csv/1cls.csv, columns object, split, label, image, mask. Where that file exists, images
it does not list belong to no part and are left out; where it does not, there is no split.
"""

import csv
from pathlib import Path

from adclick_edge.data.layouts.layout import Layout, Reading, samples_of_kind
from adclick_edge.data.sample import DEFECT, GOOD, Sample, Split
from adclick_edge.errors import DataError

__all__ = ["LAYOUT"]

SPLIT_FILE = Path("split_csv") / "1cls.csv"


def _matches(folder: Path) -> bool:
    return (folder / "Data" / "Images" / "Normal").is_dir()


def _read(folder: Path) -> Reading:
    images, masks = folder / "Data" / "Images", folder / "Data" / "Masks" / "Anomaly"
    samples = samples_of_kind(images / "Normal", "test", GOOD)
    if (images / "Anomaly").is_dir():
        samples += samples_of_kind(images / "Anomaly", "test", DEFECT, masks, required=masks.is_dir())
    split_file = folder.parent / SPLIT_FILE
    if not split_file.is_file():
        return Reading(tuple(samples), has_split=False)
    return Reading(_apply_split(samples, folder, split_file), has_split=True)


def _apply_split(samples: list[Sample], folder: Path, split_file: Path) -> tuple[Sample, ...]:
    splits = _read_splits(split_file, folder)
    on_disk = {sample.path: sample for sample in samples}
    missing = [path for path in splits if path not in on_disk]
    if missing:
        raise DataError(f"{split_file}: lists {missing[0]}, which is not there; copy the image or drop its row")
    return tuple(
        Sample(sample.path, splits[sample.path], sample.kind, sample.mask_path)
        for sample in samples
        if sample.path in splits
    )


def _read_splits(split_file: Path, folder: Path) -> dict[Path, Split]:
    """The part of each image of the product in ``folder``, by its path."""
    splits: dict[Path, Split] = {}
    try:
        with open(split_file, newline="", encoding="utf-8-sig") as f:
            rows = csv.DictReader(f)
            if not {"object", "split", "image"} <= set(rows.fieldnames or ()):
                raise DataError(f"{split_file}: lacks the columns object, split, image; take the file VisA comes with")
            for row in rows:
                if row["object"] != folder.name:
                    continue
                if row["split"] == "train":
                    splits[folder.parent / row["image"]] = "train"
                elif row["split"] == "test":
                    splits[folder.parent / row["image"]] = "test"
                else:
                    raise DataError(
                        f"{split_file} line {rows.line_num}: the split is {row['split']!r}; write train or test"
                    )
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{split_file}: cannot be read as CSV ({error}); take the file VisA comes with") from error
    if not splits:
        raise DataError(f"{split_file}: has no row for the object {folder.name!r}; add its rows or move the file away")
    return splits


LAYOUT = Layout("visa", "Data/Images/Normal, Data/Images/Anomaly, Data/Masks/Anomaly", _matches, _read)
