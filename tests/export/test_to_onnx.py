from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from seg_samples import config_for

from adclick_edge.errors import ExportError
from adclick_edge.export.to_onnx import export_segmenter
from adclick_edge.features.extractor import Extractor, build_extractor
from adclick_edge.features.weights import load_weights
from adclick_edge.models.build import build_segmenter, run_segmenter
from adclick_edge.models.distance import DistanceSegmenter
from adclick_edge.models.presets import PRESETS
from adclick_edge.training.checkpoint import load_model

RNG = np.random.default_rng(0)
SIZES = [(1, 128, 128), (3, 128, 128), (2, 64, 96), (1, 160, 32), (5, 48, 80)]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def extractor(backbone_file: Path) -> Extractor:
    built = build_extractor(PRESETS["edge-s"])
    load_weights(built.backbone, backbone_file)
    return built


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_features_graph_computes_the_extractor(
    batch: int, height: int, width: int, extractor: Extractor, weights_bundle: Path
) -> None:
    graph = session(weights_bundle / "features.onnx")
    frames = RNG.integers(0, 256, (batch, height, width, 3), np.uint8)
    found = dict(zip([o.name for o in graph.get_outputs()], graph.run(None, {"frames": frames}), strict=True))
    assert tuple(found) == extractor.outputs == ("embedding", "map4", "map8", "map16")
    with torch.no_grad():
        expected = extractor(torch.from_numpy(frames))
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        scale = float(tensor.abs().max())
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-4 * scale, err_msg=name)


def segmenter_inputs(shapes: dict[str, int], batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    stride = {"relative": 8, "relative_distance": 8, "map4": 4, "map8": 8, "map16": 16}
    return {
        name: RNG.random((batch, channels, height // stride[name], width // stride[name]), np.float32) * 3
        for name, channels in shapes.items()
    }


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_trained_segmenter_graph_computes_the_network(
    batch: int, height: int, width: int, run_bundle: Path, seg_run: Path, line: Path, backbone_file: Path
) -> None:
    config = config_for(line, backbone_file)
    network = build_segmenter(config.preset, build_extractor(config.preset))
    load_model(seg_run / "best.safetensors", network)
    network.eval()
    graph = session(run_bundle / "segment.onnx")
    shapes = {tensor.name: int(tensor.shape[1]) for tensor in graph.get_inputs()}
    assert tuple(shapes) == network.inputs
    given = segmenter_inputs(shapes, batch, height, width)
    (found,) = graph.run(["map"], given)
    with torch.no_grad():
        expected = run_segmenter(network, network.inputs, {k: torch.from_numpy(v) for k, v in given.items()}).numpy()
    assert found.shape == (batch, height // 4, width // 4)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.ptp(expected)))


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_distance_graph_computes_the_network(batch: int, height: int, width: int, weights_bundle: Path) -> None:
    graph = session(weights_bundle / "segment.onnx")
    (only,) = graph.get_inputs()
    given = segmenter_inputs({only.name: int(only.shape[1])}, batch, height, width)
    (found,) = graph.run(["map"], given)
    with torch.no_grad():
        expected = DistanceSegmenter()(torch.from_numpy(given["relative_distance"])).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["features", "residual", "residual_candidates", "segment"])
def test_graphs_are_valid_onnx_with_their_weights_inside(name: str, run_bundle: Path) -> None:
    model = onnx.load(run_bundle / f"{name}.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_features_graph_takes_bytes_with_batch_and_sizes_free(run_bundle: Path) -> None:
    (frames,) = onnx.load(run_bundle / "features.onnx").graph.input
    tensor = frames.type.tensor_type
    assert tensor.elem_type == onnx.TensorProto.UINT8
    assert [dim.HasField("dim_value") for dim in tensor.shape.dim] == [False, False, False, True]
    assert tensor.shape.dim[3].dim_value == 3


class _Branching(torch.nn.Module):
    inputs = ("relative",)

    def forward(self, relative: torch.Tensor) -> torch.Tensor:
        return relative[:, 0] if relative.sum() > 0 else relative[:, 1]


def test_what_cannot_be_exported_says_so() -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        export_segmenter(_Branching(), {"relative": torch.zeros(2, 3, 8, 8)})


def test_export_leaves_the_network_as_it_was(extractor: Extractor) -> None:
    """Batch norms are folded in a copy: training may go on after an export."""
    preset: Any = msgspec.structs.replace(PRESETS["edge-s"], width=8)
    network = build_segmenter(preset, extractor)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    examples = extractor(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    examples["relative"] = torch.zeros_like(examples["embedding"])
    examples["relative_distance"] = examples["relative"][:, :1]
    export_segmenter(network, examples)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[k], after[k]) for k in before)
