"""A small bundle to test with, and ways to spoil it."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from adclick_edge.bundle import GoldenFrame, golden_files, write_bundle

RNG = np.random.default_rng(0)


GOLDEN = [
    GoldenFrame("good_000", RNG.integers(0, 256, (8, 6, 3), np.uint8), RNG.random((2, 2), np.float32), 0.75),
    GoldenFrame("crack_001", RNG.integers(0, 256, (5, 9, 3), np.uint8), RNG.random((2, 3), np.float32), -1.5),
]


FIELDS = {
    "kind": "product",
    "product": "nut",
    "parent": None,
    "created_utc": "2025-01-31T12:00:00Z",
    "preset": "small",
    "segmenter": "adclick_seg",
    "features_outputs": [{"name": "embedding", "dtype": "float32", "shape": [-1, 512, 32, 32]}],
    "segment_inputs": [{"name": "residual", "dtype": "float32", "shape": [-1, 512, 32, 32]}],
    "segment_outputs": [{"name": "map", "dtype": "float32", "shape": [-1, 64, 64]}],
    "input_size": [256, 256],
    "embedding_dims": 512,
    "search_dims": 200,
    "training": {"fingerprint": "ab", "products": ["bolt"], "seeds": [1]},
    "metrics": {"pixel_ap": 0.8},
    "parity": {"max_map_difference": 1e-4, "changed_verdicts": 0, "frames": 8},
    "weights_license": "Apache-2.0",
}


FILES = {
    "features.onnx": b"features" * 50,
    "residual.onnx": b"residual" * 9,
    "segment.onnx": b"segment" * 7,
    "bank.safetensors": bytes(range(256)),
    "prompts.json": b"{}",
    **golden_files(GOLDEN),
}


SETTINGS = {"calibration": {"lower": 0.1, "upper": 0.5}, "regions": {"roi": [], "ignore": []}}


def make(path: Path, **changes: object) -> Path:
    return write_bundle(path, {**FIELDS, **changes}, FILES, **SETTINGS)


def repack(path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def entries_of(path: Path) -> list[tuple[zipfile.ZipInfo | str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def reseal(folder: Path, **changes: object) -> None:
    """Write changed manifest fields with a checksum that fits, as a careless or hostile tool would."""
    raw = json.loads((folder / "manifest.json").read_bytes())
    del raw["manifest_sha256"]
    raw.update(changes)
    canonical = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    raw["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(raw))
