"""``line.json``: says that a folder is a sample line, and with which parameters each product in it was rendered."""

from pathlib import Path

import msgspec

from ...errors import DataError
from ...files import write_bytes

__all__ = ["LINE_VERSION", "MARKER", "LineMarker", "Recipe", "read_marker", "write_marker"]

MARKER = "line.json"

LINE_VERSION = 1
"""Raised whenever the same parameters start to give other pictures."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides a product's pictures."""

    train_normals: int
    test_normals: int
    defects_per_kind: int
    size: int
    seed: int
    version: int = LINE_VERSION


class LineMarker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Only products that are complete on disk are listed."""

    sample_line: dict[str, Recipe]


def read_marker(root: Path) -> LineMarker | None:
    """The marker of ``root``; None where ``root`` is absent or an empty folder.

    Raises DataError where ``root`` holds something else, or a marker that cannot be read.
    """
    if not root.exists():
        return None
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder for the sample line; name another folder")
    path = root / MARKER
    if not path.is_file():
        if any(root.iterdir()):
            raise DataError(
                f"{root} holds files but no {MARKER}: it is not a sample line, and is left alone; "
                "name a new or empty folder"
            )
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=LineMarker)
    except msgspec.DecodeError as e:
        raise DataError(f"{path} is not a sample line's marker ({e}); name a new or empty folder") from e


def write_marker(root: Path, marker: LineMarker) -> None:
    write_bytes(root / MARKER, msgspec.json.format(msgspec.json.encode(marker)) + b"\n")
