"""The network of the paper's size, for the `paper` preset: ViT-B/16 with a residual branch (method sections 2 and 3).

::

    image    -> ViT -> pyramid ---------------------------------------------> (+) -> head -> logits
    residual -> 1x1, 1/4 grid, norm -> 2 Swin blocks -> pyramid -> 1x1 of 0 ---^
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError
from adclick_edge.models.pyramid import LEVEL_STRIDES, FeaturePyramid, LayerNorm2d, LevelDims, StridedPyramid
from adclick_edge.models.swin import SwinBlock
from adclick_edge.models.vit import VisionTransformer

__all__ = ["PaperHead", "PaperSegmenter", "PaperSize", "PaperTrunk", "ResidualBranch"]


@dataclass(frozen=True, kw_only=True)
class PaperSize:
    """Widths of the network; the defaults are the paper's (ViT-B/16)."""

    dims: int = 768  # of the ViT, as depth and heads
    depth: int = 12
    heads: int = 12
    level_dims: LevelDims = (128, 256, 512, 1024)
    branch_dims: int = 512  # of the residual branch, as branch_heads and window
    branch_heads: int = 16
    window: int = 8
    head_dims: int = 256


class ResidualBranch(nn.Module):
    """Residual f32 [N, residual_dims, H / 8, W / 8] to four maps that are added to the image's pyramid.

    The last convolution of each level starts at zero, so before training the branch adds nothing (method section 2).
    """

    def __init__(
        self, residual_dims: int, level_dims: LevelDims, dims: int = 512, heads: int = 16, window: int = 8
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(residual_dims, dims, 1)
        self.norm = LayerNorm2d(dims)
        self.blocks = nn.Sequential(SwinBlock(dims, heads, window), SwinBlock(dims, heads, window, shifted=True))
        self.pyramid = StridedPyramid(dims)
        self.fuse = nn.ModuleList(nn.Conv2d(dims, out, 1) for out in level_dims)
        for layer in self.fuse:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, residual: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """``size`` is (H / 4, W / 4)."""
        # The paper resizes first. A 1x1 convolution commutes with the resize and costs a quarter here.
        x = F.interpolate(self.reduce(residual), size=size, mode="bilinear", align_corners=False)
        levels = self.pyramid(self.blocks(self.norm(x)))
        return [fuse(level) for fuse, level in zip(self.fuse, levels, strict=True)]


class PaperTrunk(nn.Module):
    """Image and residual to one pyramid, with or without clicks. Arguments as of ``PaperSegmenter``."""

    def __init__(self, residual_dims: int, input_size: tuple[int, int], size: PaperSize) -> None:
        super().__init__()
        _check_input_size(*input_size)
        self.residual_dims = residual_dims
        grid = (input_size[0] // 16, input_size[1] // 16)
        self.image_branch = VisionTransformer(grid, size.dims, size.depth, size.heads)
        self.pyramid = FeaturePyramid(size.dims, size.level_dims)
        self.residual_branch = ResidualBranch(
            residual_dims, size.level_dims, size.branch_dims, size.branch_heads, size.window
        )

    def forward(self, image: Tensor, residual: Tensor, tokens: Tensor | None = None) -> list[Tensor]:
        """Four maps f32 [N, level_dims[i], H / LEVEL_STRIDES[i], W / LEVEL_STRIDES[i]].

        ``tokens`` as of ``VisionTransformer.forward``: what clicks add to the patches. Raises UsageError for an image
        whose sides are not multiples of 32, or a residual of other channels.
        """
        height, width = image.shape[-2:]
        _check_input_size(height, width)
        if residual.shape[1] != self.residual_dims:
            raise UsageError(f"paper network: the residual has {residual.shape[1]} channels, not {self.residual_dims}")
        image_levels = self.pyramid(self.image_branch(image, tokens))
        residual_levels = self.residual_branch(residual, (height // 4, width // 4))
        return [a + b for a, b in zip(image_levels, residual_levels, strict=True)]


class PaperHead(nn.Module):
    """Four maps at LEVEL_STRIDES to logits f32 [N, 1, H / 4, W / 4] (method section 2).

    Per level a 1x1 convolution to ``dims``; then all levels resized to the 1/4 grid, concatenated and mixed by a 1x1
    convolution; then one logit. The mixing convolution is held in one part per level and applied before the resize,
    with which it commutes: the same sum, at a third of the cost and without the concatenated map.
    """

    def __init__(self, level_dims: LevelDims, dims: int = 256) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dims, 1), LayerNorm2d(dims), nn.GELU()) for width in level_dims
        )
        self.mix = nn.ModuleList(nn.Conv2d(dims, dims, 1, bias=False) for _ in level_dims)
        self.norm = LayerNorm2d(dims)
        self.logit = nn.Conv2d(dims, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        size = levels[0].shape[-2:]
        mixed = [mix(reduce(level)) for mix, reduce, level in zip(self.mix, self.reduce, levels, strict=True)]
        total: Tensor = mixed[0]
        for part in mixed[1:]:
            total = total + F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.logit(F.gelu(self.norm(total)))
        return logits


class PaperSegmenter(nn.Module):
    """ADClick-Seg at the paper's size: trunk and head, no clicks. 101.7 M parameters at the defaults, 85 % of them the
    ViT's.

    ``residual_dims`` are the channels of the residual. ``input_size`` is (height, width) in px, multiples of 32; other
    sizes work too, with the position embedding resized. Distances are not an input: the residual summed over its
    channels is the same map (method 1.6).
    """

    inputs = ("image", "residual")

    def __init__(
        self, residual_dims: int = 512, input_size: tuple[int, int] = (448, 448), size: PaperSize | None = None
    ) -> None:
        super().__init__()
        size = size or PaperSize()
        self.trunk = PaperTrunk(residual_dims, input_size, size)
        self.head = PaperHead(size.level_dims, size.head_dims)

    def forward(self, image: Tensor, residual: Tensor) -> Tensor:
        """Logits f32 [N, H / 4, W / 4], raw, of image f32 [N, 3, H, W], normalised, and residual f32
        [N, residual_dims, H / 8, W / 8]. Raises UsageError as ``PaperTrunk`` does.
        """
        logits: Tensor = self.head(self.trunk(image, residual))
        return logits[:, 0]


def _check_input_size(height: int, width: int) -> None:
    if height % LEVEL_STRIDES[-1] or width % LEVEL_STRIDES[-1]:
        raise UsageError(f"paper network: the image is {height} x {width} px; both must be multiples of 32")
