"""Pictures a verb was pointed at."""

import os
from pathlib import Path

from adclick_edge.data.images import list_images
from adclick_edge.errors import DataError

__all__ = ["find_pictures"]


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
