"""Pictures a verb was pointed at."""

import os
from collections.abc import Collection
from pathlib import Path

from adclick_edge.data.images import list_images
from adclick_edge.errors import DataError

__all__ = ["find_pictures", "other_files"]


def find_pictures(path: Path) -> list[Path]:
    """``path`` itself if it is a file, else all images in it and its subfolders, in natural order by folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check the path")
    found = [image for folder, _, _ in sorted(os.walk(path)) for image in list_images(Path(folder))]
    if not found:
        raise DataError(f"{path}: holds no image (PNG, JPEG, BMP or TIFF); check the path")
    return found


def other_files(path: Path, pictures: Collection[Path]) -> list[str]:
    """What lies in the folder ``path`` and its subfolders but is none of ``pictures``: names relative to it, sorted.

    Hidden files are left out; a link to a folder, which is not followed, is listed. Empty where ``path`` is a file.
    """
    if not path.is_dir():
        return []
    known = set(pictures)
    found = []
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        others = (here / name for name in (*names, *links) if not name.startswith("."))
        found += [other.relative_to(path).as_posix() for other in others if other not in known]
    return sorted(found)
