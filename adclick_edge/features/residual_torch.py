"""The nearest residual in PyTorch, for training on either device; same definition as `adclick_edge.features.bank`."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from adclick_edge.features.bank import Bank
from adclick_edge.features.search import TILE_BYTES

__all__ = ["TorchBank", "nearest_residual"]


@dataclass(frozen=True)
class TorchBank:
    """A bank's tensors on one device."""

    centre: Tensor
    projection: Tensor
    cell_code: Tensor
    search: Tensor
    rows: Tensor
    residual_scale: Tensor
    segments: tuple[tuple[int, int], ...]
    """First row and row after the last of each image."""

    @classmethod
    def of(cls, bank: Bank, device: torch.device) -> Self:
        def put(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        images = torch.arange(len(bank.image_hashes), dtype=torch.int32)
        owner = torch.from_numpy(bank.row_image)
        first, last = torch.searchsorted(owner, images), torch.searchsorted(owner, images, right=True)
        return cls(
            put(bank.centre),
            put(bank.projection),
            put(bank.cell_code),
            put(bank.search),
            put(bank.rows),
            put(bank.residual_scale),
            tuple(zip(first.tolist(), last.tolist(), strict=True)),
        )


@torch.no_grad()
def nearest_residual(
    embedding: Tensor, bank: TorchBank, *, exclude_images: list[int] | None = None, tile_bytes: int = TILE_BYTES
) -> tuple[Tensor, Tensor, Tensor]:
    """``(index int64 [N, h, w], distance [N, 1, h, w], residual [N, D, h, w])`` (method section 1.6).

    ``embedding`` float32 [N, D, h, w]. ``exclude_images[n]`` is the bank image that frame n must not match, -1 for
    none: a training image never matches itself, also when it has since been given a defect or turned. Where all rows
    are that image's own, they are searched after all. Position windows and retrieval are not applied.
    """
    frames, dims, height, width = embedding.shape
    cells = embedding.flatten(2).transpose(1, 2)  # N, Q, D
    components = (cells - bank.centre) @ bank.projection
    code = bank.cell_code.expand(frames, -1, -1)
    queries = torch.cat([components, code, components.new_ones(frames, height * width, 1)], dim=2)
    tile = max(1, tile_bytes // (4 * len(bank.rows)))
    found = torch.empty(frames, height * width, dtype=torch.int64, device=embedding.device)
    for n in range(frames):
        own = exclude_images[n] if exclude_images is not None else -1
        for start in range(0, height * width, tile):
            rank = queries[n, start : start + tile] @ bank.search.T
            if own >= 0:
                first, last = bank.segments[own]
                if last - first < len(bank.rows):
                    rank[:, first:last] = torch.inf
            found[n, start : start + tile] = rank.argmin(dim=1)
    residual = (bank.rows[found] - cells).square().transpose(1, 2).reshape(frames, dims, height, width)
    return found.reshape(frames, height, width), residual.sum(dim=1, keepdim=True), residual
