"""A training run small enough for tests."""

from pathlib import Path
from typing import Any

import msgspec

from adclick_edge.features.bank import BankOptions
from adclick_edge.files import sha256_file
from adclick_edge.models.presets import PRESETS
from adclick_edge.training.run_folder import RunConfig


def config_for(line: Path, backbone_file: Path, **changes: Any) -> RunConfig:
    preset = msgspec.structs.replace(
        PRESETS["edge-s"], input_size=(64, 64), bank=BankOptions(rows=200, search_dims=16), width=8
    )
    config = RunConfig(
        preset=preset,
        data=str(line),
        products=("flange",),
        backbone_sha256=sha256_file(backbone_file),
        backbone_file=str(backbone_file),
        steps=8,
        batch=2,
        learning_rate=3e-3,
        warm_up_steps=2,
        validate_every=3,
        checkpoint_every=2,
        seed=5,
    )
    return msgspec.structs.replace(config, **changes)
