import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adclick_edge.errors import UsageError
from adclick_edge.features.backbones import BACKBONES, Backbone, TrainableEdge, create_backbone, fold_batch_norms

TORCHVISION_NAMES = {
    "resnet18": ["conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.0.downsample.1.bias"],
    "resnet34": ["layer3.5.bn2.weight", "layer2.3.conv2.weight", "layer2.0.downsample.0.weight"],
    "resnet50": ["layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer2.0.bn3.running_mean"],
    "wide_resnet50_2": ["layer1.2.conv2.weight", "layer3.5.bn3.bias"],
    "mobilenet_v2": [
        "features.0.0.weight",
        "features.0.1.running_mean",
        "features.1.conv.0.0.weight",
        "features.1.conv.1.weight",
        "features.1.conv.2.bias",
        "features.13.conv.1.1.running_var",
        "features.13.conv.3.weight",
    ],
}
# parameters up to the last map, counted from the papers' tables
PARAMETERS = {"resnet18": 2_782_784, "resnet50": 8_543_296, "wide_resnet50_2": 24_862_528, "edge_backbone": 645_408}


def _with_norm_statistics(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.uniform_(-0.5, 0.5, generator=generator)
            child.running_var.uniform_(0.5, 2, generator=generator)
            child.weight.data.uniform_(0.5, 1.5, generator=generator)
            child.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return module


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(name: str) -> Backbone:
    torch.manual_seed(1)
    return create_backbone(name)


@torch.no_grad()
def test_maps_have_the_stated_channels_and_sizes(backbone: Backbone) -> None:
    for height, width in ((64, 96), (50, 37)):
        maps = backbone(torch.zeros(2, 3, height, width))
        assert list(maps) == [4, 8, 16] == list(backbone.channels)
        for stride, m in maps.items():
            assert m.shape == (2, backbone.channels[stride], -(-height // stride), -(-width // stride))
    assert len(backbone.mean) == len(backbone.std) == 3


def test_it_stays_in_eval_mode(backbone: Backbone) -> None:
    nn.ModuleList([backbone]).train()
    assert not any(m.training for m in backbone.modules())


@pytest.mark.parametrize("folds", [name for name in BACKBONES if name != "edge_backbone"])
@torch.no_grad()
def test_folding_batch_norms_changes_only_rounding(folds: str) -> None:
    normed = _with_norm_statistics(create_backbone(folds)).double()
    folded = fold_batch_norms(normed)
    assert any(isinstance(m, nn.BatchNorm2d) for m in normed.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(1, 3, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for expected, got in zip(normed(x).values(), folded(x).values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("known", TORCHVISION_NAMES)
def test_parameters_carry_torchvisions_names(known: str) -> None:
    names = set(create_backbone(known).state_dict())
    assert names >= set(TORCHVISION_NAMES[known])
    assert not any(n.startswith(("layer4", "fc", "features.14", "classifier")) for n in names)


@pytest.mark.parametrize("sized", PARAMETERS)
def test_size(sized: str) -> None:
    assert sum(p.numel() for p in create_backbone(sized).parameters()) == PARAMETERS[sized]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'resnet19'.*mobilenet_v2"):
        create_backbone("resnet19")


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000))
@torch.no_grad()
def test_reparameterised_edge_computes_the_same(seed: int) -> None:
    torch.manual_seed(seed)
    network = _with_norm_statistics(TrainableEdge()).double()
    network.eval()
    plain = network.reparameterise().double()
    x = torch.randn(1, 3, 48, 33, dtype=torch.float64)
    for expected, got in zip(network(x).values(), plain(x).values(), strict=True):
        # the plain form holds float32 parameters
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_plain_edge_is_convolutions_alone_and_batch_size_does_not_matter() -> None:
    backbone = create_backbone("edge_backbone")
    assert {type(m) for m in backbone.modules() if not list(m.children())} == {nn.Conv2d}
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = backbone(x), backbone(x[1:2])
    for stride, m in together.items():
        torch.testing.assert_close(m[1:2], alone[stride], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_edge_multiply_accumulates_at_256() -> None:
    macs = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += module.weight.numel() * output.shape[2] * output.shape[3]

    backbone = create_backbone("edge_backbone")
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    backbone(torch.zeros(1, 3, 256, 256))
    assert round(macs / 1e6) == 454


def test_the_trainable_edge_learns_and_follows_train_mode() -> None:
    network = TrainableEdge()
    assert network.train().layers[0].training
    before = network.layers[0].norm.running_mean.clone()
    sum(m.mean() for m in network(torch.randn(2, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)
    assert not torch.equal(before, network.layers[0].norm.running_mean)
    assert not network.eval().layers[0].norm.training
