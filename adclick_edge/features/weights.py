"""Backbone weights from files on this disk: .safetensors, .npz, .pth and .pt. Nothing is ever downloaded.

No format is read by an unrestricted unpickler. A file is checked whole before the first parameter changes.
"""

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from adclick_edge.errors import WeightsError
from adclick_edge.features.backbones.fold import fold_batch_norms, fold_batch_norms_in_place
from adclick_edge.files import sha256_file

__all__ = ["WeightsInfo", "load_weights", "read_tensors", "shipped_weights"]

_SHOWN = 5
_FORMATS = {".safetensors": "safetensors", ".npz": "npz", ".pth": "torch", ".pt": "torch"}
_READ_ERRORS = (
    SafetensorError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    KeyError,
)
_SHIPPED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class WeightsInfo:
    """What was loaded. ``tensors``: how many of the file's tensors were used. ``metadata``: safetensors' own."""

    path: Path
    sha256: str
    format: str
    tensors: int
    metadata: dict[str, str] = field(default_factory=dict)


def shipped_weights(name: str) -> Path:
    """The weights of backbone ``name`` that come with this package. Raises WeightsError when there are none."""
    path = _SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in _SHIPPED.glob("*.safetensors"))) or "none"
        raise WeightsError(
            f"no weights for {name!r} come with this package (those that do: {have}); give a weights file"
        )
    return path


def load_weights(module: nn.Module, path: str | Path) -> WeightsInfo:
    """Fill ``module`` from the file at ``path``; half-precision tensors are widened to the module's type.

    Tensors that the module does not have are ignored, ``num_batches_tracked`` is never needed. When ``module`` has
    batch norms and the file has none (it was saved folded), the module's are folded first.

    Raises WeightsError, leaving ``module`` as it was, when the file cannot be read or its format is not known, when
    tensors are missing, or when one has another shape, is not floating-point, is not finite, or is a negative variance.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    expected = _expected(module)
    norm_statistics = [name for name in expected if name.endswith(".running_mean")]
    if norm_statistics and not any(name in tensors for name in norm_statistics):
        shapes = _folded_shapes(module)
        _check(path, shapes, tensors)
        fold_batch_norms_in_place(module)
        expected = _expected(module)
    else:
        _check(path, {name: t.shape for name, t in expected.items()}, tensors)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])
    return WeightsInfo(path, sha256_file(path), _FORMATS[path.suffix.lower()], len(expected), metadata)


def _expected(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if not name.endswith(".num_batches_tracked")}


def _folded_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in _expected(fold_batch_norms(module)).items()}


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise WeightsError(f"{path}: weights end in {', '.join(_FORMATS)}, not {path.suffix!r}; convert the file")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path (nothing is downloaded)")
    try:
        if kind == "safetensors":
            with safe_open(path, framework="pt", device="cpu") as f:
                return {name: f.get_tensor(name) for name in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
        if kind == "npz":
            with open(path, "rb") as f, np.load(f, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, {}
        return _tensors_of(torch.load(path, map_location="cpu", weights_only=True), path), {}
    except _READ_ERRORS as error:
        raise _unreadable(path, kind, error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> WeightsError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"{path}: cannot be read as {kind} weights ({first_line}); only plain tensors are accepted: save a state_dict,"
        " or convert the file to .safetensors"
    )


def _tensors_of(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, not a state_dict; save module.state_dict()")
    return {str(name): t for name, t in loaded.items() if isinstance(t, torch.Tensor)}


def _check(path: Path, shapes: dict[str, torch.Size], tensors: dict[str, torch.Tensor]) -> None:
    missing = [f"{name} {tuple(shape)}" for name, shape in shapes.items() if name not in tensors]
    if missing:
        held = ", ".join(list(tensors)[:_SHOWN]) or "nothing"
        raise WeightsError(
            f"{path}: {len(missing)} of {len(shapes)} tensors are missing: {_first(missing)}; the file holds {held}"
            f"{', ...' if len(tensors) > _SHOWN else ''}; is it for another network?"
        )
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if tensors[name].shape != shape
    ]
    if misshapen:
        raise WeightsError(f"{path}: {len(misshapen)} tensors have another shape: {_first(misshapen)}")
    bad = [f"{name} {fault}" for name in shapes if (fault := _fault(name, tensors[name]))]
    if bad:
        raise WeightsError(f"{path}: {len(bad)} tensors cannot be used: {_first(bad)}; get the file anew")


def _fault(name: str, tensor: torch.Tensor) -> str:
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, expected floating point"
    if not bool(torch.isfinite(tensor).all()):
        return "has values that are not finite"
    if name.endswith(".running_var") and bool((tensor < 0).any()):
        return "is a variance below zero"
    return ""


def _first(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
