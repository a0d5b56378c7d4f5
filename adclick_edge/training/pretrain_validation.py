"""Which variant is better: nearest-neighbour anomaly detection on procedural worlds that training never draws."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from adclick_edge.features.backbones import IMAGENET_MEAN, IMAGENET_STD
from adclick_edge.training.pretrain_data import Batch, BatchShape, draw_batch
from adclick_edge.training.pretrain_losses import cell_features, nearest_distances

__all__ = ["VALIDATION_SEED", "HeldOut", "as_input", "average_precision", "draw_held_out", "validate"]

VALIDATION_SEED = 20_011


@dataclass(frozen=True)
class HeldOut:
    """Episodes to validate on, one batch of one world each."""

    shape: BatchShape
    episodes: list[Batch]


def draw_held_out(worlds: int, side_px: int = 192, references: int = 4, queries: int = 3) -> HeldOut:
    shape = BatchShape(1, references, queries, side_px)
    return HeldOut(shape, [draw_batch(shape, VALIDATION_SEED, n, validation=True) for n in range(worlds)])


def as_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, S, S, 3] -> normalised float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def validate(backbone: nn.Module, held_out: HeldOut) -> float:
    """Mean over worlds of the average precision of distance maps, at the pixels of a stride-4 grid, in 0..1.

    ``backbone`` maps normalised pictures to maps by stride, on the CPU, and should be in eval mode.
    """
    scores = []
    for batch in held_out.episodes:
        features = cell_features(backbone(as_input(torch.from_numpy(batch.images[0]))))
        rows = features.flatten(2).transpose(1, 2)
        bank, queries = rows[: held_out.shape.references], rows[held_out.shape.references :]
        distance = nearest_distances(queries.flatten(0, 1), bank.flatten(0, 1)).sqrt()
        grid = distance.view(-1, 1, *features.shape[-2:])
        fine = functional.interpolate(grid, scale_factor=2, mode="bilinear", align_corners=False)
        truth = batch.masks[0, held_out.shape.references :, 2::4, 2::4]
        if truth.any():
            scores.append(average_precision(fine[:, 0].numpy().ravel(), truth.ravel()))
    return float(np.mean(scores))


def average_precision(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> float:
    """Area under the precision-recall steps; pixels of equal score are taken in any order. ``truth`` has a True."""
    hits = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, hits.size + 1)
    return float(precision[hits].mean())
