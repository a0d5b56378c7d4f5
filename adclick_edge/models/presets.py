"""The sizes ADClick-Seg comes in. No torch here: the edge box reads presets too."""

from typing import Literal

import msgspec

from adclick_edge.errors import UsageError
from adclick_edge.features.bank import BankOptions

__all__ = ["PRESETS", "Preset", "preset_named"]


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    input_size: tuple[int, int]
    """Height and width the network sees; multiples of 16."""
    backbone: str
    """A name of `adclick_edge.features.backbones`; ``edge_backbone`` is our own, whose weights ship with the package."""
    embedding: Literal["concat", "folded"]
    embedding_strides: tuple[int, ...]
    embedding_dims: int
    """Features per cell of the folded embedding (D); the concatenated one has as many as its maps have channels."""
    bank: BankOptions
    segmenter: Literal["edge", "paper"]
    width: int
    """Channels inside the segmenter."""
    click_width: int = 32
    """Channels of ADClick on its stride-4 grid."""


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="edge-s",
            input_size=(256, 256),
            backbone="edge_backbone",
            embedding="concat",
            embedding_strides=(8, 16),
            embedding_dims=0,
            bank=BankOptions(rows=2000, search_dims=64),
            segmenter="edge",
            width=48,
        ),
        Preset(
            name="edge-m",
            input_size=(512, 512),
            backbone="edge_backbone",
            embedding="concat",
            embedding_strides=(8, 16),
            embedding_dims=0,
            bank=BankOptions(rows=10_000, search_dims=96),
            segmenter="edge",
            width=96,
            click_width=48,
        ),
        # Method sections 1 and 2; 448 is the size the image branch was trained at.
        Preset(
            name="paper",
            input_size=(448, 448),
            backbone="wide_resnet50_2",
            embedding="folded",
            embedding_strides=(4, 8, 16),
            embedding_dims=512,
            bank=BankOptions(
                rows=100_000,
                search_dims=512,
                position_weight=0.03,
                position_dims=64,
                retrieve_images=64,
                coreset_dims=128,
            ),
            segmenter="paper",
            width=768,
        ),
    )
}


def preset_named(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; take one of {', '.join(PRESETS)}")
    return PRESETS[name]
