"""Networks that turn pictures into feature maps."""

from adclick_edge.features.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from adclick_edge.features.backbones.edge import EdgeBackbone, TrainableEdge
from adclick_edge.features.backbones.fold import fold_batch_norms
from adclick_edge.features.backbones.registry import BACKBONES, create_backbone

__all__ = [
    "BACKBONES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "EdgeBackbone",
    "TrainableEdge",
    "create_backbone",
    "fold_batch_norms",
]
