import warnings

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adclick_edge.errors import UsageError
from adclick_edge.models.click_maps import disk_maps
from adclick_edge.models.paper_clicks import PaperClicks
from adclick_edge.models.simpleclick_net import ClickSize, SimpleClickHead, SimpleClickPyramid, WindowedTransformer
from adclick_edge.models.vit import VisionTransformer

TINY = ClickSize(
    dims=16,
    depth=2,
    heads=2,
    level_dims=(4, 8, 8, 12),
    branch_dims=8,
    branch_heads=2,
    window=4,
    head_dims=8,
    attention_cells=2,
    global_every=2,
)
RESIDUAL_DIMS = 6


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny():
    net = PaperClicks(RESIDUAL_DIMS, (64, 64), TINY).eval()
    # Words and residuals must be seen through the head's ReLU.
    nn.init.normal_(net.image_branch.head.logit.weight)
    return net


def view(height=64, width=96, batch=2):
    """What ``encode`` takes."""
    relative = torch.rand(batch, RESIDUAL_DIMS, height // 8, width // 8) * 4
    frames = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    return frames, relative


def asked(height=64, width=96, batch=2, words=True):
    """What ``decode`` takes besides the embedding: three clicks, a previous map, and words."""
    clicks = torch.zeros(batch, 24, 3)
    clicks[:, 0] = torch.tensor([20.0, 30.0, 1.0])
    clicks[:, 1] = torch.tensor([40.0, 50.0, -1.0])
    clicks[:, 2] = torch.tensor([10.0, 12.0, 1.0])
    prompt = F.normalize(torch.randn(batch, 384), dim=1) if words else torch.zeros(batch, 384)
    return clicks, torch.rand(batch, 1, height // 4, width // 4), prompt


def opened(net):
    """As after training: the zero convolutions and the words do something."""
    for layer in [*net.residual_branch.fuse, *(film.scale_shift for film in net.film)]:
        nn.init.normal_(layer.weight)
    return net


def image_branch_alone(net, frames, clicks, previous):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((frames.float() - mean * 255) / (std * 255)).permute(0, 3, 1, 2)
    size = image.shape[2:]
    before = F.interpolate(previous, size=size, mode="bilinear", align_corners=False)
    logits = net.image_branch(image, torch.cat([before, disk_maps(clicks, size)], dim=1))
    return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (32, 160)])
def test_before_training_the_network_is_its_image_branch(height, width):
    net = tiny()
    seen, wanted = view(height, width), asked(height, width)
    logits = net.decode(net.encode(*seen), *wanted)
    assert logits.shape == (2, height // 2, width // 2)
    assert torch.equal(logits, image_branch_alone(net, seen[0], *wanted[:2]))
    other = (seen[0], seen[1] * 100 + 3)
    assert torch.equal(net(*other, *wanted), logits)
    assert not torch.equal(image_branch_alone(net, 255 - seen[0], *wanted[:2]), logits)


@torch.no_grad()
def test_residuals_and_words_count_once_their_zeros_have_moved():
    net = opened(tiny())
    seen, (clicks, previous, prompt) = view(), asked()
    embedding = net.encode(*seen)
    assert tuple(embedding) == net.encode_outputs
    first = net.decode(embedding, clicks, previous, prompt)
    plain = net.decode(embedding, clicks, previous, torch.zeros_like(prompt))
    swapped = net.decode(embedding, clicks, previous, prompt.flip(0))
    others = net.decode(net.encode(seen[0], seen[1].flip(3)), clicks, previous, prompt)
    for other in (plain, swapped, others):
        assert (other - first).abs().max() > 0.1 * first.std()


@torch.no_grad()
def test_no_words_are_neutral_whatever_was_learnt():
    net = opened(tiny())
    seen, wanted = view(), asked(words=False)
    with_words = net(*seen, *wanted)
    for film in net.film:
        nn.init.zeros_(film.scale_shift.weight)
    assert torch.equal(net(*seen, *wanted), with_words)


@torch.no_grad()
def test_clicks_count_and_their_order_does_not():
    net = opened(tiny())
    embedding, (clicks, previous, prompt) = net.encode(*view()), asked()
    first = net.decode(embedding, clicks, previous, prompt)
    assert torch.equal(net.decode(embedding, clicks[:, torch.randperm(24)], previous, prompt), first)
    opposite = clicks * torch.tensor([1.0, 1.0, -1.0])
    moved = clicks + torch.tensor([8.0, 8.0, 0.0])
    for other in (opposite, moved, torch.zeros_like(clicks)):
        assert (net.decode(embedding, other, previous, prompt) - first).abs().max() > 1e-3
    assert (net.decode(embedding, clicks, previous * 0, prompt) - first).abs().max() > 1e-3


def test_training_moves_every_part():
    net = tiny().train()
    seen, wanted = view(), asked()
    target = (torch.rand(2, 32, 48) > 0.7).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(net(*seen, *wanted), target)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    still = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


@torch.no_grad()
def test_attention_stays_in_its_windows_but_for_global_blocks():
    size = ClickSize(dims=8, depth=1, heads=2, attention_cells=2)
    net = WindowedTransformer((4, 4), size)
    image = torch.randn(1, 3, 64, 96)  # 4 x 6 patches in windows of 2 x 2
    first = net(image)
    touched = image.clone()
    touched[:, :, 32:, 64:] += 1.0  # the last window
    changed = (net(touched) - first).abs().amax(dim=(0, 1)) > 1e-6
    want = torch.zeros(4, 6, dtype=torch.bool)
    want[2:, 4:] = True
    assert torch.equal(changed, want)
    # A window is computed as an image of its own would be.
    alone = WindowedTransformer((2, 2), size)
    alone.load_state_dict({**net.state_dict(), "pos_embed": net.pos_embed[:, [10, 11, 14, 15]]})
    square = net(image[..., :64])[..., 2:, 2:]
    torch.testing.assert_close(alone(image[..., 32:, 32:64]), square, atol=1e-5, rtol=1e-5)
    net.global_every = 1
    assert bool(((net(touched) - net(image)).abs().amax(dim=(0, 1)) > 1e-7).all())


@torch.no_grad()
def test_without_windows_it_is_the_plain_transformer_before_its_norm():
    plain = VisionTransformer((4, 4), 8, 3, 2)
    windowed = WindowedTransformer((4, 4), ClickSize(dims=8, depth=3, heads=2, attention_cells=4))
    kept = {name: value for name, value in plain.state_dict().items() if not name.startswith("norm.")}
    windowed.load_state_dict(kept)
    image, tokens = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 8)
    normed = F.layer_norm(windowed(image, tokens).permute(0, 2, 3, 1), (8,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(normed, plain(image, tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_head_is_concatenate_then_mix():
    head = SimpleClickHead((4, 8, 8, 12), dims=8)
    levels = SimpleClickPyramid(16, (4, 8, 8, 12))(torch.randn(2, 16, 4, 6))
    assert [tuple(x.shape[1:]) for x in levels] == [(4, 16, 24), (8, 8, 12), (8, 4, 6), (12, 2, 3)]
    reduced = [F.relu(conv(x)) for conv, x in zip(head.convs, levels, strict=True)]
    stacked = torch.cat([F.interpolate(r, size=(16, 24), mode="bilinear", align_corners=False) for r in reduced], 1)
    torch.testing.assert_close(head(levels), head.logit(F.relu(head.fusion(stacked))), atol=1e-5, rtol=1e-5)


def test_full_size():
    with torch.device("meta"):
        net = PaperClicks()
        embedding = net.encode(
            torch.empty(1, 448, 448, 3, dtype=torch.uint8),
            torch.empty(1, 512, 56, 56),
        )
        out = net.decode(embedding, torch.empty(1, 24, 3), torch.empty(1, 1, 112, 112), torch.empty(1, 384))
    assert out.shape == (1, 224, 224)
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()} == {
        "image_branch": 97_067_969,
        "residual_branch": 10_710_944,
        "film": 1_474_560,
    }


def test_bad_inputs_are_named():
    net = tiny()
    seen = view()
    with pytest.raises(UsageError, match="48 x 96 px; both must be multiples of 32"):
        net.encode(seen[0][:, :48], seen[1])
    with pytest.raises(UsageError, match="5 channels, not 6"):
        net.encode(seen[0], seen[1][:, :5])
    with pytest.raises(UsageError, match="72 x 64 px"):
        PaperClicks(6, (72, 64), TINY)
    with pytest.raises(UsageError, match="7 dims"):
        SimpleClickPyramid(7, (4, 8, 8, 12))


class Encode(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, frames, relative):
        return tuple(self.net.encode(frames, relative).values())


class Decode(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image, residual4, residual8, residual16, residual32, clicks, previous, prompt):
        parts = (image, residual4, residual8, residual16, residual32)
        return self.net.decode(dict(zip(self.net.encode_outputs, parts, strict=True)), clicks, previous, prompt)


def exported(module, arguments, names, outputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module, arguments, dynamo=True, input_names=list(names), output_names=list(outputs), verbose=False
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(names)
    assert [o.name for o in session.get_outputs()] == list(outputs)
    return lambda values: session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})


@torch.no_grad()
def test_both_graphs_compute_what_torch_computes():
    net = opened(tiny())  # 64 x 96 px: positions resized, windows of 2 x 2 patches
    sizes = (64, 96, 1)
    run_encode = exported(Encode(net), view(*sizes), net.encode_inputs, net.encode_outputs)
    first = net.encode(*view(*sizes))
    decode_names = (*net.encode_outputs, "clicks", "previous", "prompt")
    run_decode = exported(Decode(net), (*first.values(), *asked(*sizes)), decode_names, ("logits",))
    seen, wanted = view(*sizes), asked(*sizes)
    embedding = net.encode(*seen)
    for got, want in zip(run_encode(seen), embedding.values(), strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=1e-4)
    want = net.decode(embedding, *wanted).numpy()
    (got,) = run_decode((*embedding.values(), *wanted))
    np.testing.assert_allclose(got, want, atol=1e-3 * want.std())
    assert want.std() > 1e-2
