"""Swin block: attention inside square windows of a map, with relative position bias and shifted windows
(Liu et al., 2021). Two of them make the residual branch of the paper's network (method section 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError
from adclick_edge.models.vit import Mlp

__all__ = ["SwinBlock"]

# Added to the scores of cells that must not see each other. Its exp is 0 in every float type, and unlike -inf it fits
# float16 and survives being added to.
_HIDDEN = -1e4


class SwinBlock(nn.Module):
    """f32 [N, dims, H, W] to the same shape, any H and W; at export both are fixed.

    ``shifted`` moves the windows by half a window, so that stacking a plain and a shifted block connects neighbours.
    A map that windows do not tile is padded below and right; padding and cells brought together only by the shift are
    hidden from each other, so the result does not depend on what was padded.
    """

    def __init__(self, dims: int = 512, heads: int = 16, window: int = 8, shifted: bool = False) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dims)
        self.attn = _WindowAttention(dims, heads, window)
        self.norm2 = nn.LayerNorm(dims)
        self.mlp = Mlp(dims, 4 * dims)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = x.permute(0, 2, 3, 1)  # [N, H, W, dims]
        down, right = -height % self.window, -width % self.window
        # A single window along an axis already sees all of it.
        shift = (self.shift if height > self.window else 0, self.shift if width > self.window else 0)
        y = F.pad(self.norm1(x), (0, 0, 0, right, 0, down))
        y = torch.roll(y, (-shift[0], -shift[1]), dims=(1, 2))
        y = self.attn(y, _hidden_pairs(height, width, self.window, shift, x.device))
        y = torch.roll(y, shift, dims=(1, 2))
        x = x + y[:, :height, :width]
        x = x + self.mlp(self.norm2(x))
        return x.permute(0, 3, 1, 2)


class _WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, dims: int, heads: int, window: int) -> None:
        super().__init__()
        if dims % heads:
            raise UsageError(f"swin block: {dims} dims do not divide into {heads} heads")
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        position = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [T, 2], T = window ** 2
        offset = position[:, None] - position[None, :] + window - 1  # [T, T, 2], 0 .. 2 * window - 2
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """x [N, H, W, dims], tiled by windows; ``hidden`` f32 [windows, T, T] or None is added to the scores."""
        n, height, width, dims = x.shape
        rows, columns, side = height // self.window, width // self.window, self.window
        windows, tokens, head_dims = rows * columns, side * side, dims // self.heads
        qkv = self.qkv(x).reshape(n, rows, side, columns, side, 3, self.heads, head_dims)
        # Windows stand beside heads, so that one mask serves all images of the batch.
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, n, windows * self.heads, tokens, head_dims)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [heads, T, T]
        scores = bias[None].expand(windows, -1, -1, -1)
        if hidden is not None:
            scores = scores + hidden[:, None].to(scores.dtype)
        mixed = F.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], attn_mask=scores.reshape(1, windows * self.heads, tokens, tokens)
        )
        mixed = mixed.reshape(n, rows, columns, self.heads, side, side, head_dims).permute(0, 1, 4, 2, 5, 3, 6)
        out: Tensor = self.proj(mixed.reshape(n, height, width, dims))
        return out


def _hidden_pairs(height: int, width: int, window: int, shift: tuple[int, int], device: torch.device) -> Tensor | None:
    """What to add to the scores of each pair of cells, f32 [windows, T, T]; None when no pair is hidden."""
    if height % window == 0 and width % window == 0 and shift == (0, 0):
        return None
    y = _axis_regions(height, window, shift[0], device)
    x = _axis_regions(width, window, shift[1], device)
    region = y[:, None] * 3 + x[None, :]  # [H, W] padded and shifted
    rows, columns = region.shape[0] // window, region.shape[1] // window
    region = region.reshape(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)
    return (region[:, :, None] != region[:, None, :]).float() * _HIDDEN


def _axis_regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one axis, padded and shifted: 0 for cells in their place, 1 for cells the shift wrapped, 2 for padding."""
    padded = size + -size % window
    position = torch.arange(padded, device=device)  # before the shift
    region = torch.where(position < shift, 1, 0)
    region = torch.where(position >= size, 2, region)
    return torch.roll(region, -shift)
