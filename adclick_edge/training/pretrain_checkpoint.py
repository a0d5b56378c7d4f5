"""The state of a pretraining run in one file, so that a killed run goes on where it stood. No pickle."""

from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from adclick_edge.errors import TrainingError
from adclick_edge.files import write_bytes

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """Where a run stands: steps done, seconds spent, and the settings it began with."""

    step: int
    elapsed_s: float
    settings: dict[str, str]


def save_checkpoint(path: Path, networks: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Write networks, optimiser and progress to ``path``, whole or not at all.

    There is no random state to keep: every step seeds its own generators with (seed, step).
    """
    tensors = {f"network.{name}": t for name, t in networks.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, save(contiguous, {"progress": msgspec.json.encode(progress).decode()}))


def load_checkpoint(
    path: Path, networks: nn.Module, optimiser: torch.optim.Optimizer, settings: dict[str, str]
) -> Progress:
    """Restore what ``save_checkpoint`` wrote.

    Raises TrainingError when the file cannot be read, does not fit the networks, or began with other ``settings``.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as f:
            progress = msgspec.json.decode((f.metadata() or {}).get("progress", ""), type=Progress)
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise TrainingError(f"{path}: no checkpoint of this program ({error}); give another output folder") from error
    then = progress.settings
    changed = [f"{key}: {then.get(key)} then, {now} now" for key, now in settings.items() if then.get(key) != now]
    if changed:
        raise TrainingError(f"{path}: begun with other settings ({'; '.join(changed)}); give another output folder")
    try:
        networks.load_state_dict(_under("network.", tensors))
    except RuntimeError as error:
        raise TrainingError(f"{path}: does not fit this version's networks; give another output folder") from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimiser.", tensors).items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
