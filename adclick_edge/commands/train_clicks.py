"""``adclick train clicks``"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.commands.train import backbone_weights
from adclick_edge.data.dataset import list_products, open_product
from adclick_edge.errors import DataError, TrainingError, UsageError
from adclick_edge.files import sha256_file
from adclick_edge.models.presets import preset_named

__all__ = ["ClicksCall", "run_clicks"]


@dataclass(frozen=True, kw_only=True)
class ClicksCall:
    """The verb's options, as given."""

    out: Path
    data: tuple[Path, ...]
    leave_out: tuple[str, ...]
    skip_kinds: tuple[str, ...]
    worlds: int
    start_from: Path | None
    without: tuple[str, ...]
    samples: Path | None
    preset: str
    backbone: str | None
    backbone_weights: Path | None
    steps: int
    learning_rate: float
    seed: int
    validate_every: int
    device: str
    mixed_precision: bool


def run_clicks(call: ClicksCall) -> None:
    with needs_torch("training"):
        from adclick_edge.training.click_run import ClickConfig
        from adclick_edge.training.clicks import train_clicks
        from adclick_edge.training.run_folder import read_log
    preset = preset_named(call.preset)
    if call.backbone is not None:
        preset = msgspec.structs.replace(preset, backbone=call.backbone)
    weights = backbone_weights(preset.backbone, call.backbone_weights)
    if unknown := set(call.without) - {"residual", "words", "previous"}:
        raise UsageError(f"there is no part {min(unknown)!r} to leave out; take residual, words or previous")
    if not call.worlds and not call.data:
        raise UsageError("nothing to learn from: give --worlds or --data")
    start_sha256 = None
    if call.start_from is not None:
        file = call.start_from / "best.safetensors"
        if not file.is_file():
            raise TrainingError(f"{file}: no such file; give the folder of a finished run to --start-from")
        start_sha256 = sha256_file(file)
    config = ClickConfig(
        preset=preset,
        worlds=call.worlds,
        products=tuple(_products(call.data, call.leave_out, call.skip_kinds)),
        skip_kinds=call.skip_kinds,
        start_from=None if call.start_from is None else str(call.start_from),
        start_sha256=start_sha256,
        backbone_sha256=sha256_file(weights),
        backbone_file=str(weights),
        steps=call.steps,
        learning_rate=call.learning_rate,
        warm_up_steps=min(100, max(1, call.steps // 10)),
        validate_every=call.validate_every,
        seed=call.seed,
        without=call.without,  # type: ignore[arg-type]  # checked above
        mixed_precision=call.mixed_precision,
    )
    train_clicks(call.out, config, samples=call.samples or call.out / "samples", device_name=call.device)
    scores = [entry["iou_5"] for entry in read_log(call.out) if "iou_5" in entry]
    print(
        f"{call.out}: {call.steps} steps, best mean IoU after 5 clicks on held-out worlds {max(scores):.3f}; curves in "
        f"{call.out / 'curves.png'}"
    )
    print(f"next: adclick export {call.out} --out BUNDLE")


def _products(folders: Sequence[Path], leave_out: Sequence[str], skip_kinds: Sequence[str]) -> list[tuple[str, str]]:
    found = [(str(folder), name) for folder in folders for name in list_products(folder)]
    if folders and not found:
        raise DataError(f"{folders[0]}: holds no product in a known layout")
    if unknown := sorted(set(leave_out) - {name for _, name in found}):
        raise UsageError(f"no product {unknown[0]!r} to leave out; there are {', '.join(name for _, name in found)}")
    kinds = {kind for folder, name in found for kind in open_product(Path(folder), name).kinds()}
    if unknown := sorted(set(skip_kinds) - kinds):
        raise UsageError(
            f"no product has defects of the kind {unknown[0]!r} to skip; there are {', '.join(sorted(kinds))}"
        )
    return [(folder, name) for folder, name in found if name not in leave_out]
