"""Batch norms folded into the convolutions before them."""

import copy
from itertools import pairwise

import torch
from torch import nn

__all__ = ["fold_batch_norms", "fold_batch_norms_in_place"]


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of ``module`` without batch norms that computes the same in eval mode, up to rounding.

    A batch norm is folded when the module registered just before it, under the same parent, is a convolution; all
    backbones here are built so.
    """
    folded = copy.deepcopy(module)
    fold_batch_norms_in_place(folded)
    return folded


@torch.no_grad()
def fold_batch_norms_in_place(module: nn.Module) -> None:
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold_pair(conv, norm)
                setattr(parent, name, nn.Identity())


def _fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dtype = conv.weight.dtype
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    before = 0.0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - norm.running_mean.double()) * scale
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias.to(dtype))
