import warnings

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from adclick_edge.errors import UsageError
from adclick_edge.models.paper_seg import PaperHead, PaperSegmenter, PaperSize, ResidualBranch
from adclick_edge.models.pyramid import LEVEL_STRIDES, FeaturePyramid, LayerNorm2d, StridedPyramid

TINY = PaperSize(
    dims=16,
    depth=2,
    heads=2,
    level_dims=(4, 8, 8, 12),
    branch_dims=8,
    branch_heads=2,
    window=4,
    head_dims=8,
)


def tiny():
    return PaperSegmenter(6, (64, 64), TINY)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def random_inputs(height, width, batch=2):
    return torch.randn(batch, 3, height, width), torch.randn(batch, 6, height // 8, width // 8) ** 2


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32), (96, 224)])
def test_output_is_on_the_quarter_grid(height, width):
    net = tiny()
    assert net(*random_inputs(height, width)).shape == (2, height // 4, width // 4)


def test_before_training_the_residual_changes_nothing():
    net = tiny()
    image, residual = random_inputs(64, 96)
    first = net(image, residual)
    image_branch = net.head(net.trunk.pyramid(net.trunk.image_branch(image)))[:, 0]
    torch.testing.assert_close(first, image_branch, rtol=0, atol=0)
    torch.testing.assert_close(net(image, residual * 100 + 3), first, rtol=0, atol=0)
    assert (net(image.flip(3), residual) - first).abs().max() > 1e-4


def test_training_opens_the_residual_branch():
    net = tiny()
    image, residual = random_inputs(64, 64)
    target = (torch.rand(2, 16, 16) > 0.7).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    untouched = dict(net.trunk.residual_branch.named_parameters())

    def step():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(net(image, residual), target)
        loss.backward()
        moved = {name for name, p in untouched.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        return moved, loss.item()

    fuse = {name for name in untouched if name.startswith("fuse.")}
    assert step()[0] == fuse  # zeros stop the gradient behind them, once
    assert step()[0] == set(untouched)
    before = net(image, residual)
    assert (net(image, residual.flip(3)) - before).abs().max() > 1e-5
    losses = [step()[1] for _ in range(10)]
    assert losses[-1] < losses[0]


def test_tokens_reach_every_level():
    net = tiny()
    image, residual = random_inputs(64, 64)
    plain = net.trunk(image, residual)
    moved = net.trunk(image, residual, torch.randn(2, 16, 16))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(plain, moved, strict=True))


def test_residual_branch_reduces_before_the_resize_like_after():
    branch = ResidualBranch(6, (4, 8, 8, 12), dims=8, heads=2, window=4)
    for layer in branch.fuse:
        torch.nn.init.normal_(layer.weight)
    residual = torch.randn(1, 6, 8, 12)
    resized = F.interpolate(residual, size=(16, 24), mode="bilinear", align_corners=False)
    levels = branch.pyramid(branch.blocks(branch.norm(branch.reduce(resized))))
    for got, fuse, level in zip(branch(residual, (16, 24)), branch.fuse, levels, strict=True):
        torch.testing.assert_close(got, fuse(level), atol=1e-4, rtol=1e-4)


def test_head_equals_concatenate_then_mix():
    head = PaperHead((4, 8, 8, 12), dims=8)
    levels = [torch.randn(2, c, 48 // s, 32 // s) for c, s in zip((4, 8, 8, 12), (1, 2, 4, 8), strict=True)]
    reduced = [reduce(level) for reduce, level in zip(head.reduce, levels, strict=True)]
    stacked = torch.cat([F.interpolate(r, size=(48, 32), mode="bilinear", align_corners=False) for r in reduced], 1)
    mixed = F.conv2d(stacked, torch.cat([mix.weight for mix in head.mix], dim=1))
    torch.testing.assert_close(head(levels), head.logit(F.gelu(head.norm(mixed))), atol=1e-5, rtol=1e-5)


def test_pyramids_have_the_sizes_they_say():
    levels = FeaturePyramid(16, (4, 8, 8, 12))(torch.randn(2, 16, 6, 10))
    assert [tuple(level.shape) for level in levels] == [
        (2, c, 96 // s, 160 // s) for c, s in zip((4, 8, 8, 12), LEVEL_STRIDES, strict=True)
    ]
    levels = StridedPyramid(8)(torch.randn(2, 8, 24, 40))
    assert [tuple(level.shape) for level in levels] == [(2, 8, 96 // s, 160 // s) for s in LEVEL_STRIDES]
    with pytest.raises(UsageError, match="18 dims"):
        FeaturePyramid(18)


def test_layer_norm_is_over_channels():
    norm = LayerNorm2d(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    want = (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), want)


def test_full_size():
    with torch.device("meta"):
        net = PaperSegmenter()
        out = net(torch.empty(1, 3, 448, 448), torch.empty(1, 512, 56, 56))
    assert out.shape == (1, 112, 112)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in net.trunk.named_children()}
    parameters["head"] = sum(p.numel() for p in net.head.parameters())
    assert parameters == {
        "image_branch": 86_248_704,  # ViT-B/16: 12 blocks of 7.09 M, patches and positions 1.2 M
        "pyramid": 3_964_224,
        "residual_branch": 10_710_944,
        "head": 757_505,
    }


def test_bad_inputs_are_named():
    net = tiny()
    image, residual = random_inputs(64, 64)
    with pytest.raises(UsageError, match="48 x 64 px; both must be multiples of 32"):
        net(image[:, :, :48], residual)
    with pytest.raises(UsageError, match="5 channels, not 6"):
        net(image, residual[:, :5])
    with pytest.raises(UsageError, match="72 x 64 px"):
        PaperSegmenter(6, (72, 64), TINY)


def test_export_at_fixed_size():
    net = tiny().eval()
    for layer in net.trunk.residual_branch.fuse:
        torch.nn.init.normal_(layer.weight)
    inputs = random_inputs(96, 160, batch=1)  # 24 x 40 and tokens 6 x 10: positions resized, windows shifted
    names = list(net.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(net, inputs, dynamo=True, input_names=names, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == names
    fresh = random_inputs(96, 160, batch=1)
    (got,) = session.run(None, {name: value.numpy() for name, value in zip(names, fresh, strict=True)})
    with torch.no_grad():
        want = net(*fresh).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert want.std() > 1e-2
