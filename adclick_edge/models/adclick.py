"""ADClick for the edge: clicks, words and residuals to a mask (method section 2), in two parts.

The paper's network takes clicks before its transformers, so each click costs the whole network. Here clicks enter late:
`EdgeClicks.encode` runs once per view and `EdgeClicks.decode` on each click. Late clicks lose what early ones have for
free, features that know where the clicks are; three things give it back:

- **likeness**: each click reads the key of the place it was put on, and every other place is compared with it, so that
  "more of this" and "not this" reach the whole picture at once;
- **nearness**: maps of the distance to the nearest click of either sign;
- **words**: the sentence vector scales and shifts the features (FiLM), and is compared with every cell's own vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adclick_edge.data.clicks import MAX_CLICKS
from adclick_edge.models.adclick_seg import ConvNorm, ResidualBlock

__all__ = ["PROMPT_DIMS", "EdgeClicks"]

PROMPT_DIMS = 384
HEADS = 4
KEY_DIMS = 16
WORD_MAPS = 4
READ_SIGMA_PX = 3.0
NEARNESS_PX = (6.0, 40.0)


class EdgeClicks(nn.Module):
    """``encode`` a view once, then ``decode`` it for every click.

    ``dims`` are the residual's channels (D), ``channels`` those of the backbone's maps by stride. Heights and widths of a
    view are multiples of 32.
    """

    encode_inputs = ("frames", "map4", "map8", "map16", "relative", "relative_distance")
    encode_outputs = ("keys", "fine", "mid", "deep")
    free_clicks = True
    """``decode`` takes any number of rows of clicks up to 24: few are answered sooner."""

    def __init__(self, dims: int, channels: dict[int, int], width: int = 32) -> None:
        super().__init__()
        deep = width * 3 // 2
        self.encoder = _Encoder(dims, channels, width, deep)
        self.decoder = _Decoder(width, deep, 2 * width)

    def encode(
        self, frames: Tensor, map4: Tensor, map8: Tensor, map16: Tensor, relative: Tensor, relative_distance: Tensor
    ) -> dict[str, Tensor]:
        """uint8 frames [N, H, W, 3], the backbone's maps of them, and their relative residual [N, D, H/8, W/8] and
        distance [N, 1, H/8, W/8] (zeros where there is no bank) -> ``keys`` [N, 64, H/4, W/4] of unit length per head,
        ``fine`` [N, c, H/2, W/2], ``mid`` [N, c, H/4, W/4], ``deep`` [N, c, H/8, W/8].

        ``mid`` and ``fine`` have been through their share of the convolutions that join them with what clicks bring: a
        convolution of two maps laid side by side is the sum of two convolutions, and this one does not know of clicks.
        """
        found: dict[str, Tensor] = self.encoder(frames, map4, map8, map16, relative, relative_distance)
        return {**found, **self.decoder.ahead(found["mid"], found["fine"])}

    def decode(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        """What ``encode`` gave, ``clicks`` [N, K, 3] (y px, x px, +1 defect / -1 normal / 0 unused), the ``previous``
        probability [N, 1, H/4, W/4] (zeros at first) and ``prompt`` [N, 384] (zeros for no words) -> logits
        [N, H/2, W/2]. The order of the clicks does not matter.
        """
        logits: Tensor = self.decoder(embedding, clicks, previous, prompt)
        return logits

    def forward(
        self,
        frames: Tensor,
        map4: Tensor,
        map8: Tensor,
        map16: Tensor,
        relative: Tensor,
        relative_distance: Tensor,
        clicks: Tensor,
        previous: Tensor,
        prompt: Tensor,
    ) -> Tensor:
        return self.decode(
            self.encode(frames, map4, map8, map16, relative, relative_distance), clicks, previous, prompt
        )


class _Encoder(nn.Module):
    def __init__(self, dims: int, channels: dict[int, int], width: int, deep: int) -> None:
        super().__init__()
        self.stem2 = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.stem4 = nn.Sequential(
            nn.Conv2d(16, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.from_map4 = ConvNorm(channels[4], width, 1)
        self.from_map8 = ConvNorm(channels[8], deep, 1)
        self.from_map16 = ConvNorm(channels[16], deep, 1)
        self.from_residual = ConvNorm(dims + 1, deep, 1)
        self.fuse = nn.Sequential(ConvNorm(2 * deep, deep, 1), ResidualBlock(deep))
        self.context = nn.Sequential(ConvNorm(2 * deep, deep, 1), ResidualBlock(deep))
        self.merge = nn.Sequential(ConvNorm(2 * deep, deep, 1), ResidualBlock(deep))
        self.lower = ConvNorm(deep, width, 1)
        self.mid = ConvNorm(3 * width, width, 3)
        self.keys = nn.Conv2d(3 * width, HEADS * KEY_DIMS, 1)
        self.fine = ConvNorm(16, width // 2, 3)

    def forward(
        self, frames: Tensor, map4: Tensor, map8: Tensor, map16: Tensor, relative: Tensor, relative_distance: Tensor
    ) -> dict[str, Tensor]:
        image = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        half = self.stem2(image)  # N, 16, H/2, W/2
        left_over = self.from_residual(torch.log1p(torch.cat([relative, relative_distance], dim=1)))
        cells = self.fuse(torch.cat([left_over, self.from_map8(map8)], dim=1))
        coarse = self.context(torch.cat([F.max_pool2d(cells, 2), self.from_map16(map16)], dim=1))
        deep = self.merge(torch.cat([cells, _double(coarse)], dim=1))
        quarter = torch.cat([self.stem4(half), self.from_map4(map4), _double(self.lower(deep))], dim=1)
        keys = self.keys(quarter)
        heads = keys.reshape(-1, HEADS, KEY_DIMS, *keys.shape[2:])
        # Root of the mean square rather than F.normalize: no division by zero, and it exports to few nodes.
        unit = heads * torch.rsqrt(heads.square().sum(dim=2, keepdim=True) + 1e-6)
        return {
            "keys": unit.reshape(keys.shape),
            "fine": self.fine(half),
            "mid": self.mid(quarter),
            "deep": deep,
        }


class _Decoder(nn.Module):
    def __init__(self, width: int, deep: int, deepest: int) -> None:
        super().__init__()
        self.width = width
        click_maps = 2 * len(NEARNESS_PX) + 1 + 2 * HEADS + 1  # nearness, whose is nearer, likeness, previous mask
        self.words = nn.Linear(PROMPT_DIMS, 64, bias=False)
        self.film = nn.ModuleList([_Film(64, c) for c in (width, deep, deepest)])
        self.word_keys = nn.Linear(64, WORD_MAPS * KEY_DIMS, bias=False)
        self.cell_keys = nn.Conv2d(deep, WORD_MAPS * KEY_DIMS, 1)
        self.enter = ConvNorm(width + click_maps, width, 3, relu=False)
        self.enter_block = ResidualBlock(width)
        self.down8 = _Down(width, deep)
        self.join8 = ConvNorm(2 * deep + WORD_MAPS, deep, 1, relu=False)
        self.block8 = ResidualBlock(deep)
        self.down16 = _Down(deep, deepest)
        self.block16 = ResidualBlock(deepest)
        self.down32 = _Down(deepest, deepest)
        self.block32 = nn.Sequential(ResidualBlock(deepest), ResidualBlock(deepest))
        self.up8 = nn.Sequential(ConvNorm(deepest + deep, deep, 1), ResidualBlock(deep))
        self.up4 = nn.Sequential(ConvNorm(deep + width, width, 1), ResidualBlock(width))
        self.lower = ConvNorm(width, width // 2, 1)
        self.outline = nn.Sequential(ConvNorm(width, width // 2, 3), ConvNorm(width // 2, width // 2, 3))
        self.logit = nn.Conv2d(width // 2, 1, 1)
        nn.init.constant_(self.logit.bias, -2.0)  # type: ignore[arg-type]
        # Added to the logits after so many clicks: see `adclick_edge.training.click_offsets`.
        self.register_buffer("offsets", torch.zeros(MAX_CLICKS + 1))

    def ahead(self, mid: Tensor, fine: Tensor) -> dict[str, Tensor]:
        """What ``enter`` and the first convolution of ``outline`` make of the maps that no click changes."""
        half = self.width // 2
        return {
            "mid": F.conv2d(mid, _weight(self.enter)[:, : self.width], padding=1),
            "fine": F.conv2d(fine, _weight(self.outline[0])[:, half:], padding=1),
        }

    def forward(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        deep = embedding["deep"]
        words = F.relu(self.words(prompt))
        given = torch.cat([_click_maps(embedding["keys"], clicks), previous], dim=1)
        x4 = _joined(self.enter, embedding["mid"], given, slice(self.width, None))
        x4 = self.enter_block(F.relu(self.film[0](x4, words)))
        x8 = self.join8(torch.cat([self.down8(x4), deep, self._word_maps(words, deep)], dim=1))
        x8 = self.block8(F.relu(self.film[1](x8, words)))
        x16 = self.block16(F.relu(self.film[2](self.down16(x8), words)))
        x16 = x16 + _double(self.block32(self.down32(x16)))
        y8 = self.up8(torch.cat([_double(x16), x8], dim=1))
        y4 = self.up4(torch.cat([_double(y8), x4], dim=1))
        outline = _joined(self.outline[0], embedding["fine"], _double(self.lower(y4)), slice(self.width // 2))
        given_clicks = clicks[:, :, 2].abs().sum(dim=1).long()
        offset = self.get_buffer("offsets")[given_clicks][:, None, None]
        logits: Tensor = self.logit(self.outline[1](outline)).squeeze(1) + offset
        return logits

    def _word_maps(self, words: Tensor, deep: Tensor) -> Tensor:
        """How much each cell's vector is like the sentence's, [N, WORD_MAPS, h, w]; zero without words."""
        count, _, height, width = deep.shape
        sentence: Tensor = self.word_keys(words).reshape(count, WORD_MAPS, 1, KEY_DIMS)
        cells: Tensor = self.cell_keys(deep).reshape(count, WORD_MAPS, KEY_DIMS, height * width)
        alike: Tensor = (sentence @ cells).reshape(count, WORD_MAPS, height, width) / KEY_DIMS**0.5
        return alike


def _weight(block: nn.Module) -> Tensor:
    """Of the convolution that a `ConvNorm` begins with."""
    conv = block[0]  # type: ignore[index]
    weight: Tensor = conv.weight
    return weight


def _joined(block: nn.Module, ahead: Tensor, x: Tensor, channels: slice) -> Tensor:
    """The rest of a `ConvNorm` whose convolution over the other channels was made ``ahead``."""
    conv, *rest = block.children()
    out = ahead + F.conv2d(x, _weight(block)[:, channels], conv.bias, padding=1)  # type: ignore[arg-type]
    for layer in rest:
        out = layer(out)
    return out


class _Film(nn.Module):
    """Feature-wise scale and shift from the sentence (arXiv 1709.07871); starts as the identity."""

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Linear(words, channels)
        self.shift = nn.Linear(words, channels)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        out: Tensor = x * (1 + self.scale(words)[:, :, None, None]) + self.shift(words)[:, :, None, None]
        return out


class _Down(nn.Sequential):
    """3 x 3 convolution of stride 2, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


def _click_maps(keys: Tensor, clicks: Tensor) -> Tensor:
    """Nearness and likeness to the clicks of either sign, [N, 13, H/4, W/4]."""
    count, _, height, width = keys.shape
    rows = torch.arange(height, device=keys.device, dtype=torch.float32) * 4 + 1.5  # centre of the cell, in pixels
    columns = torch.arange(width, device=keys.device, dtype=torch.float32) * 4 + 1.5
    label = clicks[:, :, 2:]  # N, K, 1
    dy = (rows - clicks[:, :, 0:1])[:, :, :, None]
    dx = (columns - clicks[:, :, 1:2])[:, :, None, :]
    squared = (dy.square() + dx.square()).reshape(count, clicks.shape[1], height * width)
    far = torch.full_like(squared, 1e6)
    nearest = [torch.where(wanted, squared, far).amin(dim=1).sqrt() for wanted in (label > 0, label < 0)]  # N, P each
    nearness = [torch.exp(-d / scale) for d in nearest for scale in NEARNESS_PX]
    whose = torch.sigmoid((nearest[1].clamp(max=400) - nearest[0].clamp(max=400)) / 20)

    # The key under a click is read over a small spot: a click is never exact to the pixel.
    spot = torch.exp(squared * (-0.5 / READ_SIGMA_PX**2))
    spot = spot / (spot.sum(dim=2, keepdim=True) + 1e-6)
    flat = keys.reshape(count, HEADS, KEY_DIMS, height * width)
    read = torch.einsum("nkp,nhdp->nhkd", spot, flat)
    alike = read @ flat  # N, heads, K, P
    wanted = [(label > 0)[:, None], (label < 0)[:, None]]
    nothing = torch.full_like(alike, -1.0)
    likeness = [torch.where(w, alike, nothing).amax(dim=2) for w in wanted]  # N, heads, P each
    maps = torch.cat([torch.stack([*nearness, whose], dim=1), *likeness], dim=1)
    return maps.reshape(count, -1, height, width)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
