import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from adclick_edge.training.loss import mask_loss, normalised_focal_loss, soft_dice_loss


def plain_focal(logits: np.ndarray, target: np.ndarray, alpha: float, gamma: float) -> float:
    """The definition, pixel by pixel in float64: sum of alpha_t * w * -log(p_t), w = (1-p_t)^gamma / mean of it."""
    focus, terms = [], []
    for logit, truth in zip(logits.ravel().tolist(), target.ravel().tolist(), strict=True):
        signed = logit if truth else -logit
        p_true = 1 / (1 + math.exp(-signed))
        cross_entropy = math.log1p(math.exp(-abs(signed))) + max(-signed, 0.0)
        focus.append((1 - p_true) ** gamma)
        terms.append((alpha if truth else 1 - alpha) * focus[-1] * cross_entropy)
    scale = len(focus) / max(sum(focus), 1e-4 * len(focus))
    return scale * sum(terms) / len(terms)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), alpha=st.sampled_from([0.25, 0.5, 0.8]), gamma=st.sampled_from([1.0, 2.0, 3.0]))
def test_normalised_focal_loss_is_its_definition(seed: int, alpha: float, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (2, 3, 5)).astype(np.float32)
    target = (rng.random((2, 3, 5)) < 0.3).astype(np.float32)
    found = normalised_focal_loss(torch.from_numpy(logits), torch.from_numpy(target), alpha=alpha, gamma=gamma)
    expected = [plain_focal(a.astype(np.float64), t, alpha, gamma) for a, t in zip(logits, target, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-6)


def test_focal_loss_does_not_vanish_as_easy_pixels_are_learnt() -> None:
    """What the normalisation is for: one wrong pixel among many right ones keeps its gradient."""
    target = torch.zeros(1, 32, 32)
    target[0, 4, 4] = 1
    logits = torch.full((1, 32, 32), -8.0, requires_grad=True)
    normalised_focal_loss(logits, target).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 4, 4] < -0.1
    assert logits.grad[0, 0, 0].abs() < 1e-3


def test_dice_of_perfect_wrong_and_half_masks() -> None:
    target = torch.zeros(4, 8, 8)
    target[:3, :4] = 1
    logits = torch.where(target > 0, 50.0, -50.0)
    logits[1] = -logits[1]
    logits[2, :, 4:] = -50.0  # the left half of the defect
    found = soft_dice_loss(logits, target)
    np.testing.assert_allclose(found.numpy(), [0, 1 - 1 / 65, 1 - 33 / 49, 0], atol=1e-6)


def test_dice_of_a_picture_without_defect_is_zero_and_has_no_gradient() -> None:
    logits = torch.randn(2, 4, 4, requires_grad=True)
    soft_dice_loss(logits, torch.zeros(2, 4, 4)).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("extreme", [0.0, 30.0, -30.0, 1e4, -1e4])
@pytest.mark.parametrize("truth", ["empty", "full", "mixed"])
def test_loss_and_gradient_are_finite_at_extreme_logits(extreme: float, truth: str) -> None:
    masks = torch.zeros(2, 8, 8)
    if truth != "empty":
        masks[:, : 8 if truth == "full" else 3] = 1
    logits = torch.full((2, 4, 4), extreme, requires_grad=True)
    loss = mask_loss(logits, masks)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_mask_loss_is_over_the_full_size_and_falls_along_its_gradient() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 16, 16)
    masks[0, 3:9, 4:6] = 1
    logits = torch.randn(2, 4, 4, requires_grad=True)
    full = interpolate(logits[:, None], size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    by_hand = (normalised_focal_loss(full, masks) + 0.5 * soft_dice_loss(full, masks)).mean()
    loss = mask_loss(logits, masks)
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    assert logits.grad is not None
    with torch.no_grad():
        assert mask_loss(logits - 0.1 * logits.grad, masks) < loss
