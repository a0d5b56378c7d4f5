"""Small banks to test with."""

import numpy as np

from adclick_edge.features.bank import BankOptions
from adclick_edge.features.bank_builder import BankBuilder

GRID = (5, 7)
CELLS = GRID[0] * GRID[1]


def embeddings(images, dims=12, grid=GRID, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.linspace(2.0, 0.1, dims)[:, None, None]
    return (rng.normal(size=(images, dims, *grid)) * spread + rng.normal(size=(dims, 1, 1))).astype(np.float32)


def bank_of(frames, maps=None, seed=0, **options):
    builder = BankBuilder(BankOptions(**{"rows": 60, **options}), seed=seed)
    for number, frame in enumerate(frames):
        builder.add(frame, image_hash=f"hash{number}", retrieval_map=None if maps is None else maps[number])
    return builder.build()
