"""What the frozen backbone and the bank make of training pictures, computed once and kept on disk.

ADClick learns on top of features that never change, and meets each picture many times, each time with other clicks. A
product is a folder of arrays with one entry per view::

    frames.npy    uint8   [n, H, W, 3]       masks.npy     uint8   [n, H, W], bit 0 and 1: first and second kind
    map4.npy ...  float16 [n, C, h, w]       relative.npy  float16 [n, D + 1, H/8, W/8], log(1 + x), distance last
    about.json    kinds of each view, identity of pictures and backbone
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from adclick_edge.console import progress_console
from adclick_edge.data.resize import fit, fit_mask
from adclick_edge.errors import TrainingError
from adclick_edge.features.bank import BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.extractor import Extractor
from adclick_edge.features.residual_torch import TorchBank, nearest_residual
from adclick_edge.features.view import crop_cells
from adclick_edge.files import atomic_folder
from adclick_edge.models.distance import relative_distance
from adclick_edge.training.click_pictures import ClickPictures, DefectPicture

__all__ = ["BANK_SIDES_PX", "ClickStore", "prepare_product"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]

BANK_SIDES_PX = (512, 256)
"""Residuals are taken at either input size: a bundle's bank may have been made at one or the other."""
WHOLE_FRAME_SHARE = 0.55
LEAST_VIEW = 0.2
"""Smallest side of a zoomed view, as a share of the frame's."""
_ARRAYS = ("frames", "masks", "map4", "map8", "map16", "relative")


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: str
    kinds: list[list[str]]
    """Kinds of defect of each view, in the order of the masks' bits."""


@dataclass(frozen=True)
class ClickStore:
    """One prepared product; its arrays are read from disk as they are needed."""

    name: str
    kinds: list[list[str]]
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, folder: Path) -> "ClickStore":
        about = msgspec.json.decode((folder / "about.json").read_bytes(), type=_About)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(folder.name, about.kinds, arrays)

    def __len__(self) -> int:
        return len(self.kinds)


def prepare_product(
    pictures: ClickPictures,
    extractor: Extractor,
    options: BankOptions,
    folder: Path,
    *,
    size: tuple[int, int],
    backbone_sha256: str,
    seed: int,
    views: int = 1,
) -> ClickStore:
    """Prepare ``pictures`` into a folder of that name under ``folder``, or take what an earlier call left there.

    ``views`` of each picture are kept, the whole frame or a part of it around a defect. Bank and residuals are taken at one
    of `BANK_SIDES_PX` per picture. TrainingError when the folder holds another product's arrays.
    """
    text = f"{pictures.identity()} {backbone_sha256} {size} {msgspec.json.encode(options).decode()} {seed} {views} 1"
    identity = hashlib.sha256(text.encode()).hexdigest()
    place = folder / f"{pictures.name}-{identity[:12]}"
    if place.is_dir():
        store = ClickStore.open(place)
        if msgspec.json.decode((place / "about.json").read_bytes(), type=_About).identity != identity:
            raise TrainingError(f"{place} holds other pictures; remove it")
        return store
    normals = pictures.normals()
    banks = {side: _bank(normals, extractor, options, side) for side in BANK_SIDES_PX}
    rows: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _ARRAYS}
    kinds: list[list[str]] = []
    for number, picture in enumerate(pictures.defects(normals)):
        rng = np.random.default_rng([seed, number])
        side = BANK_SIDES_PX[int(rng.random() < 0.35)]
        relative = _relative(picture, extractor, banks[side], side)
        for _ in range(views):
            for name, value in _view(picture, relative, extractor, size, rng).items():
                rows[name].append(value)
            kinds.append([kind for kind, _ in picture.masks])
    if not kinds:
        raise TrainingError(f"{pictures.name}: no picture with a labelled defect to click on")
    with atomic_folder(place) as new:
        for name, values in rows.items():
            np.save(new / f"{name}.npy", np.stack(values), allow_pickle=False)
        (new / "about.json").write_bytes(msgspec.json.encode(_About(identity, kinds)))
    return ClickStore.open(place)


def _bank(normals: Sequence[U8], extractor: Extractor, options: BankOptions, side: int) -> TorchBank:
    builder = BankBuilder(options, seed=0)
    for number, frame in enumerate(normals):
        features = _features(extractor, fit(frame, (side, side)))
        builder.add(features["embedding"][0].numpy(), image_hash=str(number))
    return TorchBank.of(builder.build(), torch.device("cpu"))


@torch.no_grad()
def _features(extractor: Extractor, frame: U8) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = extractor(torch.from_numpy(np.ascontiguousarray(frame))[None])
    return found


def _relative(picture: DefectPicture, extractor: Extractor, bank: TorchBank, side: int) -> F32:
    """Relative residual and, last, relative distance of the whole frame: float32 [D + 1, h, w]."""
    embedding = _features(extractor, fit(picture.frame, (side, side)))["embedding"]
    _, _, residual = nearest_residual(embedding, bank, exclude_images=[picture.normal])
    parts = [residual / bank.residual_scale.reshape(1, -1, 1, 1), relative_distance(residual, bank.residual_scale)]
    relative: F32 = torch.cat(parts, dim=1)[0].numpy()
    return relative


def _view(
    picture: DefectPicture, relative: F32, extractor: Extractor, size: tuple[int, int], rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    height, width = picture.frame.shape[:2]
    top, left, bottom, right = _box(picture, rng)
    frame = fit(np.ascontiguousarray(picture.frame[top:bottom, left:right]), size)
    features = _features(extractor, frame)
    masks = np.zeros(size, np.uint8)
    for bit, (_, mask) in enumerate(picture.masks):
        share = fit_mask(mask[top:bottom, left:right], size)
        masks |= (share >= max(min(0.5, float(share.max())), 1e-3)).astype(np.uint8) << np.uint8(bit)
    box = (top / height, left / width, bottom / height, right / width)
    cells = (size[0] // 8, size[1] // 8)
    return {
        "frames": frame,
        "masks": masks,
        **{name: features[name][0].numpy().astype(np.float16) for name in ("map4", "map8", "map16")},
        "relative": np.log1p(crop_cells(relative, box, cells)).astype(np.float16),
    }


def _box(picture: DefectPicture, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The whole frame, or a part of its shape around one of the defects: top, left, bottom, right in pixels."""
    height, width = picture.frame.shape[:2]
    if rng.random() < WHOLE_FRAME_SHARE:
        return 0, 0, height, width
    _, mask = picture.masks[int(rng.integers(len(picture.masks)))]
    ys, xs = np.nonzero(mask)
    need = max((np.ptp(ys) + 1) / height, (np.ptp(xs) + 1) / width)
    least = max(LEAST_VIEW, 1.15 * float(need))
    if least >= 0.95:
        return 0, 0, height, width
    side = float(np.exp(rng.uniform(np.log(least), 0)))
    rows, columns = round(side * height), round(side * width)
    top = _start(int(ys.min()), int(ys.max()) + 1, rows, height, rng)
    left = _start(int(xs.min()), int(xs.max()) + 1, columns, width, rng)
    return top, left, top + rows, left + columns


def _start(first: int, end: int, length: int, room: int, rng: np.random.Generator) -> int:
    """Where a stretch of ``length`` in 0..room begins so that it holds first..end."""
    low, high = max(0, end - length), min(first, room - length)
    return int(rng.integers(low, high + 1)) if high >= low else max(0, min(low, room - length))


def prepare_all(
    sources: Sequence[ClickPictures], extractor: Extractor, options: BankOptions, folder: Path, **rest: Any
) -> Iterator[ClickStore]:
    """`prepare_product` of each, with a bar."""
    for pictures in track(sources, "preparing pictures", console=progress_console()):
        yield prepare_product(pictures, extractor, options, folder, **rest)
