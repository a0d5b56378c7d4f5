"""Checkpoints without pickle: tensors in safetensors, everything else in its JSON metadata, replaced by one rename."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from adclick_edge.errors import TrainingError
from adclick_edge.files import write_bytes

__all__ = ["load_checkpoint", "load_model", "save_checkpoint"]


def save_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write model, optimiser and ``state`` (JSON values) to ``path``; a reader sees the old file or the new one."""
    tensors: dict[str, Tensor] = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    scalars: dict[str, dict[str, float]] = {}
    for parameter, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{parameter}.{key}"] = value.detach().cpu().contiguous()
            else:
                scalars.setdefault(str(parameter), {})[key] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimiser.state_dict()["param_groups"]]
    about = {"state": json.dumps(state), "scalars": json.dumps(scalars), "groups": json.dumps(groups)}
    write_bytes(path, safetensors.torch.save(tensors, metadata=about))


def load_model(path: Path, model: nn.Module) -> dict[str, Any]:
    """Load the model's tensors from ``path`` and return its state. TrainingError if they do not fit."""
    tensors, about = _read(path)
    mine = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(mine)
    except RuntimeError as error:
        raise TrainingError(f"{path}: the checkpoint is of another network ({error}); start a new run") from error
    state: dict[str, Any] = json.loads(about["state"])
    return state


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Load model and optimiser from ``path`` and return the state saved with them."""
    state = load_model(path, model)
    tensors, about = _read(path)
    scalars = json.loads(about["scalars"])
    slots: dict[int, dict[str, Any]] = {int(p): dict(values) for p, values in scalars.items()}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, parameter, name = key.split(".", 2)
            slots.setdefault(int(parameter), {})[name] = value
    now = optimiser.state_dict()
    groups = [{**mine, **saved} for mine, saved in zip(now["param_groups"], json.loads(about["groups"]), strict=True)]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    return state


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
            if missing := [key for key in ("state", "scalars", "groups") if key not in about]:
                raise TrainingError(f"{path}: no checkpoint of a run ({missing[0]} is missing); start the run anew")
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({error}); start the run anew") from error
