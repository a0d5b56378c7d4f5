"""A training run on disk.

::

    RUN/
      run.json             everything that decides the result: preset, data, seeds, options
      splits.json          which picture is for what, by SHA-256
      backbone.safetensors the frozen backbone
      banks/PRODUCT.safetensors
      last.safetensors     the newest checkpoint, to go on from
      best.safetensors     the checkpoint the validation pictures chose
      log.jsonl            a line per logged step and per validation
      curves.png
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from adclick_edge.errors import TrainingError
from adclick_edge.files import write_text
from adclick_edge.models.presets import Preset
from adclick_edge.training.episodes import EpisodeMix

__all__ = ["RunConfig", "append_log", "read_config", "read_log", "truncate_log", "write_config"]


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: str = "seg"
    preset: Preset
    data: str
    """The data folder, as given."""
    products: tuple[str, ...]
    split_normals: float | None = None
    """Share of the normals to train on, for data without a split."""
    backbone_sha256: str
    backbone_file: str
    steps: int = 1500
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up_steps: int = 50
    validate_every: int = 100
    checkpoint_every: int = 50
    seed: int = 0
    mix: EpisodeMix = EpisodeMix()
    real_defects_per_kind: int = 0
    labels: str | None = None
    """A label folder (`data.labels_folder`) whose masks take the place of the data's own, as given."""
    skip_kinds: tuple[str, ...] = ()
    validation_share: float = 0.15
    mixed_precision: bool = False


def write_config(run: Path, config: RunConfig) -> None:
    write_text(run / "run.json", msgspec.json.format(msgspec.json.encode(config)).decode() + "\n")


def read_config(run: Path) -> RunConfig:
    """TrainingError if ``run`` is not a run of this schema."""
    path = run / "run.json"
    if not path.is_file():
        raise TrainingError(f"{run}: not a training run (no run.json); give the folder `adclick train` wrote")
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: {error}; the run was made by another version: train anew") from error


def append_log(run: Path, entry: dict[str, Any]) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """Entries of the log; a last line cut short by a kill is dropped."""
    path = run / "log.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def truncate_log(run: Path, step: int) -> None:
    """Drop what was logged at ``step`` or later: those steps will be taken again."""
    kept = [entry for entry in read_log(run) if entry["step"] < step]
    write_text(run / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))
