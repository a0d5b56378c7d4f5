"""SimpleClick (Liu et al., 2023), the image branch of the paper's click network: image, clicks and previous mask to
logits (method section 2).

::

    image ------------------------> patches --(+)-> ViT -> pyramid -> head -> logits
    [previous, positive, negative] -> patches --^

Written to compute what published SimpleClick checkpoints were trained for, so that they can be loaded by name
(``models/simpleclick.py``): attention inside windows but in every sixth block, no norm after the blocks, group norms of one
group in the pyramid, no norm in the head.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError
from adclick_edge.models.paper_seg import PaperSize
from adclick_edge.models.pyramid import LEVEL_STRIDES, LevelDims
from adclick_edge.models.vit import VisionTransformer, resized_positions

__all__ = [
    "ClickSize",
    "SimpleClickHead",
    "SimpleClickNetwork",
    "SimpleClickPyramid",
    "WindowedTransformer",
    "check_input_size",
]


@dataclass(frozen=True, kw_only=True)
class ClickSize(PaperSize):
    """``PaperSize`` with how the ViT attends: in windows of about ``attention_cells`` patches a side (224 px, the size
    its weights were first trained at), and over the whole image in every ``global_every``-th block."""

    attention_cells: int = 14
    global_every: int = 6


class WindowedTransformer(VisionTransformer):
    """``VisionTransformer`` that attends inside windows, but for every ``global_every``-th block, and has no last norm.

    Each side is cut into as many equal windows as hold at least ``attention_cells`` patches; one window if none fits.
    """

    def __init__(self, grid: tuple[int, int], size: ClickSize) -> None:
        super().__init__(grid, size.dims, size.depth, size.heads)
        del self.norm
        self.attention_cells = size.attention_cells
        self.global_every = size.global_every

    def forward(self, image: Tensor, tokens: Tensor | None = None) -> Tensor:
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UsageError(f"vision transformer: {height} x {width} px is not a multiple of {self.patch}")
        h, w = height // self.patch, width // self.patch
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # [N, h * w, dims]
        if tokens is not None:
            x = x + tokens
        x = x + resized_positions(self.pos_embed, self.grid, (h, w))
        cuts = (_window_count(h, self.attention_cells), _window_count(w, self.attention_cells))
        for place, block in enumerate(self.blocks, start=1):
            if place % self.global_every == 0 or cuts == (1, 1):
                x = block(x)
            else:
                x = _joined(block(_windows(x, (h, w), cuts)), (h, w), cuts)
        out: Tensor = x.transpose(1, 2).reshape(-1, self.dims, h, w)
        return out


class SimpleClickPyramid(nn.Module):
    """f32 [N, dims, H / 16, W / 16] to four maps [N, level_dims[i], H / LEVEL_STRIDES[i], W / LEVEL_STRIDES[i]]."""

    def __init__(self, dims: int, level_dims: LevelDims) -> None:
        super().__init__()
        if dims % 2:
            raise UsageError(f"SimpleClick pyramid: {dims} dims; give an even number, they are halved")
        fine, half, coarse = (
            max(2 * level_dims[0], dims // 2),
            max(level_dims[1], dims // 2),
            max(level_dims[3], 2 * dims),
        )
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    *_normed(nn.ConvTranspose2d(dims, fine, 2, stride=2)),
                    nn.GELU(),
                    *_normed(nn.ConvTranspose2d(fine, fine // 2, 2, stride=2)),
                    *_normed(nn.Conv2d(fine // 2, level_dims[0], 1)),
                    nn.GELU(),
                ),
                nn.Sequential(
                    *_normed(nn.ConvTranspose2d(dims, half, 2, stride=2)),
                    *_normed(nn.Conv2d(half, level_dims[1], 1)),
                    nn.GELU(),
                ),
                nn.Sequential(*_normed(nn.Conv2d(dims, level_dims[2], 1)), nn.GELU()),
                nn.Sequential(
                    *_normed(nn.Conv2d(dims, coarse, 2, stride=2)),
                    *_normed(nn.Conv2d(coarse, level_dims[3], 1)),
                    nn.GELU(),
                ),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


class SimpleClickHead(nn.Module):
    """Four maps at LEVEL_STRIDES to logits f32 [N, 1, H / 4, W / 4]: per level 1x1 -> ``dims``, upsample to 1/4,
    concatenate, 1x1, one logit (method section 2).
    """

    def __init__(self, level_dims: LevelDims, dims: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, dims, 1) for width in level_dims)
        self.fusion = nn.Conv2d(len(level_dims) * dims, dims, 1)
        self.logit = nn.Conv2d(dims, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        size = levels[0].shape[-2:]
        # The 1x1 convolution of the concatenated maps, in one part per level and before the resize, with which it
        # commutes: the same sum, a third of the cost, and no concatenated map.
        parts = self.fusion.weight.chunk(len(levels), dim=1)
        mixed = [F.conv2d(F.relu(conv(x)), part) for conv, x, part in zip(self.convs, levels, parts, strict=True)]
        total: Tensor = mixed[0]
        for part in mixed[1:]:
            total = total + F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        assert self.fusion.bias is not None
        logits: Tensor = self.logit(F.relu(total + self.fusion.bias[None, :, None, None]))
        return logits


class SimpleClickNetwork(nn.Module):
    """Image f32 [N, 3, H, W], normalised, and click maps f32 [N, 3, H, W] (previous probability, disks of defect
    clicks, disks of normal clicks) to logits f32 [N, 1, H / 4, W / 4].

    ``input_size`` is (height, width) in px that positions are made for, multiples of 32; other such sizes work too.
    SimpleClick places the logits' corners at the image's corners, this package the cells at their places: a mask drawn
    from the same logits differs by up to 1.5 px at the border.
    """

    def __init__(self, input_size: tuple[int, int], size: ClickSize) -> None:
        super().__init__()
        check_input_size(*input_size)
        self.transformer = WindowedTransformer((input_size[0] // 16, input_size[1] // 16), size)
        self.click_embed = nn.Conv2d(3, size.dims, self.transformer.patch, stride=self.transformer.patch)
        self.pyramid = SimpleClickPyramid(size.dims, size.level_dims)
        self.head = SimpleClickHead(size.level_dims, size.head_dims)

    def levels(self, image: Tensor, click_maps: Tensor) -> list[Tensor]:
        """What the head takes. Raises UsageError for an image whose sides are not multiples of 32."""
        check_input_size(*image.shape[-2:])
        tokens = self.click_embed(click_maps).flatten(2).transpose(1, 2)
        levels: list[Tensor] = self.pyramid(self.transformer(image, tokens))
        return levels

    def forward(self, image: Tensor, click_maps: Tensor) -> Tensor:
        logits: Tensor = self.head(self.levels(image, click_maps))
        return logits


def check_input_size(height: int, width: int) -> None:
    """Raises UsageError unless both sides, in px, are multiples of 32."""
    if height % LEVEL_STRIDES[-1] or width % LEVEL_STRIDES[-1]:
        raise UsageError(f"paper network: the image is {height} x {width} px; both must be multiples of 32")


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, nn.Module]:
    return layer, nn.GroupNorm(1, layer.out_channels)


def _window_count(cells: int, at_least: int) -> int:
    return next(count for count in range(max(1, cells // at_least), 0, -1) if cells % count == 0)


def _windows(x: Tensor, grid: tuple[int, int], cuts: tuple[int, int]) -> Tensor:
    """[N, h * w, dims] -> [N * windows, cells of a window, dims]."""
    (h, w), (rows, columns), dims = grid, cuts, x.shape[-1]
    x = x.reshape(-1, rows, h // rows, columns, w // columns, dims).transpose(2, 3)
    return x.reshape(-1, (h // rows) * (w // columns), dims)


def _joined(x: Tensor, grid: tuple[int, int], cuts: tuple[int, int]) -> Tensor:
    """The inverse of ``_windows``."""
    (h, w), (rows, columns), dims = grid, cuts, x.shape[-1]
    x = x.reshape(-1, rows, columns, h // rows, w // columns, dims).transpose(2, 3)
    return x.reshape(-1, h * w, dims)
