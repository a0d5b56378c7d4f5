"""A training run of ADClick on disk: ``run.json``, ``backbone.*``, checkpoints, ``log.jsonl``, ``curves.png``."""

from pathlib import Path
from typing import Literal

import msgspec

from adclick_edge.errors import TrainingError
from adclick_edge.features.bank import BankOptions
from adclick_edge.files import write_text
from adclick_edge.models.presets import Preset

__all__ = ["ClickConfig", "Part", "read_click_config", "write_click_config"]

Part = Literal["residual", "words", "previous"]


class ClickConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides the result."""

    kind: Literal["clicks"] = "clicks"
    preset: Preset
    size: tuple[int, int] = (512, 512)
    """Height and width of the view the network sees."""
    bank: BankOptions = BankOptions(rows=1000, search_dims=64)
    """The training products' banks: many of them, so smaller ones than a line uses."""
    worlds: int
    """Procedural products, numbered from 10000; `validation_worlds` from 30000."""
    validation_worlds: int = 8
    pictures_per_world: int = 16
    products: tuple[tuple[str, str], ...] = ()
    """Data folder and name of products to learn from too, all their labelled defects. Never the one the result is tested
    on."""
    skip_kinds: tuple[str, ...] = ()
    synthetic_per_product: int = 60
    product_share: float = 0.5
    """Share of the pictures that come from products rather than worlds, where there are any."""
    start_from: str | None = None
    """A run whose best weights this one starts from."""
    start_sha256: str | None = None
    backbone_sha256: str
    backbone_file: str
    steps: int = 3000
    batch_pixels: int = 16 * 320 * 320
    """Pixels of a batch: small windows come in larger batches."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up_steps: int = 100
    validate_every: int = 300
    checkpoint_every: int = 50
    seed: int = 0
    words_share: float = 0.5
    """Share of the pictures that are given words; the rest must do without."""
    residual_dropout: float = 0.1
    without: tuple[Part, ...] = ()
    """Parts of the network left out, to see what each brings."""
    mixed_precision: bool = False


def write_click_config(run: Path, config: ClickConfig) -> None:
    write_text(run / "run.json", msgspec.json.format(msgspec.json.encode(config)).decode() + "\n")


def read_click_config(run: Path) -> ClickConfig:
    """TrainingError if ``run`` is no run of ADClick of this schema."""
    path = run / "run.json"
    if not path.is_file():
        raise TrainingError(f"{run}: not a training run (no run.json); give the folder `adclick train clicks` wrote")
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClickConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path}: {error}; it is a run of another kind or of another version: train anew"
        ) from error
