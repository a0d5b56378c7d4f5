"""What a layout is, and the steps that several layouts share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adclick_edge.data.images import list_images, natural_key
from adclick_edge.data.sample import Sample, Split
from adclick_edge.errors import DataError

__all__ = ["Layout", "Reading", "samples_of_kind", "subfolders"]


@dataclass(frozen=True)
class Reading:
    """What one product's folder holds. Without ``has_split`` the samples' ``split`` says nothing."""

    samples: tuple[Sample, ...]
    has_split: bool


@dataclass(frozen=True)
class Layout:
    """``matches`` says from folder names alone whether a product's folder follows the layout; ``read`` lists it."""

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Reading]


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in ``folder``, in natural order, hidden ones left out; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural_key)


def samples_of_kind(
    folder: Path,
    split: Split,
    kind: str,
    masks: Path | None = None,
    *,
    mask_ending: str = "",
    required: bool = False,
) -> list[Sample]:
    """One sample per image in ``folder``, with the mask of the same stem plus ``mask_ending`` from ``masks``.

    With ``required`` a missing mask is a DataError; two masks for one image always are.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(masks) if masks is not None and masks.is_dir() else []:
        by_stem.setdefault(path.stem, []).append(path)
    samples = []
    for path in list_images(folder):
        found = by_stem.get(path.stem + mask_ending, [])
        if len(found) > 1:
            raise DataError(f"{path}: has two masks, {found[0]} and {found[1]}; keep the right one")
        if required and masks is not None and not found:
            expected = masks / f"{path.stem}{mask_ending}.png"
            raise DataError(f"{path}: has no mask; expected {expected}. Draw it, or move the image out of {folder}")
        samples.append(Sample(path, split, kind, found[0] if found else None))
    return samples
