"""Product bundles with random weights and a bank of random textures: latency does not depend on the values.

Random weights make random features, so the share of the variance that the bank's search keeps is set to all: it searches
as many dims as the preset allows, the slowest a trained product can be.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from adclick_edge.bundle import write_bundle
from adclick_edge.data.procedural.textures import random_texture
from adclick_edge.export.to_onnx import export_graphs
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.extractor import Extractor, build_extractor
from adclick_edge.models.build import build_segmenter
from adclick_edge.models.distance import DistanceSegmenter
from adclick_edge.models.presets import Preset
from adclick_edge.runtime.calibration import calibrate

__all__ = ["SegmenterName", "bank_of_size", "random_frame", "random_product"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
SegmenterName = Literal["edge", "distance"]


def random_frame(height: int, width: int, seed: int = 0) -> U8:
    """A texture, uint8 [height, width, 3]."""
    return (random_texture(np.random.default_rng(seed), height, width) * 255).astype(np.uint8)


def random_product(
    folder: Path, preset: Preset, segmenter_name: SegmenterName, frames: Sequence[U8], *, seed: int = 0
) -> Path:
    """Write a product bundle of ``preset`` to ``folder``; its bank is made of ``frames`` at the input size.

    The thresholds are so low that every frame is ng: judging it includes outlining its regions, the slower case.
    """
    torch.manual_seed(seed)
    extractor = build_extractor(preset)
    segmenter = build_segmenter(preset, extractor) if segmenter_name == "edge" else DistanceSegmenter()
    graphs = export_graphs(extractor, segmenter, preset.input_size)
    bank = _bank(extractor, msgspec.structs.replace(preset.bank, variance=1.0), frames)
    spec = {"dtype": "float32", "shape": [-1, -1, -1, -1]}
    return write_bundle(
        folder,
        {
            "kind": "product",
            "product": "random",
            "parent": None,
            "preset": preset.name,
            "segmenter": "distance" if segmenter_name == "distance" else "adclick_seg",
            "features_outputs": [{"name": name, **spec} for name in extractor.outputs],
            "segment_inputs": [{"name": name, **spec} for name in segmenter.inputs],
            "segment_outputs": [{"name": "map", "dtype": "float32", "shape": [-1, -1, -1]}],
            "input_size": preset.input_size,
            "embedding_dims": extractor.dims,
            "search_dims": bank.projection.shape[1],
            "training": {},
            "metrics": {},
            "parity": {},
            "weights_license": "Apache-2.0",
        },
        {**graphs, "bank.safetensors": bank.to_bytes()},
        calibration=calibrate([-1e6 - i for i in range(20)], false_alarms=0.1, source="held_out", author="benchmark"),
    )


def bank_of_size(bank: Bank, rows: int, search_dims: int, *, window_radius: int = -1, seed: int = 0) -> Bank:
    """A bank of other sizes in the feature space of ``bank``: its rows drawn again with noise, spread over the grid."""
    rng = np.random.default_rng(seed)
    drawn = bank.rows[rng.integers(0, len(bank.rows), rows)]
    drawn = (drawn + rng.normal(size=drawn.shape) * 0.3 * bank.rows.std(axis=0)).astype(np.float32)
    projection = np.linalg.qr(rng.normal(size=(bank.dims, search_dims)))[0].astype(np.float32)
    height, width = bank.grid
    cells = np.stack([rng.integers(0, height, rows), rng.integers(0, width, rows)], axis=1).astype(np.int32)
    return replace(
        bank,
        rows=drawn,
        coordinates=((drawn - bank.centre) @ projection).astype(np.float32),
        projection=projection,
        row_image=np.zeros(rows, np.int32),
        row_cell=cells,
        options=BankOptions(rows=rows, search_dims=search_dims, variance=1.0, window_radius=window_radius),
        image_hashes=("random",),
    )


def _bank(extractor: Extractor, options: BankOptions, frames: Sequence[U8]) -> Bank:
    builder = BankBuilder(options)
    for number, frame in enumerate(frames):
        with torch.no_grad():
            embedding: F32 = extractor(torch.from_numpy(frame[None]))["embedding"][0].numpy()
        builder.add(embedding, image_hash=str(number))
    return builder.build()
