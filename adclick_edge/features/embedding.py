"""From the maps of a backbone to one vector per cell of the stride-8 grid (method 1.2)."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError

__all__ = ["GRID_STRIDE", "ConcatEmbedding", "FoldedPatchEmbedding", "PatchEmbedding", "unfolded_patch_embedding"]

GRID_STRIDE = 8  # pixels per cell of the grid that features, bank and residual live on


class PatchEmbedding(Protocol):
    """Turns maps ``{stride: f32 [N, C, H / stride, W / stride]}`` into features f32 [N, dims, H / 8, W / 8].

    The stride-8 map must be there: its size is the size of the grid.
    """

    @property
    def dims(self) -> int: ...

    def __call__(self, maps: Mapping[int, Tensor], /) -> Tensor: ...


class FoldedPatchEmbedding(nn.Module):
    """The paper's embedding as one fixed 3x3 convolution per map, a resize and a sum (method 1.2).

    ``unfolded_patch_embedding`` spells out what it computes. Two facts make the folding exact. Both poolings average
    fixed sets of consecutive entries of the vector of one position, so together they are one matrix
    ``[dims, layers * C * 9]``, whose columns for one map are a 3x3 convolution. And the resize mixes positions with
    weights that are the same for every entry, so it commutes with that matrix; the 3x3 neighbourhood itself is taken
    before the resize, on each map's own grid with zeros around it, and so is the convolution.

    A map touches only a run of the ``dims`` outputs (a third of them for three maps); only those are computed.

    ``channels`` is ``{stride: C}``; maps are stacked in ascending order of stride. The weights are constants and are
    not part of ``state_dict``. Raises UsageError when stride 8 is missing, or a map is or has the wrong channels.
    """

    def __init__(self, channels: Mapping[int, int], layer_dims: int = 1024, dims: int = 512) -> None:
        super().__init__()
        self.strides = _checked_strides(channels, channels)
        self.channels = dict(channels)
        self.dims = dims
        self.first_output: dict[int, int] = {}
        pool_layers = _average_pool_matrix(len(self.strides) * layer_dims, dims)
        for layer, stride in enumerate(self.strides):
            share = pool_layers[:, layer * layer_dims : (layer + 1) * layer_dims]  # [dims, layer_dims]
            used = share.any(dim=1).nonzero().flatten()
            first, last = int(used[0]), int(used[-1])
            self.first_output[stride] = first
            weight = share[first : last + 1] @ _average_pool_matrix(channels[stride] * 9, layer_dims)
            kernel = weight.reshape(-1, channels[stride], 3, 3).float()
            self.register_buffer(f"kernel_{stride}", kernel, persistent=False)

    def forward(self, maps: Mapping[int, Tensor]) -> Tensor:
        _check_maps(maps, self.strides, self.channels)
        size = maps[GRID_STRIDE].shape[-2:]
        features = None
        for stride in self.strides:
            part = F.conv2d(maps[stride], self.get_buffer(f"kernel_{stride}"), padding=1)
            part = _to_grid(part, stride, size)
            first = self.first_output[stride]
            part = F.pad(part, (0, 0, 0, 0, first, self.dims - first - part.shape[1]))
            features = part if features is None else features + part
        assert features is not None
        return features


class ConcatEmbedding(nn.Module):
    """A cheap embedding for small backbones: 3x3 means of a few maps, resized to the stride-8 grid and concatenated.

    At the border the mean is over the cells inside the map only (4 or 6 instead of 9, ``count_include_pad=False``), so
    features are not pulled towards zero there. ``dims`` is the sum of the channels of ``strides``, in that order.
    There are no weights.

    ``channels`` is ``{stride: C}`` of all maps of the backbone. Raises UsageError when stride 8 is not among
    ``strides``, or a map is missing or has the wrong channels.
    """

    def __init__(self, channels: Mapping[int, int], strides: tuple[int, ...] = (8, 16)) -> None:
        super().__init__()
        _checked_strides(channels, strides)
        self.strides = strides
        self.channels = {stride: channels[stride] for stride in strides}
        self.dims = sum(self.channels.values())

    def forward(self, maps: Mapping[int, Tensor]) -> Tensor:
        _check_maps(maps, self.strides, self.channels)
        size = maps[GRID_STRIDE].shape[-2:]
        parts = [
            _to_grid(F.avg_pool2d(maps[stride], 3, stride=1, padding=1, count_include_pad=False), stride, size)
            for stride in self.strides
        ]
        return torch.cat(parts, dim=1)


def unfolded_patch_embedding(maps: Mapping[int, Tensor], layer_dims: int = 1024, dims: int = 512) -> Tensor:
    """The paper's embedding step by step (method 1.2), to check the folded one against; any float type.

    1. The 3x3 neighbourhood of each position of each map, zeros outside: a vector [C * 9], channel first.
    2. Each of these C * 9 planes resized (bilinear, corners not aligned) to the stride-8 grid.
    3. The vector of each position and map average-pooled to ``layer_dims``, then the maps' vectors laid end to end in
       ascending order of stride and average-pooled to ``dims``.

    The temporaries take about 9 times the memory of the maps.
    """
    size = maps[GRID_STRIDE].shape[-2:]
    layers = []
    for stride in sorted(maps):
        n, c, height, width = maps[stride].shape
        planes = F.unfold(maps[stride], kernel_size=3, padding=1).reshape(n, c * 9, height, width)
        planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        vectors = planes.flatten(2).transpose(1, 2)  # [N, cells, C * 9]
        layers.append(F.adaptive_avg_pool1d(vectors, layer_dims))
    stacked = torch.stack(layers, dim=2).flatten(2)  # [N, cells, layers * layer_dims]
    features = F.adaptive_avg_pool1d(stacked, dims)
    return features.transpose(1, 2).reshape(-1, dims, *size)


def _average_pool_matrix(entries: int, pooled: int) -> Tensor:
    """Adaptive average pooling of a vector as a matrix, float64 [pooled, entries]."""
    matrix = torch.zeros(pooled, entries, dtype=torch.float64)
    for row in range(pooled):
        start, stop = row * entries // pooled, math.ceil((row + 1) * entries / pooled)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


def _to_grid(values: Tensor, stride: int, size: torch.Size) -> Tensor:
    # Decided by the stride, not by comparing sizes: with sizes unknown at export a comparison would fix them.
    if stride == GRID_STRIDE:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _checked_strides(channels: Mapping[int, int], strides: Mapping[int, int] | tuple[int, ...]) -> tuple[int, ...]:
    missing = [stride for stride in strides if stride not in channels]
    if missing:
        raise UsageError(f"patch embedding: no map of stride {missing}; the backbone gives strides {sorted(channels)}")
    if GRID_STRIDE not in strides:
        raise UsageError(f"patch embedding: strides {sorted(strides)} lack {GRID_STRIDE}, the stride of the grid")
    return tuple(sorted(strides))


def _check_maps(maps: Mapping[int, Tensor], strides: tuple[int, ...], channels: Mapping[int, int]) -> None:
    for stride in strides:
        if stride not in maps:
            raise UsageError(f"patch embedding: no map of stride {stride} among {sorted(maps)}")
        if maps[stride].shape[1] != channels[stride]:
            raise UsageError(
                f"patch embedding: the map of stride {stride} has {maps[stride].shape[1]} channels, not "
                f"{channels[stride]}; build the embedding with the channels of this backbone"
            )
