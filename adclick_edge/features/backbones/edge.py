"""Our own backbone for small CPUs: nothing but 3x3 convolutions and ReLU, which ONNX Runtime runs fastest per MAC.

Trained with a 1x1 kernel and a per-channel identity beside each 3x3 kernel (Ding et al. 2021, RepVGG,
arXiv 2101.03697). Unlike there the branches are summed as kernels, before the convolution (Hu et al. 2022, OREPA,
arXiv 2204.00826): one convolution and one batch norm per layer, so training costs hardly more than inference. For use,
kernels and batch norm fold into a plain convolution.

At 256x256: 0.64 M parameters, 454 M MACs.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from adclick_edge.features.backbones.base import Backbone

__all__ = ["EdgeBackbone", "TrainableEdge", "edge_backbone"]

# output channels and stride of each layer; a map leaves after the last layer of each stride from 4
_LAYERS = ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (96, 1), (128, 2), (128, 1), (128, 1))
_STRIDE_BY_INDEX = {2: 4, 5: 8, 8: 16}
_CHANNELS = {stride: _LAYERS[index][0] for index, stride in _STRIDE_BY_INDEX.items()}


def _run(layers: nn.Sequential, x: torch.Tensor) -> dict[int, torch.Tensor]:
    maps: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        x = torch.relu(layer(x))
        if index in _STRIDE_BY_INDEX:
            maps[_STRIDE_BY_INDEX[index]] = x
    return maps


def _stack(make: Callable[[int, int, int], nn.Module]) -> nn.Sequential:
    layers, inputs = [], 3
    for outputs, stride in _LAYERS:
        layers.append(make(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers)


class EdgeBackbone(Backbone):
    """The form for use: nine plain 3x3 convolutions. Maps of strides 4, 8 and 16 with 48, 96 and 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _stack(lambda inputs, outputs, stride: nn.Conv2d(inputs, outputs, 3, stride, 1))
        self.channels = dict(_CHANNELS)
        self.eval()

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        return _run(self.layers, x)


class _BranchedConv(nn.Module):
    """3x3 + 1x1 (+ identity where the shapes agree), summed as one 3x3 kernel, then a batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight3 = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.weight1 = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        nn.init.kaiming_normal_(self.weight3, nonlinearity="relu")
        nn.init.kaiming_normal_(self.weight1, nonlinearity="relu")
        has_identity = stride == 1 and inputs == outputs
        self.identity = nn.Parameter(torch.ones(outputs)) if has_identity else None
        self.norm = nn.BatchNorm2d(outputs)

    def kernel(self) -> torch.Tensor:
        """The summed kernel, [O, I, 3, 3]."""
        centre: torch.Tensor = self.weight1
        if self.identity is not None:
            centre = centre + torch.diag(self.identity)[:, :, None, None]
        return self.weight3 + functional.pad(centre, (1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(functional.conv2d(x, self.kernel(), None, self.stride, 1))
        return y

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that computes the same in eval mode; in float64 on the way."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = self.kernel().double() * scale[:, None, None, None]
        return weight, norm.bias.double() - norm.running_mean.double() * scale


class TrainableEdge(nn.Module):
    """The form for training; ``forward`` as in EdgeBackbone, batch norms follow ``train`` and ``eval``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _stack(_BranchedConv)
        self.channels = dict(_CHANNELS)

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        return _run(self.layers, x)

    @torch.no_grad()
    def reparameterise(self) -> EdgeBackbone:
        """The form for use that computes what this one does in eval mode (up to rounding)."""
        backbone = EdgeBackbone()
        for branched, plain in zip(self.layers, backbone.layers, strict=True):
            assert isinstance(branched, _BranchedConv)
            assert isinstance(plain, nn.Conv2d)
            assert plain.bias is not None
            weight, bias = branched.plain()
            plain.weight.copy_(weight)
            plain.bias.copy_(bias)
        return backbone


def edge_backbone() -> EdgeBackbone:
    return EdgeBackbone()
