import pytest
import torch
from torch import Tensor

from adclick_edge.features.extractor import build_extractor
from adclick_edge.models.adclick_seg import EdgeSegmenter
from adclick_edge.models.build import build_segmenter, run_segmenter
from adclick_edge.models.distance import DistanceSegmenter, relative_distance
from adclick_edge.models.paper_seg import PaperSegmenter
from adclick_edge.models.presets import PRESETS
from adclick_edge.training.loss import mask_loss

DIMS = 6
CHANNELS = {4: 5, 8: 7, 16: 9}


def segmenter() -> EdgeSegmenter:
    torch.manual_seed(0)
    return EdgeSegmenter(DIMS, CHANNELS, 8)


def inputs(rows: int, columns: int, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Inputs for a frame of ``rows`` x ``columns`` cells of the stride-16 map."""
    g = torch.Generator().manual_seed(seed)
    maps = {f"map{s}": (CHANNELS[s], 16 // s) for s in (4, 8, 16)}
    found = {k: torch.randn(batch, c, f * rows, f * columns, generator=g).relu() for k, (c, f) in maps.items()}
    relative = torch.rand(batch, DIMS, 2 * rows, 2 * columns, generator=g) * 3
    return {"relative": relative, "relative_distance": relative.mean(dim=1, keepdim=True).sqrt(), **found}


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5), (7, 1), (1, 1), (16, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_map_has_the_stride_4_grid(rows: int, columns: int, batch: int) -> None:
    network = segmenter().eval()
    out = run_segmenter(network, network.inputs, inputs(rows, columns, batch))
    assert out.shape == (batch, 4 * rows, 4 * columns)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("training", [False, True])
def test_before_training_the_map_is_the_relative_distance_in_another_unit(training: bool) -> None:
    network = segmenter().train(training)
    given = inputs(3, 5)
    distance = torch.nn.functional.interpolate(
        given["relative_distance"], scale_factor=2.0, mode="bilinear", align_corners=False
    )[:, 0]
    out = run_segmenter(network, network.inputs, given)
    torch.testing.assert_close(out, distance - 4.0)
    with torch.no_grad():
        network.distance_gain.fill_(2.5)
        network.distance_offset.fill_(-1.0)
    torch.testing.assert_close(run_segmenter(network, network.inputs, given), 2.5 * distance + 1.0)


def test_gradient_reaches_every_parameter_after_one_step() -> None:
    network = segmenter().train()
    adam = torch.optim.AdamW(network.parameters(), lr=1e-2)
    given, masks = inputs(4, 4), torch.zeros(2, 64, 64)
    masks[0, 10:30, 10:30] = 1
    for _ in range(2):
        adam.zero_grad()
        mask_loss(run_segmenter(network, network.inputs, given), masks).backward()
        adam.step()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_each_input_matters_once_trained() -> None:
    network = segmenter().eval()
    torch.nn.init.normal_(network.logit.weight, generator=torch.Generator().manual_seed(2))
    given = inputs(3, 3)
    before = run_segmenter(network, network.inputs, given)
    for name in network.inputs:
        changed = {**given, name: inputs(3, 3, seed=5)[name]}
        assert (run_segmenter(network, network.inputs, changed) - before).abs().max() > 1e-3, name


def test_evaluation_does_not_mix_frames() -> None:
    network = segmenter().eval()
    torch.nn.init.normal_(network.logit.weight, generator=torch.Generator().manual_seed(2))
    given = inputs(2, 3, batch=3)
    whole = run_segmenter(network, network.inputs, given)
    for n in range(3):
        one = run_segmenter(network, network.inputs, {k: v[n : n + 1] for k, v in given.items()})
        torch.testing.assert_close(one[0], whole[n], rtol=1e-4, atol=1e-5)


def test_distance_segmenter_keeps_constants_and_smooths_peaks() -> None:
    network = DistanceSegmenter()
    flat = network(torch.full((1, 1, 4, 6), 2.0))
    torch.testing.assert_close(flat, torch.full((1, 8, 12), 2.0))
    peak = torch.zeros(1, 1, 9, 9)
    peak[0, 0, 4, 4] = 1.0
    out = network(peak)[0]
    assert out.shape == (18, 18)
    assert 0.1 < out.max() < 1.0
    assert (out.argmax() // 18, out.argmax() % 18) in [(a, b) for a in (8, 9) for b in (8, 9)]
    torch.testing.assert_close(out, out.T)
    torch.testing.assert_close(out, out.flip(0))
    assert out.sum() == pytest.approx(4.0, rel=1e-5)  # each cell is four pixels of the map
    assert network.state_dict() == {}


def test_relative_distance_is_one_where_the_residual_is_the_normal_one() -> None:
    scale = torch.tensor([0.5, 2.0, 1.5])
    normal = scale.reshape(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(relative_distance(normal, scale), torch.ones(2, 1, 4, 5))
    torch.testing.assert_close(relative_distance(9 * normal, scale), torch.full((2, 1, 4, 5), 3.0))
    assert not relative_distance(0 * normal, scale).any()


def test_distance_at_the_border_is_not_weaker() -> None:
    edge = torch.zeros(1, 1, 6, 6)
    edge[0, 0, 0] = 1.0
    inner = torch.zeros(1, 1, 6, 6)
    inner[0, 0, 3] = 1.0
    network = DistanceSegmenter()
    assert network(edge).max() >= network(inner).max()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_what_they_name(name: str) -> None:
    import msgspec

    # The paper's backbone would take a gigabyte and seconds here; another gives maps of the same strides.
    backbone = "resnet18" if name == "paper" else PRESETS[name].backbone
    preset = msgspec.structs.replace(PRESETS[name], backbone=backbone, input_size=(64, 64))
    extractor = build_extractor(preset)
    network = build_segmenter(preset, extractor)
    assert isinstance(network, PaperSegmenter if name == "paper" else EdgeSegmenter)
    features = extractor(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    available = {"embedding", "residual", "relative", "relative_distance", *features}
    assert set(network.inputs) <= available
    assert features["embedding"].shape == (1, extractor.dims, 8, 8)
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor.train().training
