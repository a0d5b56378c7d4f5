"""From a training run, or from backbone weights alone, to a bundle, through the parity gate."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch

from adclick_edge.bundle import read_bundle, write_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.data.resize import fit
from adclick_edge.data.synthetic import add_defect
from adclick_edge.errors import DataError, ExportError
from adclick_edge.export.parity import ParityReport, check_parity
from adclick_edge.export.to_onnx import export_graphs, tensor_spec
from adclick_edge.features.bank import Bank
from adclick_edge.features.extractor import Extractor, build_extractor
from adclick_edge.features.weights import load_weights
from adclick_edge.files import sha256_file
from adclick_edge.models.build import build_segmenter
from adclick_edge.models.distance import DistanceSegmenter
from adclick_edge.models.presets import Preset
from adclick_edge.runtime.setup import SetUp, write_product
from adclick_edge.training.checkpoint import load_model
from adclick_edge.training.run_folder import RunConfig, read_config

__all__ = ["export_backbone", "export_run"]

U8 = npt.NDArray[np.uint8]

PARITY_FRAMES = 8


def export_run(run: Path, out: Path, *, product: str | None = None, weights_license: str) -> ParityReport:
    """Export a training run to the bundle ``out``.

    A run of one product (or ``product`` of several) becomes a product bundle with the run's bank and first thresholds
    from its held-out normals; a run of several products becomes a weights bundle, for `adclick bank --weights`.

    Raises ParityError when the graphs do not compute what was trained, ExportError when pictures of the run are gone.
    """
    config = read_config(run)
    if product is not None and product not in config.products:
        raise ExportError(f"{run} was not trained on {product!r}; it has {', '.join(config.products)}")
    chosen = product or (config.products[0] if len(config.products) == 1 else None)
    if not (run / "best.safetensors").is_file():
        raise ExportError(f"{run} has no best.safetensors: it was not validated yet; let `adclick train` finish")
    name = chosen or config.products[0]
    backbone_file = run / f"backbone{Path(config.backbone_file).suffix}"
    bank_file, splits_file = run / "banks" / f"{name}.safetensors", run / "splits.json"
    for file in (backbone_file, bank_file, splits_file):
        if not file.is_file():
            raise ExportError(f"{file} is missing: the run is incomplete; copy it again, or train anew")
    extractor = build_extractor(config.preset)
    load_weights(extractor.backbone, backbone_file)
    segmenter = build_segmenter(config.preset, extractor)
    state = load_model(run / "best.safetensors", segmenter)
    segmenter.eval()
    bank = Bank.from_bytes(bank_file.read_bytes(), name=str(bank_file))
    hashes = _split_hashes(splits_file, config.products)
    in_bank, held_out = _pictures_of(config, name, bank.image_hashes, hashes[name]["validation_normals"])
    graphs = export_graphs(extractor, segmenter, config.preset.input_size)
    frames = _parity_frames(held_out or in_bank, config.preset.input_size)
    report = check_parity(extractor, segmenter, bank, graphs, frames)
    training = {
        "products": list(config.products),
        "seed": config.seed,
        "steps": config.steps,
        "best_step": state["step"],
        "backbone": config.preset.backbone,
        "backbone_sha256": config.backbone_sha256,
        "image_hashes": sorted({h for parts in hashes.values() for part in parts.values() for h in part}),
    }
    fields = _weights_fields(config.preset, graphs, extractor.dims, "adclick_seg", training, report, weights_license)
    fields["metrics"] = {"validation_pixel_ap": state["best"]}
    if chosen is None:
        write_bundle(out, fields, graphs)
        return report
    with (
        tempfile.TemporaryDirectory(prefix=".adclick-export.") as scratch,
        read_bundle(write_bundle(Path(scratch) / "weights", fields, graphs)) as weights,
    ):
        setup = SetUp(chosen, config.preset.input_size, bank.options)
        write_product(weights, bank, in_bank, out, setup, held_out=held_out)
    return report


def export_backbone(preset: Preset, backbone_file: Path, out: Path, *, weights_license: str) -> ParityReport:
    """Export a backbone with the distance segmenter, which needs no training, to a weights bundle.

    Parity is checked on procedural pictures against a bank of some of them.
    """
    from adclick_edge.data.procedural.textures import random_texture

    extractor = build_extractor(preset)
    info = load_weights(extractor.backbone, backbone_file)
    segmenter = DistanceSegmenter()
    graphs = export_graphs(extractor, segmenter, preset.input_size)
    rng = np.random.default_rng(0)
    height, width = preset.input_size
    world = (random_texture(rng, height, width) * 255).astype(np.uint8)
    frames = [np.roll(world, 37 * i, axis=1) for i in range(4)]
    bank = _small_bank(extractor, frames)
    damaged = [add_defect(frame, rng)[0] for frame in frames]
    report = check_parity(extractor, segmenter, bank, graphs, [*frames[:1], *damaged])
    training = {"backbone": preset.backbone, "backbone_sha256": info.sha256}
    fields = _weights_fields(preset, graphs, extractor.dims, "distance", training, report, weights_license)
    write_bundle(out, fields, graphs)
    return report


def _small_bank(extractor: Extractor, frames: Sequence[U8]) -> Bank:
    from adclick_edge.features.bank import BankOptions
    from adclick_edge.features.bank_builder import BankBuilder

    builder = BankBuilder(BankOptions(rows=500))
    for number, frame in enumerate(frames):
        with torch.no_grad():
            embedding = extractor(torch.from_numpy(frame[None]))["embedding"][0].numpy()
        builder.add(embedding, image_hash=str(number))
    return builder.build()


def _split_hashes(path: Path, products: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    try:
        hashes = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, list[str]]])
        _ = [hashes[name]["validation_normals"] for name in products]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise ExportError(
            f"{path}: not the splits of this run ({error!r}); copy the run again, or train anew"
        ) from error
    return hashes


def _pictures_of(
    config: RunConfig, product: str, bank_hashes: Sequence[str], held_out_hashes: Sequence[str]
) -> tuple[list[Path], list[Path]]:
    """Files of the run's bank, in its order, and of its held-out normals, found again by content."""
    try:
        normals = open_product(Path(config.data), product).normals()
    except DataError as error:
        raise ExportError(
            f"the pictures that the run was trained on are gone ({error}); put them back, or export on the machine that "
            "has them"
        ) from error
    by_hash = {sha256_file(s.path): s.path for s in normals}
    missing = [h for h in bank_hashes if h not in by_hash]
    if missing:
        raise ExportError(
            f"{config.data}: {len(missing)} of the {len(bank_hashes)} normal pictures of {product!r} that the run was "
            "trained on are gone or changed; put them back, or export on the machine that has them"
        )
    return [by_hash[h] for h in bank_hashes], [by_hash[h] for h in held_out_hashes if h in by_hash]


def _parity_frames(pictures: Sequence[Path], input_size: tuple[int, int]) -> list[U8]:
    """Normal pictures, half of them with a synthetic defect: both sides of a threshold."""
    rng = np.random.default_rng(0)
    frames = [fit(read_image(path), input_size) for path in pictures[:PARITY_FRAMES]]
    return [add_defect(frame, rng)[0] if number % 2 else frame for number, frame in enumerate(frames)]


def _weights_fields(
    preset: Preset,
    graphs: Mapping[str, bytes],
    dims: int,
    segmenter: str,
    training: Mapping[str, Any],
    report: ParityReport,
    weights_license: str,
) -> dict[str, object]:
    features = onnx.load_from_string(graphs["features.onnx"]).graph
    segment = onnx.load_from_string(graphs["segment.onnx"]).graph
    return {
        "kind": "weights",
        "product": None,
        "parent": None,
        "preset": preset.name,
        "segmenter": segmenter,
        "features_outputs": [tensor_spec(v) for v in features.output],
        "segment_inputs": [tensor_spec(v) for v in segment.input],
        "segment_outputs": [tensor_spec(v) for v in segment.output],
        "input_size": preset.input_size,
        "embedding_dims": dims,
        "search_dims": None,
        "training": dict(training),
        "metrics": {},
        "parity": report.as_json(),
        "weights_license": weights_license,
    }
