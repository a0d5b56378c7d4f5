"""ADClick-Seg for the edge: residual and image features to an anomaly map, with no clicks (method section 3).

The paper adds a residual branch to a ViT. Here both branches are a few convolutions on the stride-8 grid, over features the
frame's one backbone pass has already computed, and a stride-4 stage that draws the outline.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EdgeSegmenter"]


class ConvNorm(nn.Sequential):
    """k x k convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, relu: bool = True) -> None:
        layers = [
            nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class ResidualBlock(nn.Module):
    """x + conv(conv(x)), the basic block of ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(x + self.second(self.first(x)))
        return out


class EdgeSegmenter(nn.Module):
    """relative residual [N, D, h, w], relative distance [N, 1, h, w], the backbone's maps -> logits [N, 2h, 2w].

    The last convolution starts at zero and the relative distance is added to its output, so that before training the
    map is the distance map, up to a linear change of scale: training starts from what the bank alone can do.
    """

    inputs = ("relative", "relative_distance", "map4", "map8", "map16")

    def __init__(self, dims: int, channels: dict[int, int], width: int) -> None:
        super().__init__()
        half = width // 2
        self.from_residual = ConvNorm(dims + 1, width, 1)
        self.from_map4 = ConvNorm(channels[4], half, 1)
        self.from_map8 = ConvNorm(channels[8], width, 1)
        self.from_map16 = ConvNorm(channels[16], width, 1)
        self.fuse = nn.Sequential(ConvNorm(2 * width, width, 1), ResidualBlock(width))
        self.context = nn.Sequential(ConvNorm(2 * width, width, 1), ResidualBlock(width))
        self.merge = nn.Sequential(ConvNorm(2 * width, width, 1), ResidualBlock(width))
        self.outline = nn.Sequential(ConvNorm(width + half, half, 3), ConvNorm(half, half, 3))
        self.logit = nn.Conv2d(half, 1, 1)
        self.distance_gain = nn.Parameter(torch.tensor(1.0))
        self.distance_offset = nn.Parameter(torch.tensor(4.0))
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)  # type: ignore[arg-type]

    def forward(self, relative: Tensor, relative_distance: Tensor, map4: Tensor, map8: Tensor, map16: Tensor) -> Tensor:
        compressed = torch.cat([torch.log1p(relative), torch.log1p(relative_distance)], dim=1)
        left_over = self.from_residual(compressed)
        fine = self.fuse(torch.cat([left_over, self.from_map8(map8)], dim=1))  # N, width, h, w
        coarse = self.context(torch.cat([F.max_pool2d(fine, 2), self.from_map16(map16)], dim=1))
        merged = self.merge(torch.cat([fine, _double(coarse)], dim=1))
        outlined = self.outline(torch.cat([_double(merged), self.from_map4(map4)], dim=1))  # N, half, 2h, 2w
        logits: Tensor = self.logit(outlined) + self.distance_gain * _double(relative_distance) - self.distance_offset
        return logits.squeeze(1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
