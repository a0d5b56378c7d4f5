"""Plain folders: normal/, defect/ or defect/KIND/, and masks/ of the same shape, matched by stem; no split.

A mask may also be called STEM_mask. Defects without a mask are labelled per image only.
"""

from pathlib import Path

from adclick_edge.data.images import list_images
from adclick_edge.data.layouts.layout import Layout, Reading, samples_of_kind, subfolders
from adclick_edge.data.sample import DEFECT, GOOD, Sample
from adclick_edge.errors import DataError

__all__ = ["LAYOUT"]

MASK_ENDING = "_mask"


def _matches(folder: Path) -> bool:
    return (folder / "normal").is_dir()


def _read(folder: Path) -> Reading:
    normals = samples_of_kind(folder / "normal", "test", GOOD)
    defects, masks = folder / "defect", folder / "masks"
    samples = _defects(defects, DEFECT, masks, normals) if defects.is_dir() else []
    kinds = subfolders(defects)
    for kind in kinds:
        if kind.name == GOOD:
            raise DataError(f"{kind}: {GOOD!r} is the kind of normal pictures; rename the folder, or move it to normal")
        samples += _defects(kind, kind.name, masks / kind.name, normals)
    for mask_kind in subfolders(masks):
        if mask_kind.name not in {kind.name for kind in kinds}:
            raise DataError(
                f"{mask_kind}: holds the masks of no kind; {defects / mask_kind.name} is not there, make it"
            )
    return Reading(tuple(normals + samples), has_split=False)


def _defects(folder: Path, kind: str, masks: Path, normals: list[Sample]) -> list[Sample]:
    bare = samples_of_kind(folder, "test", kind, masks)
    ending = samples_of_kind(folder, "test", kind, masks, mask_ending=MASK_ENDING)
    for a, b in zip(bare, ending, strict=True):
        if a.mask_path and b.mask_path:
            raise DataError(f"{a.path}: has two masks, {a.mask_path} and {b.mask_path}; keep the right one")
    # A mask that fits nothing is a misnamed one: leaving it out would turn its defect into an unmasked one unseen.
    images = {sample.path.stem for sample in [*bare, *normals]}
    for path in list_images(masks) if masks.is_dir() else []:
        if path.stem not in images and path.stem.removesuffix(MASK_ENDING) not in images:
            raise DataError(f"{path}: there is no image of this name in {folder}; rename the mask after its image")
    return [a if a.mask_path else b for a, b in zip(bare, ending, strict=True)]


LAYOUT = Layout("plain", "normal, defect or defect/KIND, masks or masks/KIND", _matches, _read)
