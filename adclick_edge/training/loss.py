"""Losses on defect masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mask_loss", "normalised_focal_loss", "soft_dice_loss"]


def normalised_focal_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Focal loss whose weights sum to the number of pixels, per image (method section 2), float32 [N].

    ``logits`` and ``target`` (0 or 1) are float32 [N, H, W]. Without the normalisation the gradient vanishes as the easy
    pixels, nearly all of an inspection picture, are learnt. alpha weighs defective pixels, 1 - alpha normal ones.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = 1.0 - torch.exp(-cross_entropy)  # 1 - p(true class)
    focus = wrong.pow(gamma)
    weight = torch.where(target > 0.5, alpha, 1.0 - alpha)
    pixels = float(logits[0].numel())
    with torch.no_grad():
        scale = pixels / focus.sum(dim=(1, 2)).clamp_min(1e-4 * pixels)
    return (weight * focus * cross_entropy).mean(dim=(1, 2)) * scale


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the probabilities, per image, float32 [N]; 0 for images without a defect."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    dice = (2.0 * overlap + 1.0) / (total + 1.0)
    return torch.where(target.sum(dim=(1, 2)) > 0, 1.0 - dice, torch.zeros_like(dice))


def mask_loss(logits: Tensor, masks: Tensor, *, dice_weight: float = 0.5) -> Tensor:
    """Mean over images of normalised focal loss + dice_weight * Dice loss, a scalar.

    ``logits`` float32 [N, h4, w4] are enlarged (bilinear) to the masks, float32 [N, H, W]: thin defects keep their share.
    """
    full = F.interpolate(logits[:, None], size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (normalised_focal_loss(full, masks) + dice_weight * soft_dice_loss(full, masks)).mean()
