"""Maps at strides 4, 8, 16 and 32 from a single map: upwards and downwards from a transformer's stride-16 map (the
simple feature pyramid of ViTDet, Li et al., 2022), or downwards from a stride-4 map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError

__all__ = ["LEVEL_STRIDES", "FeaturePyramid", "LayerNorm2d", "LevelDims", "StridedPyramid"]

LEVEL_STRIDES = (4, 8, 16, 32)

LevelDims = tuple[int, int, int, int]


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position of a map [N, C, H, W]."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        out = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return out.permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """f32 [N, dims, H / 16, W / 16] to four maps [N, level_dims[i], H / LEVEL_STRIDES[i], W / LEVEL_STRIDES[i]].

    Transposed convolutions upwards, max-pooling downwards, a 1x1 convolution and a layer norm on each level.
    """

    def __init__(self, dims: int = 768, level_dims: LevelDims = (128, 256, 512, 1024)) -> None:
        super().__init__()
        if dims % 4:
            raise UsageError(f"feature pyramid: {dims} dims; give a multiple of 4, they are halved twice")
        half, quarter = dims // 2, dims // 4
        steps: tuple[tuple[list[nn.Module], int], ...] = (
            ([_up(dims, half), LayerNorm2d(half), nn.GELU(), _up(half, quarter)], quarter),
            ([_up(dims, half)], half),
            ([], dims),
            ([nn.MaxPool2d(2)], dims),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*step, nn.Conv2d(width, out, 1), LayerNorm2d(out))
            for (step, width), out in zip(steps, level_dims, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


class StridedPyramid(nn.Module):
    """f32 [N, dims, H / 4, W / 4] to four maps [N, dims, H / LEVEL_STRIDES[i], W / LEVEL_STRIDES[i]].

    The first is the map itself; each next halves the one before by a 2x2 convolution, layer norm and GELU.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dims, dims, 2, stride=2), LayerNorm2d(dims), nn.GELU()) for _ in LEVEL_STRIDES[1:]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [x]
        for down in self.downs:
            levels.append(down(levels[-1]))
        return levels


def _up(dims: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(dims, out, 2, stride=2)
