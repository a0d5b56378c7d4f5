import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import UsageError
from adclick_edge.models.swin import SwinBlock

DIMS, HEADS = 8, 2


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_block(window, shifted, seed):
    torch.manual_seed(seed)
    block = SwinBlock(DIMS, HEADS, window, shifted).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return block


def window_of(cell, size, window, shifted):
    """Number of the window that a cell of one axis falls in; a shift cuts the first window short."""
    return (cell - window // 2) // window if shifted and size > window else cell // window


def by_hand(block, image, window, shifted):
    """Cell by cell: attention over the cells of the same window, bias looked up by the offset."""
    p = block.state_dict()
    _, height, width = image.shape
    x = image.permute(1, 2, 0)
    y = F.layer_norm(x, (DIMS,), p["norm1.weight"], p["norm1.bias"])
    query, key, value = (y @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]).split(DIMS, dim=-1)
    table = p["attn.relative_position_bias_table"].reshape(2 * window - 1, 2 * window - 1, HEADS)
    cells = [(i, j) for i in range(height) for j in range(width)]
    group = {(i, j): (window_of(i, height, window, shifted), window_of(j, width, window, shifted)) for i, j in cells}
    mixed = torch.zeros_like(x)
    side = DIMS // HEADS
    for i, j in cells:
        peers = [cell for cell in cells if group[cell] == group[i, j]]
        for head in range(HEADS):
            part = slice(head * side, (head + 1) * side)
            scores = torch.stack(
                [
                    query[i, j, part] @ key[a, b, part] / side**0.5
                    + table[i - a + window - 1, j - b + window - 1, head]
                    for a, b in peers
                ]
            )
            mixed[i, j, part] = torch.softmax(scores, 0) @ torch.stack([value[a, b, part] for a, b in peers])
    x = x + mixed @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    y = F.layer_norm(x, (DIMS,), p["norm2.weight"], p["norm2.bias"])
    y = F.gelu(y @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]) @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
    return (x + y).permute(2, 0, 1)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(2, 4), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_equals_windows_by_hand(height, width, window, shifted, seed):
    block = random_block(window, shifted, seed)
    images = torch.randn(2, DIMS, height, width)
    with torch.no_grad():
        got = block(images)
        assert got.shape == images.shape
        torch.testing.assert_close(got[1], by_hand(block, images[1], window, shifted), atol=2e-4, rtol=2e-4)


def reach(block, size, cell):
    """Cells of a size x size map whose output depends on ``cell``."""
    images = torch.randn(1, DIMS, size, size, requires_grad=True)
    out = block(images)
    seen = set()
    for i in range(size):
        for j in range(size):
            (gradient,) = torch.autograd.grad(out[0, :, i, j].sum(), images, retain_graph=True)
            if gradient[0, :, cell[0], cell[1]].abs().max() > 0:
                seen.add((i, j))
    return seen


def test_shift_joins_neighbouring_windows_and_not_opposite_edges():
    plain = reach(random_block(4, False, 1), 8, (3, 3))
    assert plain == {(i, j) for i in range(4) for j in range(4)}
    shifted = reach(random_block(4, True, 1), 8, (3, 3))
    assert shifted == {(i, j) for i in range(2, 6) for j in range(2, 6)}
    corner = reach(random_block(4, True, 1), 8, (0, 0))
    assert corner == {(i, j) for i in range(2) for j in range(2)}


def test_half_precision_hides_too():
    block = random_block(4, True, 2)
    images = torch.randn(1, DIMS, 6, 10)
    with torch.no_grad():
        want = block(images)
        got = block.to(torch.bfloat16)(images.to(torch.bfloat16)).float()
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def test_bad_heads_are_named():
    with pytest.raises(UsageError, match="10 dims do not divide into 4 heads"):
        SwinBlock(10, 4)
