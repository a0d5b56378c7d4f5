"""What comes with the package must be of this very release: a graph that changes here must be exported again."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.commands.bank import SHIPPED_WEIGHTS
from adclick_edge.export.residual_graph import candidates_model, residual_model
from adclick_edge.features.weights import shipped_weights
from adclick_edge.files import sha256_file
from adclick_edge.models.presets import preset_named
from adclick_edge.runtime.ort_cpu import OrtCpuEngine


@pytest.fixture(scope="module")
def shipped() -> Iterator[Bundle]:
    with read_bundle(SHIPPED_WEIGHTS) as bundle:
        yield bundle


def test_the_bundle_is_the_export_of_the_backbone(shipped: Bundle) -> None:
    manifest = shipped.manifest
    assert manifest.kind == "weights"
    assert manifest.weights_license == "Apache-2.0"
    assert manifest.training["backbone_sha256"] == sha256_file(shipped_weights("edge_backbone"))
    assert manifest.parity["changed_verdicts"] == 0
    assert manifest.input_size == preset_named(manifest.preset).input_size
    assert "/" not in json.dumps(manifest.training)  # no path of the machine it was made on


def test_its_graphs_are_those_of_this_release(shipped: Bundle) -> None:
    assert shipped.read("residual.onnx") == residual_model().SerializeToString()
    assert shipped.read("residual_candidates.onnx") == candidates_model().SerializeToString()
    engine = OrtCpuEngine(SHIPPED_WEIGHTS, threads=1)
    height, width = shipped.manifest.input_size
    features = engine.features(np.full((1, height, width, 3), 128, np.uint8))
    assert features["embedding"].shape == (1, shipped.manifest.embedding_dims, height // 8, width // 8)
