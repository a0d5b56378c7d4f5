"""MobileNetV2 to stride 16 (Sandler et al. 2018, arXiv 1801.04381), with torchvision's parameter names.

Nothing after ``features.13``, the last map of stride 16, is computed or read.
"""

import torch
from torch import nn

from adclick_edge.features.backbones.base import Backbone

__all__ = ["MobileNetV2", "mobilenet_v2"]

# expansion, output channels, repeats, stride of the first
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_STRIDE_BY_INDEX = {3: 4, 6: 8, 13: 16}


def _conv_norm_clip(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class _InvertedResidual(nn.Module):
    """1x1 up, 3x3 per channel, 1x1 down without an activation; a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_norm_clip(inputs, hidden, 1, 1, 1)]
        layers.append(_conv_norm_clip(hidden, hidden, 3, stride, hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class MobileNetV2(Backbone):
    """The last maps of strides 4, 8 and 16: 24, 32 and 96 channels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm_clip(3, 32, 3, 2, 1)]
        inputs = 32
        for expansion, outputs, repeats, first_stride in _STAGES:
            for i in range(repeats):
                layers.append(_InvertedResidual(inputs, outputs, first_stride if i == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.channels = {4: 24, 8: 32, 16: 96}
        self.eval()

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        maps: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _STRIDE_BY_INDEX:
                maps[_STRIDE_BY_INDEX[index]] = x
        return maps


def mobilenet_v2() -> MobileNetV2:
    return MobileNetV2()
