import numpy as np
import pytest
import torch

from adclick_edge.data.clicks import MAX_CLICKS
from adclick_edge.models.adclick import PROMPT_DIMS, EdgeClicks

SIDE = 64
CHANNELS = {4: 6, 8: 10, 16: 12}


@pytest.fixture
def network() -> EdgeClicks:
    """Untrained, but with batch norms that have seen pictures: with fresh ones all maps shrink to nothing."""
    torch.manual_seed(0)
    fresh = EdgeClicks(dims=7, channels=CHANNELS, width=8)
    norms = [m for m in fresh.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        prompt = torch.nn.functional.normalize(torch.randn(2, PROMPT_DIMS), dim=1)
        fresh(**view(9), clicks=clicks((10, 20, 1), (40, 50, -1)), previous=nothing()[0], prompt=prompt)
    return fresh.eval()


def view(seed: int = 0, count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, stride: int) -> torch.Tensor:
        return torch.rand(count, channels, SIDE // stride, SIDE // stride, generator=generator)

    return {
        "frames": torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator),
        **{f"map{stride}": maps(c, stride) for stride, c in CHANNELS.items()},
        "relative": maps(7, 8),
        "relative_distance": maps(1, 8),
    }


def clicks(*rows: tuple[float, float, float], count: int = 2) -> torch.Tensor:
    out = torch.zeros(count, MAX_CLICKS, 3)
    out[:, : len(rows)] = torch.tensor(rows)
    return out


def nothing(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(count, 1, SIDE // 4, SIDE // 4), torch.zeros(count, PROMPT_DIMS)


@torch.no_grad()
def test_shapes_are_those_of_the_contract(network: EdgeClicks) -> None:
    embedding = network.encode(**view())
    assert tuple(embedding) == network.encode_outputs
    assert [embedding[name].shape[-1] for name in network.encode_outputs] == [16, 32, 16, 8]
    logits = network.decode(embedding, clicks((10, 20, 1)), *nothing())
    assert logits.shape == (2, SIDE // 2, SIDE // 2)


@torch.no_grad()
def test_keys_have_unit_length_per_head(network: EdgeClicks) -> None:
    keys = network.encode(**view())["keys"].reshape(2, 4, 16, -1)
    torch.testing.assert_close(keys.norm(dim=2), torch.ones(2, 4, 256), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_order_of_clicks_does_not_matter(network: EdgeClicks) -> None:
    embedding = network.encode(**view())
    rows = [(10.0, 20.0, 1.0), (40.0, 8.0, -1.0), (31.0, 33.0, 1.0), (2.0, 60.0, -1.0)]
    first = network.decode(embedding, clicks(*rows), *nothing())
    turned = clicks(*rows)[:, torch.randperm(MAX_CLICKS, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(network.decode(embedding, turned, *nothing()), first, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_unused_rows_say_nothing_wherever_they_point(network: EdgeClicks) -> None:
    embedding = network.encode(**view())
    used = clicks((10, 20, 1))
    padded = used.clone()
    padded[:, 1:, :2] = 33.0
    torch.testing.assert_close(
        network.decode(embedding, padded, *nothing()), network.decode(embedding, used, *nothing())
    )


@torch.no_grad()
@pytest.mark.parametrize("change", ["place", "sign", "more", "previous", "prompt"])
def test_every_input_of_decode_matters(network: EdgeClicks, change: str) -> None:
    embedding = network.encode(**view())
    previous, prompt = nothing()
    base = network.decode(embedding, clicks((10, 20, 1)), previous, prompt)
    given = {
        "place": clicks((40, 50, 1)),
        "sign": clicks((10, 20, -1)),
        "more": clicks((10, 20, 1), (40, 50, -1)),
    }.get(change, clicks((10, 20, 1)))
    if change == "previous":
        previous = torch.rand(previous.shape)
    if change == "prompt":
        prompt = torch.nn.functional.normalize(torch.randn(prompt.shape), dim=1)
    assert (network.decode(embedding, given, previous, prompt) - base).abs().max() > 1e-4


@torch.no_grad()
def test_two_prompts_give_different_masks_of_an_untrained_network(network: EdgeClicks) -> None:
    embedding = network.encode(**view())
    first, second = torch.nn.functional.normalize(torch.randn(2, 1, PROMPT_DIMS), dim=2).expand(2, 2, -1)
    previous, _ = nothing()
    one = network.decode(embedding, clicks((10, 20, 1)), previous, first)
    other = network.decode(embedding, clicks((10, 20, 1)), previous, second)
    # The paper's network moved by 3e-5 of the logits' spread (method section 2).
    assert (one - other).std() > 1e-3 * one.std()


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_each_other(network: EdgeClicks) -> None:
    both = view()
    alone = {name: value[1:] for name, value in both.items()}
    given = clicks((10, 20, 1), (50, 5, -1))
    together = network.decode(network.encode(**both), given, *nothing())
    single = network.decode(network.encode(**alone), given[1:], *nothing(1))
    torch.testing.assert_close(together[1:], single, atol=1e-5, rtol=1e-5)


def test_every_weight_learns(network: EdgeClicks) -> None:
    network.train()
    prompt = torch.nn.functional.normalize(torch.randn(2, PROMPT_DIMS), dim=1)
    for _ in range(2):  # the scale of FiLM starts at zero: what feeds it learns from the second step on
        logits = network(**view(), clicks=clicks((10, 20, 1), (40, 50, -1)), previous=nothing()[0], prompt=prompt)
        network.zero_grad()
        (logits * torch.linspace(-1, 1, SIDE // 2)).sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter -= 1e-3 * parameter.grad
    still = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    assert still == []


@torch.no_grad()
def test_a_click_pulls_up_what_looks_like_its_place() -> None:
    """The likeness maps are a nearest-neighbour search by construction, before any training."""
    from adclick_edge.models.adclick import HEADS, KEY_DIMS, _click_maps

    keys = torch.zeros(1, HEADS, KEY_DIMS, 16, 16)
    keys[:, :, 0], keys[:, :, 0, :, 8:], keys[:, :, 1, :, 8:] = 1, 0, 1  # left half one texture, right half another
    maps = _click_maps(keys.reshape(1, -1, 16, 16), clicks((30, 8, 1), (30, 56, -1), count=1)).numpy()[0]
    like_positive, like_negative = maps[5], maps[5 + HEADS]
    np.testing.assert_allclose(like_positive[:, :7], 1, atol=0.02)
    np.testing.assert_allclose(like_positive[:, 9:], 0, atol=0.02)
    np.testing.assert_allclose(like_negative[:, 9:], 1, atol=0.02)
