import pytest
import torch
import torch.nn.functional as F

from adclick_edge.errors import UsageError
from adclick_edge.models.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(grid=(2, 3), patch=4):
    return VisionTransformer(grid, dims=12, depth=2, heads=3, patch=patch).eval()


def by_hand(vit, image):
    """The transformer written out on one image, head by head."""
    p = vit.state_dict()
    grid = F.conv2d(image[None], p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=vit.patch)
    x = grid[0].flatten(1).T + p["pos_embed"][0]
    for b in range(len(vit.blocks)):
        q = {k.removeprefix(f"blocks.{b}."): v for k, v in p.items() if k.startswith(f"blocks.{b}.")}
        y = F.layer_norm(x, (12,), q["norm1.weight"], q["norm1.bias"], 1e-6)
        query, key, value = (y @ q["attn.qkv.weight"].T + q["attn.qkv.bias"]).split(12, dim=1)
        mixed = [
            torch.softmax(query[:, h : h + 4] @ key[:, h : h + 4].T / 2.0, dim=1) @ value[:, h : h + 4]
            for h in (0, 4, 8)
        ]
        x = x + torch.cat(mixed, dim=1) @ q["attn.proj.weight"].T + q["attn.proj.bias"]
        y = F.layer_norm(x, (12,), q["norm2.weight"], q["norm2.bias"], 1e-6)
        y = F.gelu(y @ q["mlp.fc1.weight"].T + q["mlp.fc1.bias"])
        x = x + y @ q["mlp.fc2.weight"].T + q["mlp.fc2.bias"]
    x = F.layer_norm(x, (12,), p["norm.weight"], p["norm.bias"], 1e-6)
    return x.T.reshape(12, *grid.shape[-2:])


def test_equals_the_transformer_by_hand():
    vit = tiny()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        got = vit(images)
        for image, one in zip(images, got, strict=True):
            torch.testing.assert_close(one, by_hand(vit, image), atol=1e-4, rtol=1e-4)


def test_other_sizes_resize_the_positions():
    vit = tiny(grid=(4, 4))
    with torch.no_grad():
        vit.pos_embed.copy_(torch.linspace(-1, 1, 4).repeat_interleave(4)[None, :, None] * torch.randn(12))
        out = vit(torch.zeros(1, 3, 4 * 8, 4 * 8))
    assert out.shape == (1, 12, 8, 8)
    torch.testing.assert_close(out, out[..., :1].expand_as(out))  # the positions change downwards only
    assert (out[:, :, 0] - out[:, :, -1]).abs().max() > 1e-3


def test_tokens_are_added_before_the_blocks():
    vit = tiny()
    image, tokens = torch.randn(2, 3, 8, 12), torch.randn(2, 6, 12)
    plain, moved = vit(image), vit(image, tokens)
    assert (plain - moved).abs().max() > 1e-2
    torch.testing.assert_close(vit(image, torch.zeros_like(tokens)), plain)
    with torch.no_grad():
        vit.pos_embed.add_(tokens[:1])
    torch.testing.assert_close(vit(image[:1]), moved[:1])


def test_checkpoint_with_class_token_and_other_grid_loads():
    vit = tiny(grid=(2, 3))
    state = {**vit.state_dict(), "cls_token": torch.zeros(1, 1, 12), "pos_embed": torch.randn(1, 1 + 25, 12)}
    vit.load_state_dict(state)
    want = state["pos_embed"][0, 1:].T.reshape(1, 12, 5, 5)
    want = F.interpolate(want, size=(2, 3), mode="bicubic", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(vit.pos_embed[0], want)
    assert "cls_token" in state  # the caller's dict stays as it was


def test_checkpoint_of_the_same_grid_loads_exactly_below_a_prefix():
    net, other = torch.nn.ModuleDict({"branch": tiny()}), torch.nn.ModuleDict({"branch": tiny()})
    state = net.state_dict()
    state["branch.pos_embed"] = state["branch.pos_embed"].clone()
    other.load_state_dict(state)
    image = torch.randn(1, 3, 8, 12)
    torch.testing.assert_close(other["branch"](image), net["branch"](image), rtol=0, atol=0)


def test_checkpoint_that_cannot_fit_is_refused():
    vit = tiny()
    with pytest.raises(RuntimeError, match="pos_embed"):
        vit.load_state_dict({**vit.state_dict(), "pos_embed": torch.zeros(1, 7, 12)})


def test_names_are_those_of_common_checkpoints():
    names = set(VisionTransformer((1, 1), dims=4, depth=1, heads=1).state_dict())
    layers = ["patch_embed.proj", "norm", *(f"blocks.0.{n}" for n in ("norm1", "norm2"))]
    layers += [f"blocks.0.{n}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert names == {"pos_embed"} | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_bad_sizes_are_named():
    with pytest.raises(UsageError, match="8 x 13 px is not a multiple of 4"):
        tiny()(torch.zeros(1, 3, 8, 13))
    with pytest.raises(UsageError, match="10 dims do not divide into 3 heads"):
        VisionTransformer(dims=10, heads=3)
