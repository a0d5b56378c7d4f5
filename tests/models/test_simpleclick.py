import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adclick_edge.errors import WeightsError
from adclick_edge.models.paper_clicks import PaperClicks
from adclick_edge.models.simpleclick import NOT_IN_CHECKPOINT, load_simpleclick
from adclick_edge.models.simpleclick_net import ClickSize

DIMS, DEPTH, LEVELS, HEAD = 16, 2, (4, 8, 8, 12), 8
SIZE = ClickSize(
    dims=DIMS, depth=DEPTH, heads=2, level_dims=LEVELS, branch_dims=8, branch_heads=2, window=4, head_dims=HEAD
)


def network():
    torch.manual_seed(1)
    return PaperClicks(6, (64, 64), SIZE).eval()


def published_shapes(dims, depth, levels, head, cells, classes=1000):
    """Names and shapes of a SimpleClick checkpoint, written out by hand from the published naming."""

    def layer(name, *weight, out=None):
        return {f"{name}.weight": weight, f"{name}.bias": (weight[0] if out is None else out,)}

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    fine, half, coarse = max(2 * levels[0], dims // 2), max(levels[1], dims // 2), max(levels[3], 2 * dims)
    shapes = {"backbone.cls_token": (1, 1, dims), "backbone.pos_embed": (1, cells + 1, dims)}
    shapes |= layer("patch_embed_coords.proj", dims, 3, 16, 16) | layer("backbone.patch_embed.proj", dims, 3, 16, 16)
    for block in range(depth):
        at = f"backbone.blocks.{block}"
        shapes |= norm(f"{at}.norm1", dims) | norm(f"{at}.norm2", dims)
        shapes |= layer(f"{at}.attn.qkv", 3 * dims, dims) | layer(f"{at}.attn.proj", dims, dims)
        shapes |= layer(f"{at}.mlp.fc1", 4 * dims, dims) | layer(f"{at}.mlp.fc2", dims, 4 * dims)
    shapes |= norm("backbone.fc_norm", dims) | layer("backbone.head", classes, dims)
    shapes |= layer("neck.down_4.0", dims, fine, 2, 2, out=fine) | norm("neck.down_4.1", fine)
    shapes |= layer("neck.down_4.3", fine, fine // 2, 2, 2, out=fine // 2) | norm("neck.down_4.4", fine // 2)
    shapes |= layer("neck.down_4.5", levels[0], fine // 2, 1, 1) | norm("neck.down_4.6", levels[0])
    shapes |= layer("neck.down_8.0", dims, half, 2, 2, out=half) | norm("neck.down_8.1", half)
    shapes |= layer("neck.down_8.2", levels[1], half, 1, 1) | norm("neck.down_8.3", levels[1])
    shapes |= layer("neck.down_16.0", levels[2], dims, 1, 1) | norm("neck.down_16.1", levels[2])
    shapes |= layer("neck.down_32.0", coarse, dims, 2, 2) | norm("neck.down_32.1", coarse)
    shapes |= layer("neck.down_32.2", levels[3], coarse, 1, 1) | norm("neck.down_32.3", levels[3])
    shapes |= layer("head.conv_seg", 1, head, 1, 1) | layer("head.fusion_conv.conv", head, 4 * head, 1, 1)
    for place, width in enumerate(levels):
        shapes |= layer(f"head.convs.{place}.conv", head, width, 1, 1)
    for name, width in (("up_conv1", head), ("up_conv2", head // 2)):
        shapes |= layer(f"head.{name}.0", width, width // 2, 2, 2, out=width // 2) | norm(f"head.{name}.1", width // 2)
        shapes |= layer(f"head.{name}.2", width // 2, width // 2, 1, 1) | norm(f"head.{name}.3", width // 2)
    return shapes


@pytest.fixture
def checkpoint():
    generator = torch.Generator().manual_seed(7)
    shapes = published_shapes(DIMS, DEPTH, LEVELS, HEAD, cells=16, classes=5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
    else:
        torch.save({"state_dict": tensors, "config": {"class": "PlainVitModel"}}, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_published_checkpoint_fits_by_name(tmp_path, checkpoint, suffix):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    info = load_simpleclick(net, saved(checkpoint, tmp_path / f"vit{suffix}"))
    branch = net.image_branch
    assert info.tensors == len(branch.state_dict()) == 73
    assert info.positions_from is None
    assert set(info.unused) == {
        name
        for name in checkpoint
        if name.startswith(("backbone.cls", "backbone.fc_norm", "backbone.head", "head.up_conv"))
    }
    pairs = {
        "backbone.blocks.1.attn.qkv.weight": branch.transformer.blocks[1].attn.qkv.weight,
        "backbone.patch_embed.proj.bias": branch.transformer.patch_embed.proj.bias,
        "patch_embed_coords.proj.weight": branch.click_embed.weight,
        "neck.down_4.3.weight": branch.pyramid.levels[0][3].weight,
        "neck.down_8.2.weight": branch.pyramid.levels[1][2].weight,
        "neck.down_32.3.bias": branch.pyramid.levels[3][3].bias,
        "head.convs.2.conv.weight": branch.head.convs[2].weight,
        "head.fusion_conv.conv.weight": branch.head.fusion.weight,
        "head.conv_seg.bias": branch.head.logit.bias,
    }
    for name, parameter in pairs.items():
        assert torch.equal(parameter, checkpoint[name]), name
    assert torch.equal(branch.transformer.pos_embed, checkpoint["backbone.pos_embed"][:, 1:])
    after = net.state_dict()
    kept = {name for name in after if name.startswith(info.untouched)}
    assert kept == {name for name in after if not name.startswith("image_branch.")}
    assert info.untouched == NOT_IN_CHECKPOINT
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert not any(torch.equal(after[name], before[name]) for name in after if name not in kept)


def test_full_size_names_and_shapes_are_vit_b():
    with torch.device("meta"):
        net = PaperClicks()
    shapes = published_shapes(768, 12, (128, 256, 512, 1024), 256, cells=28 * 28)
    used = {n: s for n, s in shapes.items() if "fc_norm" not in n and "up_conv" not in n and "backbone.head" not in n}
    ours = sorted(tuple(t.shape) for t in net.image_branch.state_dict().values())
    del used["backbone.cls_token"]
    used["backbone.pos_embed"] = (1, 784, 768)
    assert ours == sorted(used.values())


def test_positions_of_another_grid_are_resized(tmp_path, checkpoint):
    ramp = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(1, 64, 1).expand(1, 64, DIMS)
    checkpoint["backbone.pos_embed"] = torch.cat([torch.full((1, 1, DIMS), 99.0), ramp], dim=1)
    net = network()
    info = load_simpleclick(net, saved(checkpoint, tmp_path / "vit.pth"))
    assert info.positions_from == (8, 8)
    rows = net.image_branch.transformer.pos_embed.detach().reshape(4, 4, DIMS)
    assert torch.allclose(rows, rows[:, :1, :1].expand_as(rows), atol=1e-6)
    assert bool((rows[1:, 0, 0] > rows[:-1, 0, 0] + 0.2).all())
    assert rows.max() < 1.1  # nothing of the class token's row


def test_objects_of_the_checkpoints_own_code_are_stand_ins(tmp_path, checkpoint, monkeypatch):
    ran = []

    class CrossEntropyLoss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.criterion = criterion

        def __setstate__(self, state):
            ran.append(state)
            super().__setstate__(state)

    def criterion():
        pass

    module = types.ModuleType("isegm.losses")
    for thing in (CrossEntropyLoss, criterion):
        thing.__module__, thing.__qualname__ = "isegm.losses", thing.__name__
        setattr(module, thing.__name__, thing)
    path = tmp_path / "vit.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "isegm", types.ModuleType("isegm"))
        patch.setitem(sys.modules, "isegm.losses", module)
        torch.save({"state_dict": checkpoint, "config": {"loss": CrossEntropyLoss()}}, path)
        assert load_simpleclick(network(), path).tensors == 73
    assert load_simpleclick(network(), path).tensors == 73  # nor need the code be there
    assert ran == []


class Foreign:
    pass


def test_other_foreign_objects_are_refused(tmp_path, checkpoint):
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": checkpoint, "config": Foreign()}, path)
    with pytest.raises(WeightsError, match="only plain tensors are accepted"):
        load_simpleclick(network(), path)


def test_what_does_not_fit_is_listed_and_nothing_changes(tmp_path, checkpoint):
    del checkpoint["neck.down_8.0.weight"]
    checkpoint["backbone.blocks.2.norm1.weight"] = torch.zeros(DIMS)
    checkpoint["head.conv_seg.weight"] = torch.zeros(2, HEAD, 1, 1)
    checkpoint["head.conv_seg.bias"] = torch.full((1,), torch.nan)
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_simpleclick(net, saved(checkpoint, tmp_path / "vit.pth"))
    said = str(caught.value)
    for part in (
        "70 of 73 tensors of the image branch fit",
        "1 missing: neck.down_8.0.weight (16, 8, 2, 2)",
        "1 unexpected: backbone.blocks.2.norm1.weight (16,)",
        "1 of another shape: head.conv_seg.weight is (2, 8, 1, 1), expected (1, 8, 1, 1)",
        "1 not usable: head.conv_seg.bias has values that are not finite",
        "residual_branch and film need not be in it",
    ):
        assert part in said
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_positions_of_no_square_grid_and_integers_are_refused(tmp_path, checkpoint):
    checkpoint["backbone.pos_embed"] = torch.zeros(1, 15, DIMS)
    checkpoint["head.conv_seg.bias"] = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(WeightsError, match=r"pos_embed is \(1, 15, 16\), expected \(1, 16, 16\).*torch.int64"):
        load_simpleclick(network(), saved(checkpoint, tmp_path / "vit.safetensors"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vit.pth", b"not a checkpoint", "cannot be read as torch weights"),
        ("vit.bin", b"", "weights end in"),
        ("vit.npz", b"PK\x03\x04", "cannot be read as npz weights"),
        ("vit.pth", None, "no such weights file"),
    ],
)
def test_unreadable_files_say_so(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        load_simpleclick(network(), tmp_path / name)
