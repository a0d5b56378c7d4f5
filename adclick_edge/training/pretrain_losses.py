"""What pretraining asks of the features: see ``Objectives``."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from adclick_edge.data.procedural.fields import FAMILIES
from adclick_edge.training.pretrain_data import DEFECT, IGNORED, NORMAL

__all__ = ["Heads", "LossWeights", "Targets", "cell_features", "episode_loss", "nearest_distances", "objectives"]

_TEMPERATURE = 0.1
_SAMPLED_CELLS = 512
_HARD_SHARE = 0.1


def cell_features(maps: dict[int, torch.Tensor]) -> torch.Tensor:
    """Maps of strides 8 and 16, each averaged over 3x3, on the stride-8 grid: [N, C8 + C16, h, w].

    The plain form of the patch embedding of method section 1 (PatchCore, Roth et al. 2022, arXiv 2106.08265).
    """
    fine, coarse = (functional.avg_pool2d(maps[s].float(), 3, 1, 1, count_include_pad=False) for s in (8, 16))
    coarse = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([fine, coarse], 1)


def nearest_distances(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Squared distance of each row of ``queries`` [Q, D] to its nearest row of ``bank`` [M, D]: [Q]."""
    centre = bank.mean(0, keepdim=True)
    queries, bank = queries - centre, bank - centre
    with torch.no_grad():
        nearest = (bank.square().sum(1) - 2 * queries @ bank.T).argmin(1)
    return (queries - bank[nearest]).square().sum(1)


def episode_loss(features: torch.Tensor, cells: torch.Tensor, references: int) -> torch.Tensor:
    """How badly distance to the references ranks spoiled cells above normal ones, the hardest tenth of those.

    ``features``: [W, P, D, h, w], ``cells``: [W, P, h, w]. Each world is an episode with a bank of its own; the loss is
    on the ratio of distances, so that their scale does not matter.
    """
    losses = []
    for world, labels in zip(features, cells, strict=True):
        rows = world.flatten(2).transpose(1, 2)
        bank, queries = rows[:references].flatten(0, 1), rows[references:].flatten(0, 1)
        wanted = labels[references:].flatten()
        log_distance = 0.5 * torch.log(nearest_distances(queries, bank) + 1e-4)
        defect, normal = log_distance[wanted == DEFECT], log_distance[wanted == NORMAL]
        if defect.numel() == 0 or normal.numel() == 0:
            continue
        hard = torch.topk(normal, max(1, int(_HARD_SHARE * normal.numel()))).values
        losses.append(functional.softplus(4 * (hard[None] - defect[:, None]) + 1).mean())
    return torch.stack(losses).mean() if losses else features.sum() * 0


@dataclass(frozen=True)
class LossWeights:
    episode: float = 1.0
    instance: float = 0.3
    region: float = 0.3
    dense: float = 0.3


class Heads(nn.Module):
    """Small networks on top of the maps, thrown away after pretraining."""

    def __init__(self, channels: dict[int, int], size: int = 64) -> None:
        super().__init__()
        self.instance = nn.ModuleDict({str(s): _projection(channels[s], size) for s in (8, 16)})
        self.region = nn.ModuleDict({str(s): _projection(channels[s], size) for s in (8, 16)})
        self.family = nn.ModuleDict({str(s): nn.Conv2d(channels[s], len(FAMILIES), 1) for s in (8, 16)})
        self.relief = nn.Conv2d(channels[4], 1, 1)

    def forward(self, maps: dict[int, torch.Tensor]) -> dict[str, dict[int, torch.Tensor]]:
        """What each head says of the map of each stride, in float32."""
        return {
            "instance": {s: self.instance[str(s)](maps[s]).float() for s in (8, 16)},
            "region": {s: self.region[str(s)](maps[s]).float() for s in (8, 16)},
            "family": {s: self.family[str(s)](maps[s]).float() for s in (8, 16)},
            "relief": {4: self.relief(maps[4]).float()},
        }


def _projection(inputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 128, 1), nn.ReLU(), nn.Conv2d(128, size, 1))


@dataclass(frozen=True)
class Targets:
    """A batch on the device, as in ``Batch``. ``materials``: its regions and families.

    ``shift_cells``: by how many coarse cells (16 px) each view was rolled, (down, right).
    """

    cells: torch.Tensor
    materials: tuple[torch.Tensor, torch.Tensor]
    relief: torch.Tensor
    references: int
    shift_cells: tuple[int, int]


def objectives(
    maps: dict[int, torch.Tensor],
    said: dict[str, dict[int, torch.Tensor]],
    targets: Targets,
    weights: LossWeights,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The total loss and its parts.

    ``maps`` hold the W * P pictures of the batch and then W views: the first reference of each world, rolled and in
    other light. *episode*: see ``episode_loss``. *instance*: a cell and its view are alike, all other cells are not.
    *region*: cells of one material are alike (supervised contrast, Khosla et al. 2020, arXiv 2004.11362). *dense*: the
    pattern family of each cell and the height of each pixel can be read off the maps by a linear layer.
    """
    worlds, pictures = targets.cells.shape[:2]
    images = worlds * pictures
    features = cell_features({s: maps[s][:images] for s in (8, 16)})
    zero = features.new_zeros(())
    episode = episode_loss(features.view(worlds, pictures, *features.shape[1:]), targets.cells, targets.references)
    instance, region, family = zero, zero, zero
    for stride in (8, 16):
        step = stride // 8
        regions, families = (x.flatten(0, 1)[:, step - 1 :: step, step - 1 :: step] for x in targets.materials)
        pairs = said["instance"][stride]
        instance = instance + _instance_loss(pairs, worlds, pictures, targets.shift_cells, 2 // step, generator)
        region = region + _region_loss(said["region"][stride][:images], regions.flatten(), generator)
        named = said["family"][stride][:images]
        family = family + functional.cross_entropy(named, families.long(), ignore_index=IGNORED)
    relief = functional.smooth_l1_loss(said["relief"][4][:images, 0], targets.relief.flatten(0, 1))
    parts = {"episode": episode, "instance": instance, "region": region, "dense": family / 4 + relief}
    total = sum((getattr(weights, name) * value for name, value in parts.items()), zero)
    return total, {name: float(value.detach()) for name, value in parts.items()}


def _sampled(count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    return torch.randperm(count, generator=generator)[:_SAMPLED_CELLS].to(device)


def _instance_loss(
    projected: torch.Tensor, worlds: int, pictures: int, shift: tuple[int, int], scale: int, generator: torch.Generator
) -> torch.Tensor:
    down, right = shift[0] * scale, shift[1] * scale
    first = projected[: worlds * pictures : pictures]
    views = torch.roll(projected[worlds * pictures :], (-down, -right), (2, 3))
    height, width = first.shape[-2:]
    keep = torch.ones(height, width, dtype=torch.bool)  # cells whose view did not roll over the edge
    keep[max(0, height - down) :] = False
    keep[: max(0, -down)] = False
    keep[:, max(0, width - right) :] = False
    keep[:, : max(0, -right)] = False
    inner = keep.to(first.device)
    a = functional.normalize(first.permute(0, 2, 3, 1)[:, inner].flatten(0, 1), dim=1)
    b = functional.normalize(views.permute(0, 2, 3, 1)[:, inner].flatten(0, 1), dim=1)
    pick = _sampled(a.shape[0], generator, a.device)
    logits = a[pick] @ b[pick].T / _TEMPERATURE
    diagonal = torch.arange(pick.numel(), device=a.device)
    return (functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)) / 2


def _region_loss(projected: torch.Tensor, regions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = projected.permute(0, 2, 3, 1).flatten(0, 2)
    usable = torch.nonzero(regions != IGNORED)[:, 0]
    if usable.numel() < 2:
        return projected.sum() * 0
    pick = usable[_sampled(usable.numel(), generator, rows.device)]
    z, label = functional.normalize(rows[pick], dim=1), regions[pick]
    itself = torch.eye(pick.numel(), dtype=torch.bool, device=z.device)
    log_p = torch.log_softmax((z @ z.T / _TEMPERATURE).masked_fill(itself, float("-inf")), 1)
    same = (label[:, None] == label[None]) & ~itself
    has_partner = same.any(1)
    mean = (log_p.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1))[has_partner]
    return -mean.mean() if mean.numel() else projected.sum() * 0
