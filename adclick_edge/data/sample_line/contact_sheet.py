"""The sample line at a glance: a row per product, good pictures first, then each defect kind with its outline."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, UsageError
from ...files import write_bytes
from .frame import PRODUCTS
from .lettering import text_line
from .marker import read_marker

__all__ = ["contact_sheet"]

_NORMALS = 2
_CELL, _GAP, _CAPTION, _MARGIN = 208, 8, 28, 16
_PAPER, _INK, _GOOD, _BAD = (250, 250, 248), (40, 42, 46), (40, 110, 60), (255, 40, 150)

Picture = NDArray[np.uint8]


def _read(path: Path, flag: int) -> Picture:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise DataError(f"{path} cannot be read as a picture; render the sample line again")
    return np.asarray(image, np.uint8)


def _write_text(sheet: Picture, text: str, x: int, y: int, height: int, colour: tuple[int, int, int]) -> None:
    cover = text_line(text, height).astype(np.float32)[..., None] / np.float32(255)
    area = sheet[y : y + cover.shape[0], x : x + cover.shape[1]]
    cover = cover[: area.shape[0], : area.shape[1]]
    area[:] = np.round(area + cover * (np.asarray(colour, np.float32) - area)).astype(np.uint8)


def _cell(image: Picture, mask: Picture | None) -> Picture:
    """A picture scaled to a cell, with a thin outline a little outside the mask."""
    cell = cv2.resize(image, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
    if mask is None:
        return np.asarray(cell, np.uint8)
    small = (cv2.resize(mask, (_CELL, _CELL), interpolation=cv2.INTER_AREA) > 32).astype(np.uint8)
    around = cv2.dilate(small, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    outlines = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(cell, outlines, -1, _BAD, 1, cv2.LINE_AA)
    return np.asarray(cell, np.uint8)


def _best_example(product: Path, kind: str) -> tuple[Picture, Picture] | None:
    """The defective picture whose mask covers most; None where the kind was not rendered."""
    masks = [_read(path, cv2.IMREAD_GRAYSCALE) for path in sorted((product / "ground_truth" / kind).glob("*.png"))[:8]]
    if not masks:
        return None
    index = int(np.argmax([int((mask > 0).sum()) for mask in masks]))
    return _read(product / "test" / kind / f"{index:03d}.png", cv2.IMREAD_COLOR)[..., ::-1], masks[index]


def contact_sheet(root: Path, path: Path) -> None:
    """Lay a rendered sample line out as one picture, written to ``path`` (``.png`` or ``.jpg``).

    Raises DataError where ``root`` is no rendered sample line, UsageError for another ending of ``path``.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{path}: a contact sheet is a .png or a .jpg; change the ending")
    marker = read_marker(root)
    if marker is None or not marker.sample_line:
        raise DataError(f"{root} holds no rendered product; run render_line on it first")
    rows: list[tuple[str, list[tuple[str, Picture]]]] = []
    for name in (name for name in PRODUCTS if name in marker.sample_line):
        goods = sorted((root / name / "test" / "good").glob("*.png")) or sorted((root / name / "train").glob("*/*.png"))
        cells = [("good", _cell(_read(good, cv2.IMREAD_COLOR)[..., ::-1], None)) for good in goods[:_NORMALS]]
        for kind in PRODUCTS[name]:
            example = _best_example(root / name, kind)
            if example is not None:
                cells.append((kind, _cell(np.ascontiguousarray(example[0]), example[1])))
        rows.append((name, cells))
    row_height = 32 + _CAPTION + _CELL + 6
    columns = max(1, max(len(cells) for _, cells in rows))
    height = 2 * _MARGIN + row_height * len(rows)
    sheet = np.full((height, 2 * _MARGIN + columns * (_CELL + _GAP) - _GAP, 3), _PAPER, np.uint8)
    for row, (name, cells) in enumerate(rows):
        top = _MARGIN + row * row_height
        _write_text(sheet, name, _MARGIN, top, 26, _INK)
        for column, (kind, cell) in enumerate(cells):
            left = _MARGIN + column * (_CELL + _GAP)
            sheet[top + 32 : top + 32 + _CELL, left : left + _CELL] = cell
            colour = _GOOD if kind == "good" else _INK
            _write_text(sheet, kind.replace("_", " "), left + 2, top + 36 + _CELL, 19, colour)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88] if path.suffix.lower() != ".png" else [cv2.IMWRITE_PNG_COMPRESSION, 5]
    encoded = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(sheet[..., ::-1]), quality)[1]
    write_bytes(path, encoded.tobytes())
