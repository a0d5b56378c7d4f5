"""ADClick at the paper's size, for the `paper` preset (method section 2).

::

    frame, clicks, previous -> SimpleClick's ViT -> pyramid --------------------------> (+) -> FiLM by words -> head -> logits
    residual -> 1x1, 1/4 grid, norm -> 2 Swin blocks -> pyramid -> 1x1 of 0 per level ---^

Clicks enter before the transformer, so each click costs the whole image branch: ``encode`` saves the residual branch only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.errors import UsageError
from adclick_edge.features.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from adclick_edge.models.adclick import PROMPT_DIMS
from adclick_edge.models.click_maps import disk_maps
from adclick_edge.models.paper_seg import ResidualBranch
from adclick_edge.models.pyramid import LEVEL_STRIDES
from adclick_edge.models.simpleclick_net import ClickSize, SimpleClickNetwork, check_input_size

__all__ = ["PaperClicks", "PromptFilm"]

_RESIDUALS = tuple(f"residual{stride}" for stride in LEVEL_STRIDES)


class PromptFilm(nn.Module):
    """Scales and shifts a map by a sentence vector: ``x * (1 + scale) + shift``.

    Both come from the vector by a linear layer that starts at zero and has no bias, so that the words of an untrained
    network change nothing, and an all-zero vector (no words) never does.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.scale_shift = nn.Linear(PROMPT_DIMS, 2 * dims, bias=False)
        nn.init.zeros_(self.scale_shift.weight)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x f32 [N, dims, h, w], prompt f32 [N, 384]."""
        scale, shift = self.scale_shift(prompt)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = x * (1.0 + scale) + shift
        return out


class PaperClicks(nn.Module):
    """``encode`` a view once, then ``decode`` it for every click; the two methods of ``models.adclick.EdgeClicks``.

    109.3 M parameters at the defaults: image branch 97.1 M, residual branch 10.7 M, words 1.5 M. (The authors' network,
    with text attention where this one has FiLM, has 130.5 M.)

    ``residual_dims`` are the channels of the residual. ``input_size`` is (height, width) in px, multiples of 32; views
    of other such sizes work too. Before training the network is its image branch: residuals and words change nothing.
    """

    encode_inputs = ("frames", "relative")
    encode_outputs = ("image", *_RESIDUALS)

    def __init__(
        self, residual_dims: int = 512, input_size: tuple[int, int] = (448, 448), size: ClickSize | None = None
    ) -> None:
        super().__init__()
        size = size or ClickSize()
        self.residual_dims = residual_dims
        self.image_branch = SimpleClickNetwork(input_size, size)
        self.residual_branch = ResidualBranch(
            residual_dims, size.level_dims, size.branch_dims, size.branch_heads, size.window
        )
        self.film = nn.ModuleList(PromptFilm(dims) for dims in size.level_dims)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1) * 255, persistent=False)

    def encode(self, frames: Tensor, relative: Tensor) -> dict[str, Tensor]:
        """uint8 frames [N, H, W, 3] and their relative residual f32 [N, residual_dims, H / 8, W / 8] (zeros where there
        is no bank) -> ``image`` f32 [N, 3, H, W], normalised, and ``residual4`` .. ``residual32`` f32
        [N, level_dims[i], H / stride, W / stride].

        The backbone's maps are not needed: the image branch has its own transformer. Nor is the distance: it is the
        residual summed over its channels (method 1.6). Raises UsageError for sides that are not multiples of 32, or a
        residual of other channels.
        """
        height, width = frames.shape[1:3]
        check_input_size(height, width)
        if relative.shape[1] != self.residual_dims:
            raise UsageError(f"paper network: the residual has {relative.shape[1]} channels, not {self.residual_dims}")
        image = (frames.permute(0, 3, 1, 2).float() - self.get_buffer("mean")) / self.get_buffer("std")
        residuals = self.residual_branch(relative, (height // 4, width // 4))
        return {"image": image, **dict(zip(_RESIDUALS, residuals, strict=True))}

    def decode(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        """What ``encode`` gave, ``clicks`` f32 [N, 24, 3] (y px, x px, +1 defect / -1 normal / 0 unused), the
        ``previous`` probability f32 [N, 1, H / 4, W / 4] (zeros at first) and ``prompt`` f32 [N, 384] (zeros for no
        words) -> logits f32 [N, H / 2, W / 2], drawn up bilinearly from the network's own H / 4.

        The order of the clicks does not matter.
        """
        image = embedding["image"]
        size = (image.shape[2], image.shape[3])
        before = F.interpolate(previous, size=size, mode="bilinear", align_corners=False)
        levels = self.image_branch.levels(image, torch.cat([before, disk_maps(clicks, size)], dim=1))
        both = [level + embedding[name] for level, name in zip(levels, _RESIDUALS, strict=True)]
        logits = self.image_branch.head([film(x, prompt) for film, x in zip(self.film, both, strict=True)])
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]

    def forward(self, frames: Tensor, relative: Tensor, clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        return self.decode(self.encode(frames, relative), clicks, previous, prompt)
