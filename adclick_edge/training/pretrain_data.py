"""Batches for pretraining: small worlds of procedural products, drawn by worker processes.

A batch is a pure function of seed and step, so the number of workers changes nothing and a resumed run sees what an
unbroken one would have seen. Training draws worlds of odd seeds, validation of even ones: they never share a world.
"""

import multiprocessing
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.procedural.defects import spoil
from adclick_edge.data.procedural.scenes import MAX_REGIONS, World

__all__ = ["CELL_PX", "DEFECT", "IGNORED", "NORMAL", "Batch", "BatchShape", "draw_batch", "draw_batches"]

CELL_PX = 8
NORMAL, DEFECT, IGNORED = 0, 1, 255
_TRAIN, _VALIDATION = 1, 0


@dataclass(frozen=True)
class BatchShape:
    """``worlds`` episodes of ``references`` normal and ``queries`` spoiled pictures of ``side_px`` x ``side_px``."""

    worlds: int
    references: int
    queries: int
    side_px: int


@dataclass(frozen=True)
class Batch:
    """W worlds, P = references + queries pictures each (references first), S pixels, C = S / CELL_PX cells a side.

    ``images``: uint8 [W, P, S, S, 3]. ``masks``: bool [W, P, S, S], empty for references. ``cells``: uint8
    [W, P, C, C], DEFECT, NORMAL (no defect in it or around it) or IGNORED. ``regions``: uint8 [W, P, C, C], a number
    unique to world and material, IGNORED where materials meet or a defect lies. ``families``: uint8 [W, P, C, C], the
    material's pattern, IGNORED likewise. ``relief``: float32 [W, P, 2C, 2C].
    """

    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    cells: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.uint8]
    families: npt.NDArray[np.uint8]
    relief: npt.NDArray[np.float32]


def draw_batch(shape: BatchShape, seed: int, step: int, validation: bool = False) -> Batch:
    """The batch of ``step``. At most 50 worlds, so that region numbers stay below IGNORED."""
    parity = _VALIDATION if validation else _TRAIN
    rng = np.random.default_rng([seed, step, parity])
    episodes = [_episode(shape, rng, number, parity) for number in range(shape.worlds)]
    return Batch(*(np.stack(arrays) for arrays in zip(*episodes, strict=True)))


def draw_batches(shape: BatchShape, seed: int, first_step: int, workers: int) -> Generator[Batch, None, None]:
    """Batches of ``first_step``, ``first_step + 1``, ... without end.

    ``workers`` processes draw ahead; with 0 each batch is drawn when asked for.
    """
    if workers == 0:
        step = first_step
        while True:
            yield draw_batch(shape, seed, step)
            step += 1
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        ahead: deque[Future[Batch]] = deque()
        try:
            for step in range(first_step, first_step + 3 * workers):
                ahead.append(pool.submit(draw_batch, shape, seed, step))
            while True:
                batch = ahead.popleft().result()
                step += 1
                ahead.append(pool.submit(draw_batch, shape, seed, step))
                yield batch
        finally:
            for future in ahead:
                future.cancel()


def _start_worker() -> None:
    cv2.setNumThreads(1)


def _episode(
    shape: BatchShape, rng: np.random.Generator, number: int, parity: int
) -> tuple[npt.NDArray[np.generic], ...]:
    world = World(2 * int(rng.integers(2**62)) + parity)
    families = np.array(world.families, np.uint8)
    pictures = []
    for index in range(shape.references + shape.queries):
        picture = world.picture(rng, shape.side_px, shape.side_px)
        rgb, mask = picture.rgb, np.zeros(picture.rgb.shape[:2], np.bool_)
        if index >= shape.references:
            rgb, mask = spoil(rgb, rng)
        cells = _cells(mask)
        regions, pure = _pure_cells(picture.regions)
        usable = pure & (cells == NORMAL)
        relief = cv2.resize(picture.relief, None, fx=2 / CELL_PX, fy=2 / CELL_PX, interpolation=cv2.INTER_AREA)
        pictures.append(
            (
                np.round(rgb * 255).astype(np.uint8),
                mask,
                cells,
                np.where(usable, regions + number * MAX_REGIONS, IGNORED).astype(np.uint8),
                np.where(usable, families[regions], IGNORED).astype(np.uint8),
                relief,
            )
        )
    return tuple(np.stack(arrays) for arrays in zip(*pictures, strict=True))


def _cells(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """DEFECT where an eighth of the cell is defective, NORMAL where nothing in it or around it is."""
    scale = 1 / CELL_PX
    share = np.asarray(cv2.resize(mask.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    around = np.asarray(cv2.dilate(share, np.ones((3, 3), np.uint8)))
    return np.where(share >= 0.125, DEFECT, np.where(around == 0, NORMAL, IGNORED)).astype(np.uint8)


def _pure_cells(regions: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """The material of each cell, and whether the cell shows no other."""
    rows, cols = regions.shape[0] // CELL_PX, regions.shape[1] // CELL_PX
    blocks = regions.reshape(rows, CELL_PX, cols, CELL_PX)
    low, high = blocks.min((1, 3)), blocks.max((1, 3))
    return low.astype(np.intp), low == high
