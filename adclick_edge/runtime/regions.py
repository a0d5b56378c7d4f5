"""Where to look: regions of interest and ignored regions of a product, as polygons.

Coordinates are fractions of the frame, (x, y) from the top left corner, so that they survive a change of resolution.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from adclick_edge.bundle import Bundle
from adclick_edge.bundle.manifest import canonical_json
from adclick_edge.errors import UsageError

__all__ = [
    "Polygon",
    "Regions",
    "check_covered",
    "load_regions",
    "masked_score",
    "parse_regions",
    "read_regions",
    "regions_sha256",
    "store_regions",
    "valid_mask",
]

Polygon = tuple[tuple[float, float], ...]

_MAX_FILE_BYTES = 1 << 20
_MAX_POINTS = 10_000
_KEYS = ("roi", "ignore")
_WINDOWS = 4
_REACH_CELLS = 4
_LEAST_ROWS_A_WINDOW = 8


class Regions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inspected is what lies in any polygon of ``roi`` (none: the whole frame) and in none of ``ignore``.

    A polygon that crosses itself covers what an odd number of its windings encloses. Raises UsageError for a polygon
    of fewer than three points and for a coordinate that is not in 0..1.
    """

    roi: tuple[Polygon, ...] = ()
    ignore: tuple[Polygon, ...] = ()

    def __post_init__(self) -> None:
        for key, polygons in _checked({"roi": self.roi, "ignore": self.ignore}, "regions").items():
            msgspec.structs.force_setattr(self, key, polygons)


def valid_mask(regions: Regions, height: int, width: int) -> NDArray[np.bool_]:
    """Bool [height, width]: which cells of a map over the whole frame count. A cell counts if its centre does."""
    mask = _union(regions.roi, height, width) if regions.roi else np.ones((height, width), np.bool_)
    if regions.ignore:
        mask &= ~_union(regions.ignore, height, width)
    return mask


def masked_score(anomaly_map: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> float:
    """The score of a map f32 [h,w]: its maximum where ``valid``, bool [h,w], is set. A NaN there makes it NaN.

    Raises UsageError for shapes that differ and for a mask without a cell.
    """
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise UsageError(f"the map has shape {anomaly_map.shape}; expected [h,w]")
    if valid is None:
        return float(anomaly_map.max())
    if valid.shape != anomaly_map.shape:
        raise UsageError(f"the map has shape {anomaly_map.shape}, its valid mask {valid.shape}; make the mask for it")
    if not valid.any():
        raise UsageError("the regions leave no cell of the map to inspect; set other regions")
    return float(anomaly_map[valid].max())


def parse_regions(body: object, where: str) -> Regions:
    """Regions from decoded JSON. Raises UsageError that names ``where``, the key and the value."""
    if not isinstance(body, Mapping):
        raise UsageError(f"{where}: expected an object with the keys 'roi' and 'ignore', got {_short(body)}")
    if unknown := sorted(str(key) for key in body if key not in _KEYS):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}: {_short(body.get(unknown[0]))}; known: 'roi', 'ignore'")
    return Regions(**_checked(body, where))


def read_regions(path: Path) -> Regions:
    """Regions from a JSON file ``{"roi": [[[x, y], ...], ...], "ignore": [...]}``. Raises UsageError."""
    try:
        with open(path, "rb") as f:
            data = f.read(_MAX_FILE_BYTES + 1)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}") from e
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; is this the file of the regions?")
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(f"{path}: not JSON: {e}") from e
    return parse_regions(body, str(path))


def load_regions(bundle: Bundle) -> Regions:
    """The regions a bundle carries now; the whole frame where it has none."""
    body = bundle.regions
    if body is None:
        return Regions()
    try:
        return parse_regions(body, f"{bundle.location}: regions.json")
    except UsageError as e:
        raise UsageError(
            f"{e}; set the regions again with `adclick regions --set`, then run `adclick calibrate`"
        ) from e


def regions_sha256(regions: Regions) -> str:
    """SHA-256 of the canonical JSON of ``regions``, hex; scores under regions of another hash are other scores."""
    return hashlib.sha256(canonical_json(msgspec.to_builtins(regions))).hexdigest()


def check_covered(
    regions: Regions, present: Regions | None, row_cell: NDArray[np.integer[Any]], grid: tuple[int, int]
) -> None:
    """Refuse regions that take in parts of the frame the bank has nothing of: normal parts would be ng there.

    ``present`` are the regions set now (None: unknown), ``row_cell`` int [M, 2] the cells (y, x) of the bank's rows in
    ``grid`` (h, w), of whole frames, not of tiles. Raises UsageError.
    """
    # A heuristic, since a bank does not say which regions it was built with, and a coreset leaves out cells that look
    # alike: the grid is cut in 4 x 4 windows, and one that becomes wholly inspected counts as missing only if no row
    # lies in it or within 4 cells of it while the windows that have rows have 8 or more on average.
    new = valid_mask(regions, *grid)
    old = np.zeros(grid, np.bool_) if present is None else valid_mask(present, *grid)
    rows = np.zeros(grid, np.int64)
    np.add.at(rows, (row_cell[:, 0], row_cell[:, 1]), 1)
    filled, missing = [], 0
    for y0, y1 in _spans(grid[0]):
        for x0, x1 in _spans(grid[1]):
            window = np.s_[y0:y1, x0:x1]
            around = np.s_[max(0, y0 - _REACH_CELLS) : y1 + _REACH_CELLS, max(0, x0 - _REACH_CELLS) : x1 + _REACH_CELLS]
            if count := int(rows[window].sum()):
                filled.append(count)
            elif new[window].all() and not old[window].all() and not rows[around].any():
                missing += 1
    if missing and np.mean(filled) >= _LEAST_ROWS_A_WINDOW:
        raise UsageError(
            f"the regions take in parts of the frame that the bank holds nothing of ({missing} of {_WINDOWS**2} windows "
            "of the frame): good parts would be ng there; run `adclick bank` again with these regions as --regions"
        )


def store_regions(bundle: Bundle, regions: Regions, map_shape: tuple[int, int]) -> None:
    """Put ``regions`` into a bundle whose maps have ``map_shape`` (h4, w4), or (H, W) where that is not fixed.

    Raises UsageError where no cell would be left: better now than as an error on every frame.
    """
    if not valid_mask(regions, *map_shape).any():
        raise UsageError(
            f"{bundle.location}: regions.json: the regions leave no cell of a {map_shape[0]} x {map_shape[1]} map to "
            "inspect: roi is too small or ignore covers it; draw them again"
        )
    bundle.set_regions(regions)


def _spans(cells: int) -> list[tuple[int, int]]:
    edges = [round(i * cells / _WINDOWS) for i in range(_WINDOWS + 1)]
    return [(low, high) for low, high in pairwise(edges) if low < high]


def _checked(body: Mapping[str, Any], where: str) -> dict[str, tuple[Polygon, ...]]:
    polygons: dict[str, tuple[Polygon, ...]] = {}
    points = 0
    for key in _KEYS:
        value = body.get(key, ())
        if not _is_list(value):
            raise UsageError(f"{where}: {key} is {_short(value)}; expected a list of polygons")
        polygons[key] = tuple(_polygon(polygon, f"{where}: {key}[{i}]") for i, polygon in enumerate(value))
        points += sum(len(polygon) for polygon in polygons[key])
    if points > _MAX_POINTS:
        raise UsageError(f"{where}: {points} points in all, more than {_MAX_POINTS}; simplify the polygons")
    return polygons


def _polygon(value: object, where: str) -> Polygon:
    if not isinstance(value, (list, tuple)) or len(value) < 3:
        raise UsageError(f"{where} is {_short(value)}; expected a list of at least 3 points [x, y]")
    return tuple(_point(point, f"{where}[{i}]") for i, point in enumerate(value))


def _point(value: object, where: str) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UsageError(f"{where} is {_short(value)}; expected [x, y]")
    for axis, number in zip("xy", value, strict=True):
        # A bool is an int to Python, and NaN compares as in range with neither end.
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
            raise UsageError(f"{where}: {axis} is {_short(number)}; expected a fraction of the frame in 0..1")
    return float(value[0]), float(value[1])


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _union(polygons: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        mask |= _fill(polygon, height, width)
    return mask


def _fill(polygon: Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """Which cell centres lie in the polygon, by the even-odd rule; cv2.fillPoly would also count touched borders.

    Two polygons that share an edge never share a centre and leave none out between them: an edge covers rows from
    its upper end on, up to but without its lower end, and columns from the crossing on.
    """
    flips = np.zeros((height, width + 1), np.bool_)  # the last column takes crossings right of every centre
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        # Centres (i + 0.5) / height with y0 <= centre < y1.
        rows = np.arange(max(0, math.ceil(y0 * height - 0.5)), min(height, math.ceil(y1 * height - 0.5)))
        crossing = x0 + ((rows + 0.5) / height - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(crossing * width - 0.5), 0, width).astype(np.intp)
        flips[rows, columns] ^= True
    return np.logical_xor.accumulate(flips[:, :width], axis=1)
