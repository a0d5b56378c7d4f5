from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click_samples import DIMS, SIZE, TinyClicks
from torch import Tensor

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.bundle.names import CLICK_GRAPHS
from adclick_edge.data.clicks import MAX_CLICKS
from adclick_edge.errors import BundleError, ExportError, ParityError
from adclick_edge.export.click_bundle import write_click_bundle
from adclick_edge.export.click_graphs import export_click_graphs
from adclick_edge.export.click_parity import ClickCase, check_click_parity
from adclick_edge.models.adclick import EdgeClicks
from adclick_edge.runtime.click_session import ClickSession
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.words import PromptTable

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def examples(weights_bundle: Path) -> dict[str, Tensor]:
    frames = RNG.integers(0, 256, (1, *SIZE, 3), np.uint8)
    features = OrtCpuEngine(weights_bundle, threads=1).features(frames)
    level = RNG.random((1, 1, SIZE[0] // 8, SIZE[1] // 8), np.float32) * 3
    found = {
        **features,
        "frames": frames,
        "relative": level * np.ones((1, DIMS, 1, 1), np.float32),
        "relative_distance": level,
    }
    return {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.fixture
def base(weights_bundle: Path) -> Bundle:
    with read_bundle(weights_bundle) as bundle:
        yield bundle


def case_of(examples: dict[str, Tensor]) -> ClickCase:
    mask = np.zeros(SIZE, bool)
    mask[10:30, 20:40] = True
    return ClickCase({name: value.numpy() for name, value in examples.items()}, mask, np.zeros(384, np.float32))


def test_what_is_written_says_what_it_is(click_bundle: Path, weights_bundle: Path) -> None:
    with read_bundle(click_bundle) as bundle, read_bundle(weights_bundle) as base:
        click = bundle.manifest.click
        assert click is not None
        assert (click.size, click.max_clicks, click.prompt_dims) == (SIZE, MAX_CLICKS, 384)
        assert [t.name for t in click.encode_inputs] == list(TinyClicks.encode_inputs)
        assert [t.name for t in click.encode_outputs] == list(TinyClicks.encode_outputs)
        assert {t.name: t.shape for t in click.decode_inputs}["clicks"] == [1, MAX_CLICKS, 3]
        assert click.parity["frames"] == 4
        assert 0 <= click.parity["max_probability_difference"] < 1e-3
        assert bundle.manifest.parent == base.manifest.version != bundle.manifest.version
        assert base.manifest.click is None
        assert {n: bundle.read(n) for n in base.manifest.files} == {n: base.read(n) for n in base.manifest.files}
        assert set(bundle.manifest.files) - set(base.manifest.files) == {*CLICK_GRAPHS, "golden/click.safetensors"}


def test_a_product_keeps_its_thresholds(click_product: Path, product_bundle: Path) -> None:
    with Inspector.open(click_product, threads=1) as found, Inspector.open(product_bundle, threads=1) as before:
        assert found.calibration is not None
        assert before.calibration is not None
        assert found.calibration.t_ng == before.calibration.t_ng
        assert found.calibration.bundle_version == found.bundle.manifest.version


def test_the_edge_network_is_exported(base: Bundle, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EdgeClicks(DIMS, {4: 48, 8: 96, 16: 128}, width=8)
    torch.nn.init.normal_(network.decoder.logit.weight, std=3.0)  # answers that differ from place to place
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.uniform_(buffer, -0.1, 0.1)
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.05, 0.2)
    training = {"products": ["flange"]}
    report = write_click_bundle(base, network, None, tmp_path / "out", size=SIZE, training=training)
    assert report.max_probability_difference < 1e-3
    with ClickSession.open(tmp_path / "out", threads=1) as session:
        assert session.bundle.manifest.training["click"] == training
        session.set_image(RNG.integers(0, 256, (90, 70, 3), np.uint8))
        found = session.click(20, 30, positive=True)
        assert found.shape == (90, 70)
        assert np.ptp(found) > 1e-3


class Freely(TinyClicks):
    free_clicks = True


def test_any_number_of_rows(examples: dict[str, Tensor], weights_bundle: Path, tmp_path: Path, base: Bundle) -> None:
    write_click_bundle(base, Freely(), None, tmp_path / "out", size=SIZE)
    write_click_bundle(base, TinyClicks(), None, tmp_path / "fixed", size=SIZE)
    frame = RNG.integers(0, 256, (90, 70, 3), np.uint8)
    with (
        ClickSession.open(tmp_path / "out", threads=1) as free,
        ClickSession.open(tmp_path / "fixed", threads=1) as fixed,
    ):
        assert [t.shape for t in free.bundle.manifest.click.decode_inputs if t.name == "clicks"] == [[1, -1, 3]]
        for session in (free, fixed):
            session.set_image(frame)
        for y in range(5, 25, 5):
            np.testing.assert_allclose(free.click(y, 9, positive=True), fixed.click(y, 9, positive=True), atol=1e-5)


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_graphs_of_another_network_are_refused(
    part: str, examples: dict[str, Tensor], weights_bundle: Path, tmp_path: Path
) -> None:
    right, other = (export_click_graphs(TinyClicks(blob_px), examples) for blob_px in (5.0, 9.0))
    for name, data in (right if part == "encode" else other).items():
        (tmp_path / name).write_bytes(data)
    for name in ("features", "residual", "segment"):
        (tmp_path / f"{name}.onnx").write_bytes((weights_bundle / f"{name}.onnx").read_bytes())
    engine = OrtCpuEngine(tmp_path, threads=1)
    case = case_of(examples)
    if part == "encode":
        assert check_click_parity(TinyClicks(), engine, [case], max_clicks=24).changed_mask_share < 1e-3
        brighter = {**case.inputs, "frames": case.inputs["frames"] // 2}
        wrong: Callable[..., object] = engine.click_encode
        engine.click_encode = lambda feed: wrong({**feed, "frames": brighter["frames"]})  # type: ignore[method-assign, assignment]
    with pytest.raises(ParityError, match=r"click graphs differ.*Nothing was written"):
        check_click_parity(TinyClicks(), engine, [case], max_clicks=24)


def test_nothing_to_compare_is_no_parity(weights_bundle: Path) -> None:
    with pytest.raises(ParityError, match="at least one frame"):
        check_click_parity(TinyClicks(), OrtCpuEngine(weights_bundle, threads=1), [], max_clicks=24)


def test_prompts_are_checked_first(base: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="prompts"):
        write_click_bundle(base, TinyClicks(), b"{}", tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_prompts_of_another_length_are_refused(base: Bundle, tmp_path: Path) -> None:
    class Short:
        name, sha256, dims = "short", "0" * 64, 16

        def encode(self, sentences: list[str]) -> np.ndarray:
            return np.full((len(sentences), 16), 0.25, np.float32)

    prompts = PromptTable.build(Short(), ["scratch"]).encode()
    with pytest.raises(ExportError, match="vectors of 16 numbers"):
        write_click_bundle(base, TinyClicks(), prompts, tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()


class Unexportable(TinyClicks):
    def encode(self, *inputs: Tensor) -> dict[str, Tensor]:
        found = super().encode(*inputs)
        return found if float(found["keys"].mean()) > 0 else {**found, "keys": found["fine"]}


def test_networks_that_cannot_be_exported_are_refused(examples: dict[str, Tensor]) -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        export_click_graphs(Unexportable(), examples)
