from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from adclick_edge.data.procedural.textures import random_texture
from adclick_edge.data.synthetic import add_defect
from adclick_edge.errors import ParityError
from adclick_edge.export import run_bundle as module
from adclick_edge.export.parity import TOLERANCE, ParityReport, check_parity
from adclick_edge.export.run_bundle import export_backbone
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.extractor import Extractor, build_extractor
from adclick_edge.features.weights import load_weights
from adclick_edge.models.distance import DistanceSegmenter
from adclick_edge.models.presets import PRESETS

GRAPHS = ("features.onnx", "residual.onnx", "residual_candidates.onnx", "segment.onnx")


@pytest.fixture(scope="module")
def extractor(backbone_file: Path) -> Extractor:
    built = build_extractor(PRESETS["edge-s"])
    load_weights(built.backbone, backbone_file)
    return built


@pytest.fixture(scope="module")
def graphs(weights_bundle: Path) -> dict[str, bytes]:
    return {name: (weights_bundle / name).read_bytes() for name in GRAPHS}


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    world = (random_texture(rng, 64, 96) * 255).astype(np.uint8)
    return [world, *[add_defect(np.roll(world, 9 * i, axis=1), rng)[0] for i in range(4)]]


@pytest.fixture(scope="module")
def bank(extractor: Extractor, frames: list[np.ndarray]) -> Bank:
    builder = BankBuilder(BankOptions(rows=150, search_dims=16, retrieve_images=1))
    for number in range(3):
        with torch.no_grad():
            features = extractor(torch.from_numpy(np.roll(frames[0], 31 * number, axis=1)[None]))
        maps = {name: tensor[0].numpy() for name, tensor in features.items()}
        builder.add(maps["embedding"], image_hash=str(number), retrieval_map=maps["map4"])
    return builder.build()


def spoiled(data: bytes, change: Callable[[np.ndarray], np.ndarray], *, largest: bool = True) -> bytes:
    """The graph with its largest (or last) float constant changed."""
    model = onnx.load_from_string(data)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
    tensor = max(floats, key=lambda t: len(numpy_helper.to_array(t).ravel())) if largest else floats[-1]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    return model.SerializeToString()


def test_the_graphs_as_exported_pass(
    extractor: Extractor, bank: Bank, graphs: dict[str, bytes], frames: list[np.ndarray]
) -> None:
    report = check_parity(extractor, DistanceSegmenter(), bank, graphs, frames)
    assert report.frames == len(frames)
    assert report.quantile_map_difference <= report.max_map_difference < TOLERANCE / 10
    assert report.changed_verdicts == 0
    assert report.as_json()["max_score_difference"] == report.max_score_difference


@pytest.mark.parametrize("options", [{"retrieve_images": 1}, {"window_radius": 2, "retrieve_images": 0}], ids=str)
def test_a_bank_that_is_searched_in_part_changes_nothing(
    options: dict[str, int], extractor: Extractor, bank: Bank, graphs: dict[str, bytes], frames: list[np.ndarray]
) -> None:
    """The trained network knows the whole bank only; leaving out rows is no defect of the export."""
    partial = replace(bank, options=msgspec.structs.replace(bank.options, **options))
    report = check_parity(extractor, DistanceSegmenter(), partial, graphs, frames)
    assert report == check_parity(extractor, DistanceSegmenter(), bank, graphs, frames)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features.onnx", lambda a: a * np.float32(1.02)),
        ("features.onnx", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 7, 5.0, a).astype(np.float32)),
        ("segment.onnx", lambda a: a * np.float32(1.01)),
        ("segment.onnx", lambda a: a * np.float32("nan")),
    ],
    ids=["weights 2 % larger", "one weight", "taps 1 % larger", "NaN"],
)
def test_changed_weights_are_refused(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    extractor: Extractor,
    bank: Bank,
    graphs: dict[str, bytes],
    frames: list[np.ndarray],
) -> None:
    wrong = {**graphs, name: spoiled(graphs[name], change)}
    with pytest.raises(ParityError, match="differ from the trained network"):
        check_parity(extractor, DistanceSegmenter(), bank, wrong, frames)


def test_nothing_is_written_when_parity_fails(
    graphs: dict[str, bytes], backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**graphs, "features.onnx": spoiled(graphs["features.onnx"], lambda a: a * np.float32(1.05))}
    monkeypatch.setattr(module, "export_graphs", lambda *_: wrong)
    preset = msgspec.structs.replace(PRESETS["edge-s"], input_size=(64, 64))
    with pytest.raises(ParityError):
        export_backbone(preset, backbone_file, tmp_path / "bundle", weights_license="none")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(module, "export_graphs", lambda *_: graphs)
    assert isinstance(export_backbone(preset, backbone_file, tmp_path / "b", weights_license="none"), ParityReport)
    assert (tmp_path / "b" / "manifest.json").is_file()


def test_verdicts_change_where_the_gap_is_crossed() -> None:
    from adclick_edge.export.parity import _changed_verdicts

    before = np.array([0.1, 0.9, 0.2, 1.0], np.float32)
    assert _changed_verdicts(before, before) == 0
    assert _changed_verdicts(before, before + np.array([0, 0, 0.5, 0], np.float32)) == 1
    assert _changed_verdicts(before, 1 - before) == 4
    assert _changed_verdicts(before[:1], before[1:2]) == 0
