"""ResNets to stride 16 (He et al. 2016, arXiv 1512.03385; wide: Zagoruyko & Komodakis 2016, arXiv 1605.07146).

Parameters carry torchvision's names, so its weight files fit; layer4 and the classifier are neither computed nor read.
"""

import torch
from torch import nn

from adclick_edge.features.backbones.base import Backbone

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"]


class _Basic(nn.Module):
    """3x3, 3x3 and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, width_factor: int) -> None:
        super().__init__()
        del width_factor
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, width_factor: int) -> None:
        super().__init__()
        width, outputs = planes * width_factor, planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(Backbone):
    """layer1, layer2 and layer3 of a ResNet: strides 4, 8 and 16."""

    def __init__(
        self, block: type[_Basic] | type[_Bottleneck], depths: tuple[int, int, int], width_factor: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        e = block.expansion
        self.layer1 = _layer(block, 64, 64, depths[0], 1, width_factor)
        self.layer2 = _layer(block, 64 * e, 128, depths[1], 2, width_factor)
        self.layer3 = _layer(block, 128 * e, 256, depths[2], 2, width_factor)
        self.channels = {4: 64 * e, 8: 128 * e, 16: 256 * e}
        self.eval()

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        stride4 = self.layer1(x)
        stride8 = self.layer2(stride4)
        return {4: stride4, 8: stride8, 16: self.layer3(stride8)}


def _layer(
    block: type[_Basic] | type[_Bottleneck], inputs: int, planes: int, depth: int, stride: int, width_factor: int
) -> nn.Sequential:
    blocks = [block(inputs, planes, stride, width_factor)]
    blocks += [block(planes * block.expansion, planes, 1, width_factor) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def resnet18() -> ResNet:
    return ResNet(_Basic, (2, 2, 2), 1)


def resnet34() -> ResNet:
    return ResNet(_Basic, (3, 4, 6), 1)


def resnet50() -> ResNet:
    return ResNet(_Bottleneck, (3, 4, 6), 1)


def wide_resnet50_2() -> ResNet:
    return ResNet(_Bottleneck, (3, 4, 6), 2)
