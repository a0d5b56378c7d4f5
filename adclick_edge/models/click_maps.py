"""Clicks as disk maps, the form in which SimpleClick and the paper's network take them (method section 2)."""

import torch
from torch import Tensor

__all__ = ["DISK_RADIUS_PX", "disk_maps"]

DISK_RADIUS_PX = 5.0


def disk_maps(clicks: Tensor, size: tuple[int, int], radius_px: float = DISK_RADIUS_PX) -> Tensor:
    """Clicks f32 [N, K, 3] (y px, x px, label: > 0 defect, < 0 normal, 0 unused row) to f32 [N, 2, H, W] of 0 and 1.

    Map 0 is 1 within ``radius_px`` of a defect click, rim included, map 1 of a normal click. ``size`` is (H, W); the
    integer i is the centre of pixel i. Neither the order of the rows nor a click given twice changes anything.
    """
    height, width = size
    y, x, label = clicks[:, :, :1], clicks[:, :, 1:2], clicks[:, :, 2:]
    rows = torch.arange(height, dtype=clicks.dtype, device=clicks.device)
    columns = torch.arange(width, dtype=clicks.dtype, device=clicks.device)
    # What is unused lies infinitely far down: the sum with any column's distance keeps it out.
    far = torch.full_like(label, 1e9)
    down = (rows - y).square()  # [N, K, H]
    across = (columns - x).square()[:, :, None, :]
    maps = [
        (torch.where(used, down, far)[..., None] + across).amin(dim=1) <= radius_px**2
        for used in (label > 0, label < 0)
    ]
    return torch.stack(maps, dim=1).to(clicks.dtype)
