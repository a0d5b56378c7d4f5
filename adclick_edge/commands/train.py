"""``adclick train``"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.data.dataset import list_products
from adclick_edge.errors import DataError, UsageError, WeightsError
from adclick_edge.files import sha256_file
from adclick_edge.models.presets import preset_named

__all__ = ["SegCall", "backbone_weights", "run_seg"]


@dataclass(frozen=True, kw_only=True)
class SegCall:
    """The verb's options, as given."""

    data: Path
    out: Path
    products: tuple[str, ...]
    preset: str
    backbone: str | None
    backbone_weights: Path | None
    steps: int
    batch: int
    learning_rate: float
    real_defects: int
    labels: Path | None
    skip_kinds: tuple[str, ...]
    flip: bool
    seed: int
    validate_every: int
    device: str
    mixed_precision: bool
    split_normals: float | None


def run_seg(call: SegCall) -> None:
    if call.labels is not None and call.real_defects:
        raise UsageError(
            "--labels takes the masks of a label folder, --real-defects those of the data's own ground truth; give one of them"
        )
    with needs_torch("training"):
        from adclick_edge.training.episodes import EpisodeMix
        from adclick_edge.training.run_folder import RunConfig, read_log
        from adclick_edge.training.seg import train_seg
    preset = preset_named(call.preset)
    if call.backbone is not None:
        preset = msgspec.structs.replace(preset, backbone=call.backbone)
    weights = backbone_weights(preset.backbone, call.backbone_weights)
    products = call.products or list_products(call.data)
    if not products:
        raise DataError(f"{call.data}: holds no product in a known layout")
    config = RunConfig(
        preset=preset,
        data=str(call.data),
        products=tuple(products),
        split_normals=call.split_normals,
        backbone_sha256=sha256_file(weights),
        backbone_file=str(weights),
        steps=call.steps,
        batch=call.batch,
        learning_rate=call.learning_rate,
        warm_up_steps=min(50, max(1, call.steps // 10)),
        validate_every=call.validate_every,
        seed=call.seed,
        mix=EpisodeMix(flip=call.flip),
        real_defects_per_kind=call.real_defects,
        labels=None if call.labels is None else str(call.labels),
        skip_kinds=call.skip_kinds,
        mixed_precision=call.mixed_precision,
    )
    train_seg(call.out, config, device_name=call.device)
    scores = [entry["pixel_ap"] for entry in read_log(call.out) if "pixel_ap" in entry]
    print(
        f"{call.out}: {call.steps} steps, best validation pixel AP {max(scores):.3f}; curves in {call.out / 'curves.png'}"
    )
    print(f"next: adclick export {call.out} --out BUNDLE")


def backbone_weights(backbone: str, given: Path | None) -> Path:
    """The file of weights to train on: the one ``given``, else the one that ships. WeightsError where there is none."""
    from adclick_edge.features.weights import shipped_weights

    if given is None and backbone != "edge_backbone":
        raise UsageError(f"the backbone {backbone} ships without weights; give --backbone-weights FILE")
    weights = given or shipped_weights(backbone)
    if not weights.is_file():
        raise WeightsError(f"{weights}: no such file; give --backbone-weights FILE")
    return weights
