"""The plain vision transformer of the image branch: ViT-B/16 as SimpleClick uses it (method section 2).

Parameters carry the names of the common MAE checkpoints (``patch_embed.proj``, ``pos_embed``, ``blocks.0.attn.qkv``,
``blocks.0.mlp.fc1``, ``norm`` ...), so that an encoder's checkpoint loads with ``load_state_dict``.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError

__all__ = ["Mlp", "VisionTransformer", "resized_positions"]


class Mlp(nn.Module):
    """Two linear layers with GELU between, on the last axis."""

    def __init__(self, dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Attention(nn.Module):
    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dims = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, dims // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # [N, heads, tokens, dims / heads]
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, dims))
        return out


class _Block(nn.Module):
    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=1e-6)
        self.attn = _Attention(dims, heads)
        self.norm2 = nn.LayerNorm(dims, eps=1e-6)
        self.mlp = Mlp(dims, 4 * dims)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, dims: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dims, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image)
        return out


class VisionTransformer(nn.Module):
    """Image f32 [N, 3, H, W], normalised, to one map f32 [N, dims, H / patch, W / patch].

    ``grid`` is the number of patches (down, across) that ``pos_embed`` is made for; at other sizes it is resized
    (bicubic). There is no class token. The defaults are ViT-B/16 at 448 x 448.

    A checkpoint's ``cls_token`` is dropped on loading, and a ``pos_embed`` with a class token's row or of another
    square grid is fitted to this one.
    """

    pos_embed: nn.Parameter  # [1, grid cells, dims]

    def __init__(
        self,
        grid: tuple[int, int] = (28, 28),
        dims: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch: int = 16,
    ) -> None:
        super().__init__()
        if dims % heads:
            raise UsageError(f"vision transformer: {dims} dims do not divide into {heads} heads")
        self.grid = grid
        self.dims = dims
        self.patch = patch
        self.patch_embed = _PatchEmbed(patch, dims)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], dims))
        self.blocks = nn.ModuleList(_Block(dims, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dims, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.register_load_state_dict_pre_hook(_fit_checkpoint)  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor, tokens: Tensor | None = None) -> Tensor:
        """``tokens``, f32 [N, (H / patch) * (W / patch), dims], is added to the patches before the first block:
        the place where clicks enter. Raises UsageError for a size that the patches do not tile.
        """
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UsageError(f"vision transformer: {height} x {width} px is not a multiple of {self.patch}")
        h, w = height // self.patch, width // self.patch
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # [N, h * w, dims]
        x = x + resized_positions(self.pos_embed, self.grid, (h, w))
        if tokens is not None:
            x = x + tokens
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x).transpose(1, 2).reshape(-1, self.dims, h, w)
        return out


def resized_positions(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[1, grid cells, dims] -> [1, size cells, dims]."""
    if grid == size:
        return positions
    as_map = positions.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(as_map, size=size, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def _fit_checkpoint(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Mapping[str, Any], *_: Any
) -> None:
    assert isinstance(module, VisionTransformer)
    state.pop(f"{prefix}cls_token", None)
    positions = state.get(f"{prefix}pos_embed")
    if positions is None or positions.shape == module.pos_embed.shape:
        return
    rows = positions.shape[1]
    side = int(rows**0.5)  # also of side * side + 1 rows
    if rows - side * side not in (0, 1):
        return  # load_state_dict reports the shapes
    state[f"{prefix}pos_embed"] = resized_positions(positions[:, rows - side * side :], (side, side), module.grid)
