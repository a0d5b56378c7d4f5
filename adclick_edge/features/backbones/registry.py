"""Backbones by name."""

from collections.abc import Callable

from adclick_edge.errors import UsageError
from adclick_edge.features.backbones.base import Backbone
from adclick_edge.features.backbones.edge import edge_backbone
from adclick_edge.features.backbones.mobilenet_v2 import mobilenet_v2
from adclick_edge.features.backbones.resnet import resnet18, resnet34, resnet50, wide_resnet50_2

__all__ = ["BACKBONES", "create_backbone"]

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "edge_backbone": edge_backbone,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "wide_resnet50_2": wide_resnet50_2,
}


def create_backbone(name: str) -> Backbone:
    """A backbone with random weights, in eval mode. Raises UsageError for an unknown name."""
    if name not in BACKBONES:
        raise UsageError(f"no backbone is called {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]()
