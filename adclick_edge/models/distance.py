"""The segmenter that needs no training: how far each cell is from normal, smoothed (PatchCore's map).

The residual of each channel is taken relative to what normal parts leave on that channel, so that scores of products and
backbones have one scale: about 1 on normal cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DistanceSegmenter", "relative_distance"]


def relative_distance(relative: Tensor) -> Tensor:
    """Root of the mean over channels of the relative residual: float32 [N, 1, h, w] from [N, D, h, w]."""
    return relative.mean(dim=1, keepdim=True).sqrt()


class DistanceSegmenter(nn.Module):
    """relative residual [N, D, h, w] -> map [N, 2h, 2w]."""

    inputs = ("relative",)

    def __init__(self, sigma_cells: float = 0.5) -> None:
        super().__init__()
        # PatchCore smooths by 4 px at full size; on the stride-4 map that is one pixel, half a cell.
        sigma = sigma_cells * 2
        radius = max(1, round(3 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        self.radius = radius
        self.register_buffer("taps", taps / taps.sum(), persistent=False)

    def forward(self, relative: Tensor) -> Tensor:
        distance = relative_distance(relative)
        fine = F.interpolate(distance, scale_factor=2.0, mode="bilinear", align_corners=False)
        taps = self.get_buffer("taps")
        # Borders repeat: zeros around the map would make defects at the edge of a part look weaker.
        padded = F.pad(fine, (self.radius,) * 4, mode="replicate")
        smooth = F.conv2d(F.conv2d(padded, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
        return smooth[:, 0]
