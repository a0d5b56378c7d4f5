"""The networks of a preset, and how they are called."""

from torch import Tensor, nn

from adclick_edge.features.extractor import Extractor
from adclick_edge.models.adclick import EdgeClicks
from adclick_edge.models.adclick_seg import EdgeSegmenter
from adclick_edge.models.distance import DistanceSegmenter
from adclick_edge.models.paper_clicks import PaperClicks
from adclick_edge.models.paper_seg import PaperSegmenter
from adclick_edge.models.presets import Preset

__all__ = ["Segmenter", "build_click_network", "build_segmenter", "run_segmenter"]

Segmenter = EdgeSegmenter | PaperSegmenter | DistanceSegmenter
"""Each names what it takes in its attribute ``inputs`` and returns maps [N, h4, w4]."""


def build_segmenter(preset: Preset, extractor: Extractor) -> EdgeSegmenter | PaperSegmenter:
    """The trainable network of ``preset`` with fresh weights."""
    if preset.segmenter == "paper":
        return PaperSegmenter(extractor.dims, preset.input_size)
    return EdgeSegmenter(extractor.dims, dict(extractor.backbone.channels), preset.width)


def build_click_network(preset: Preset, extractor: Extractor) -> EdgeClicks | PaperClicks:
    """ADClick of ``preset`` with fresh weights, over the maps of ``extractor``."""
    if preset.segmenter == "paper":
        return PaperClicks(extractor.dims, preset.input_size)
    return EdgeClicks(extractor.dims, dict(extractor.backbone.channels), preset.click_width)


def run_segmenter(network: nn.Module, names: tuple[str, ...], inputs: dict[str, Tensor]) -> Tensor:
    """Call ``network`` (a segmenter, or its distributed wrapper) with the inputs of these names; maps [N, h4, w4]."""
    out: Tensor = network(*[inputs[name] for name in names])
    return out
