"""Published SimpleClick checkpoints into the image branch of ``PaperClicks``, by name.

A checkpoint is a file the user has: ``.pth``/``.pt`` as published, or its tensors as ``.safetensors`` or ``.npz``.
Published files also hold the training configuration with objects of their own code; those are read as empty stand-ins, so
neither that code nor any other runs.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adclick_edge.errors import WeightsError
from adclick_edge.features.weights import read_tensors
from adclick_edge.files import sha256_file
from adclick_edge.models.paper_clicks import PaperClicks
from adclick_edge.models.vit import resized_positions

__all__ = ["NOT_IN_CHECKPOINT", "SimpleClickInfo", "load_simpleclick"]

NOT_IN_CHECKPOINT = ("residual_branch", "film")
"""Parts of ``PaperClicks`` that SimpleClick does not have: they keep their values. Their zeros (the convolutions
``residual_branch.fuse`` and all of ``film``) make the loaded network SimpleClick until it is trained."""

_NAMES = (
    ("transformer.pos_embed", "backbone.pos_embed"),
    ("transformer.patch_embed.", "backbone.patch_embed."),
    ("transformer.blocks.", "backbone.blocks."),
    ("click_embed.", "patch_embed_coords.proj."),
    ("pyramid.levels.0.", "neck.down_4."),
    ("pyramid.levels.1.", "neck.down_8."),
    ("pyramid.levels.2.", "neck.down_16."),
    ("pyramid.levels.3.", "neck.down_32."),
    ("head.convs.0.", "head.convs.0.conv."),
    ("head.convs.1.", "head.convs.1.conv."),
    ("head.convs.2.", "head.convs.2.conv."),
    ("head.convs.3.", "head.convs.3.conv."),
    ("head.fusion.", "head.fusion_conv.conv."),
    ("head.logit.", "head.conv_seg."),
)
"""Beginnings of names: the image branch's, SimpleClick's."""

_POSITIONS = "backbone.pos_embed"
# In every published file, and used by none of SimpleClick's masks: the encoder's classifier and two upsampling stages.
_UNUSED = ("backbone.cls_token", "backbone.fc_norm.", "backbone.head.", "head.up_conv1.", "head.up_conv2.")
_SHOWN = 5
_THEIR_CODE = "isegm."


@dataclass(frozen=True)
class SimpleClickInfo:
    """What was loaded. ``tensors``: how many fitted. ``positions_from``: (down, across) of the checkpoint's position grid
    when it had to be resized. ``unused``: names in the file that nothing uses. ``untouched``: parts of the network that
    keep their values."""

    path: Path
    sha256: str
    tensors: int
    positions_from: tuple[int, int] | None
    unused: tuple[str, ...]
    untouched: tuple[str, ...] = NOT_IN_CHECKPOINT


class _StandIn:
    """Takes the place of an object of the checkpoint's own code."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


def load_simpleclick(network: PaperClicks, path: str | Path) -> SimpleClickInfo:
    """Fill the image branch of ``network`` from the SimpleClick checkpoint at ``path``.

    Position embeddings of another square grid are resized (bicubic) and the class token's row is dropped.

    Raises WeightsError, leaving ``network`` as it was, when the file cannot be read, or when tensors of the image branch
    are missing, tensors are in the file that it does not have, or one has another shape, is not floating-point or not
    finite: all are listed, with how many fitted.
    """
    path = Path(path)
    tensors = _tensors(path)
    targets = {_their_name(name): tensor for name, tensor in network.image_branch.state_dict(keep_vars=True).items()}
    positions_from = None
    if _POSITIONS in tensors:
        grid = network.image_branch.transformer.grid
        tensors[_POSITIONS], positions_from = _fitted_positions(tensors[_POSITIONS], grid)
    unused = tuple(sorted(name for name in tensors if name.startswith(_UNUSED)))
    _check(path, targets, {name: tensor for name, tensor in tensors.items() if name not in unused})
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    return SimpleClickInfo(path, sha256_file(path), len(targets), positions_from, unused)


def _their_name(name: str) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(f"{name} has no name in SimpleClick")


def _tensors(path: Path) -> dict[str, Tensor]:
    stand_ins: list[object] = []
    if path.suffix.lower() in (".pth", ".pt") and zipfile.is_zipfile(path):
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        except (ValueError, RuntimeError, KeyError, EOFError):
            foreign = []  # not a checkpoint at all: reading it says why
        stand_ins = [(_StandIn, name) for name in foreign if name.startswith(_THEIR_CODE)]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        return read_tensors(path)[0]


def _fitted_positions(positions: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int] | None]:
    """[1, grid cells, dims] without the class token's row; as given where rows are of no square grid."""
    rows = positions.shape[1] if positions.ndim == 3 else 0
    side = int(rows**0.5)  # also of side * side + 1 rows
    if not side or rows - side * side not in (0, 1) or not positions.is_floating_point():
        return positions, None
    positions = positions[:, rows - side * side :]
    if (side, side) == grid:
        return positions, None
    return resized_positions(positions.float(), (side, side), grid), (side, side)


def _check(path: Path, targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    missing = [f"{name} {tuple(target.shape)}" for name, target in targets.items() if name not in tensors]
    unexpected = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in targets]
    present = {name: target for name, target in targets.items() if name in tensors}
    misshapen = {
        name: f"{name} is {tuple(tensors[name].shape)}, expected {tuple(target.shape)}"
        for name, target in present.items()
        if tensors[name].shape != target.shape
    }
    bad = {name: f"{name} {fault}" for name in present if (fault := _fault(tensors[name]))}
    lists = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": list(misshapen.values()),
        "not usable": list(bad.values()),
    }
    if not any(lists.values()):
        return
    fitted = len(present.keys() - misshapen.keys() - bad.keys())
    faults = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in lists.items() if names)
    raise WeightsError(
        f"{path}: {fitted} of {len(targets)} tensors of the image branch fit; {faults}. Give a SimpleClick checkpoint of"
        f" the network's size (ViT-B/16 by default); {' and '.join(NOT_IN_CHECKPOINT)} need not be in it"
    )


def _fault(tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, expected floating point"
    return "" if bool(torch.isfinite(tensor).all()) else "has values that are not finite"


def _first(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
