"""What every backbone is: pictures in, feature maps by stride out."""

from typing import ClassVar

import torch
from torch import nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Backbone"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A frozen feature extractor.

    ``forward``: float32 [N, 3, H, W], RGB in 0..1 less ``mean`` over ``std`` -> {stride: float32 [N, C, H', W']} with
    ``C = channels[stride]`` and ``H' = ceil(H / stride)``. Always in eval mode:
    batch norms use their stored statistics.
    """

    channels: dict[int, int]
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode, whatever the network around it does: a bank fits only the statistics it was made with."""
        del mode
        super().train(False)
        return self
