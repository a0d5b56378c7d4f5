"""A bundle that answers clicks, small enough for tests: a stand-in network with the interface of the real one."""

from pathlib import Path

import torch
from torch import Tensor, nn

SIZE = (64, 64)
DIMS = 224
PROMPT_DIMS = 384


class TinyClicks(nn.Module):
    """A blob around each positive click, a hole around each negative one, as large as the words say; the answer before
    and the residual shine through, so that a session that mixes up either is found out.
    """

    encode_inputs = ("frames", "map4", "map8", "map16", "relative", "relative_distance")
    encode_outputs = ("keys", "fine", "mid", "deep")

    def __init__(self, blob_px: float = 5.0) -> None:
        super().__init__()
        self.blob_px = blob_px
        self.words = nn.Parameter(torch.linspace(-1, 1, PROMPT_DIMS))

    def encode(
        self, frames: Tensor, map4: Tensor, map8: Tensor, map16: Tensor, relative: Tensor, relative_distance: Tensor
    ) -> dict[str, Tensor]:
        grey = frames.float().mean(dim=3).unsqueeze(1) / 255
        half = nn.functional.avg_pool2d(grey, 2)
        quarter = nn.functional.avg_pool2d(half, 2)
        return {
            "keys": quarter,
            "fine": half,
            "mid": map4.mean(dim=1, keepdim=True) + 0 * quarter,
            "deep": relative_distance + relative.mean(dim=1, keepdim=True) + 0 * map8.mean() + 0 * map16.mean(),
        }

    def decode(self, embedding: dict[str, Tensor], clicks: Tensor, previous: Tensor, prompt: Tensor) -> Tensor:
        rows = torch.arange(SIZE[0] // 2, dtype=torch.float32) * 2 + 0.5
        columns = torch.arange(SIZE[1] // 2, dtype=torch.float32) * 2 + 0.5
        dy = rows[None, None, :, None] - clicks[:, :, 0, None, None]
        dx = columns[None, None, None, :] - clicks[:, :, 1, None, None]
        blob_px = self.blob_px * (1 + 0.5 * torch.tanh(prompt @ self.words))[:, None, None, None]
        blobs = clicks[:, :, 2, None, None] * torch.exp(-(dy**2 + dx**2) / (2 * blob_px**2))
        double = nn.functional.interpolate(previous, scale_factor=2.0, mode="bilinear", align_corners=False)
        deep = nn.functional.interpolate(embedding["deep"], scale_factor=4.0, mode="bilinear", align_corners=False)
        seen = (
            0.1 * embedding["fine"]
            + 0.01 * torch.tanh(deep)
            + 1e-3 * embedding["mid"].mean() * embedding["keys"].mean()
        )
        return 12 * blobs.sum(dim=1) - 5 + double[:, 0] + seen[:, 0]


def write_clicks(base: Path, out: Path, prompts: bytes | None = None) -> Path:
    from adclick_edge.bundle import read_bundle
    from adclick_edge.export.click_bundle import write_click_bundle

    with read_bundle(base) as bundle:
        write_click_bundle(bundle, TinyClicks(), prompts, out, size=SIZE)
    return out
