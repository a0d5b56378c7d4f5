"""Label folders: masks of real defects that came from clicks, and how each was made.

::

    OUT/
      PRODUCT/
        labels.json          `Labels`: the settings, and a record of each picture
        KIND/NAME_mask.png   0 or 255, of the size of its picture
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from adclick_edge.data.clicks import MAX_CLICKS, Click
from adclick_edge.errors import DataError
from adclick_edge.files import write_bytes

__all__ = [
    "LABELS",
    "LabelSettings",
    "Labels",
    "OtherShot",
    "PictureLabel",
    "mask_name",
    "read_labels",
    "write_labels",
    "write_mask",
]

LABELS = "labels.json"

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, Meta(min_length=1)]
Positive = Annotated[int, Meta(ge=1)]


class PictureLabel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One labelled picture."""

    file: Text
    """Its file, below the product's own folder, with forward slashes."""
    sha256: Sha256
    kind: Text
    defect: Annotated[int, Meta(ge=0)]
    """Which defect of its kind it shows: pictures with one number are shots of one defect."""
    height: Positive
    width: Positive
    mask: str | None
    """The mask's file, beside labels.json; None where the clicks gave an empty one."""
    clicks: tuple[Click, ...]
    prompt: str | None
    """The words that were given along with the clicks."""
    iou: Annotated[float, Meta(ge=0, le=1)]
    """Of the mask, with the ground truth that the clicks were made by."""
    seconds: Annotated[float, Meta(ge=0)]
    """What the network took: the picture and all clicks."""

    def __post_init__(self) -> None:
        if len(self.clicks) > MAX_CLICKS:
            raise ValueError(f"{self.file} has {len(self.clicks)} clicks, more than {MAX_CLICKS}")
        for name in (self.file, self.mask):
            # A list from elsewhere must not lead out of its folders.
            if name is not None and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
                raise ValueError(f"{name!r} leads out of its folder")


class OtherShot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another picture of a labelled defect: neither for training nor for testing."""

    file: Text
    sha256: Sha256
    kind: Text


class LabelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the labels, besides the pictures."""

    bundle_version: Text
    clicks: Annotated[int, Meta(ge=1, le=MAX_CLICKS)]
    per_kind: Positive
    skip_kinds: tuple[str, ...] = ()
    words: bool
    mirrored: bool = False
    threshold: Annotated[float, Meta(gt=0, lt=1)]


class Labels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of labels.json."""

    schema_version: Literal[1] = 1
    product: Text
    settings: LabelSettings
    chosen: Annotated[int, Meta(ge=0)]
    """How many pictures were chosen; fewer in ``pictures`` say that labelling was interrupted."""
    seen_in_training: Annotated[int, Meta(ge=0)] = 0
    """How many of the chosen pictures the bundle's networks were trained on: labels of those flatter it."""
    pictures: tuple[PictureLabel, ...]
    siblings: tuple[OtherShot, ...]


def read_labels(folder: Path, product: str) -> Labels:
    """The labels of ``product`` in the label folder ``folder``, finished or not.

    DataError when there are none, or they cannot be read or are another product's.
    """
    path = folder / product / LABELS
    if not path.is_file():
        hint = "give the folder above it" if (folder / LABELS).is_file() else "write them with `adclick label`"
        raise DataError(f"{folder}: holds no labels of {product!r} (no {product}/{LABELS}); {hint}")
    try:
        labels = msgspec.json.decode(path.read_bytes(), type=Labels)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: {error}; the labels were altered or cut short: label again to another --out"
        ) from error
    if labels.product != product:
        raise DataError(f"{path}: has labels of {labels.product!r}, not of {product!r}; the folder was renamed")
    return labels


def write_labels(folder: Path, labels: Labels) -> None:
    """Replace labels.json of ``labels.product`` in the label folder ``folder``, whole or not at all."""
    write_bytes(folder / labels.product / LABELS, msgspec.json.format(msgspec.json.encode(labels)) + b"\n")


def mask_name(kind: str, picture: str, sha256: str, taken: frozenset[str]) -> str:
    """Where the mask of the file called ``picture`` goes, beside labels.json: a name that is not in ``taken``."""
    stem = PurePosixPath(picture).stem
    name = f"{kind}/{stem}_mask.png"
    return name if name not in taken else f"{kind}/{stem}_{sha256[:12]}_mask.png"


def write_mask(path: Path, mask: npt.NDArray[np.bool_]) -> None:
    """``mask`` (bool [H, W]) as a PNG of 0 and 255."""
    write_bytes(path, cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())
