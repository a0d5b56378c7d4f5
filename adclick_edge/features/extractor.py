"""Frames to features: normalisation, backbone and patch embedding, as one module that exports to ``features.onnx``."""

import torch
from torch import Tensor, nn

from adclick_edge.features.backbones import Backbone, create_backbone
from adclick_edge.features.embedding import ConcatEmbedding, FoldedPatchEmbedding
from adclick_edge.models.presets import Preset

__all__ = ["Extractor", "build_extractor"]


class Extractor(nn.Module):
    """uint8 frames [N, H, W, 3] (RGB, at the input size) -> named float32 tensors.

    ``embedding`` [N, D, H/8, W/8] is what the bank holds; ``map4``, ``map8``, ``map16`` are the backbone's maps and
    ``image`` [N, 3, H, W] the normalised frame, those of them that ``outputs`` names, for the segmenter. Frozen:
    parameters need no gradient and batch norms keep their statistics.
    """

    def __init__(
        self, backbone: Backbone, embedding: ConcatEmbedding | FoldedPatchEmbedding, extras: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding = embedding
        self.outputs = ("embedding", *extras)
        self.register_buffer("mean", torch.tensor(backbone.mean).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def dims(self) -> int:
        return self.embedding.dims

    def train(self, mode: bool = True) -> "Extractor":
        """Stays in evaluation mode: the bank was made with these very features."""
        return super().train(False)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        if not torch.compiler.is_exporting() and frames.device.type == "cpu" and len(frames) > 1:
            # One frame's maps stay in the cache, a batch's do not: up to ten times slower on depthwise convolutions.
            each = [self(frame[None]) for frame in frames]
            return {name: torch.cat([found[name] for found in each]) for name in self.outputs}
        image = (frames.permute(0, 3, 1, 2).float() - self.get_buffer("mean")) / self.get_buffer("std")
        maps = self.backbone(image)
        available = {"embedding": self.embedding(maps), "image": image, **{f"map{s}": m for s, m in maps.items()}}
        return {name: available[name] for name in self.outputs}


def build_extractor(preset: Preset) -> Extractor:
    """The extractor of ``preset`` with fresh weights; load them into ``.backbone``."""
    backbone = create_backbone(preset.backbone)
    if preset.embedding == "folded":
        channels = {s: backbone.channels[s] for s in preset.embedding_strides}
        embedding: ConcatEmbedding | FoldedPatchEmbedding = FoldedPatchEmbedding(channels, dims=preset.embedding_dims)
    else:
        embedding = ConcatEmbedding(backbone.channels, preset.embedding_strides)
    extras = ("image", "map4") if preset.segmenter == "paper" else ("map4", "map8", "map16")
    return Extractor(backbone, embedding, extras)
