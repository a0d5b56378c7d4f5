"""The sample line on disk, in the layout of MVTec AD."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...errors import UsageError
from ...files import atomic_folder
from .frame import PRODUCTS, check_size, render_frame
from .marker import LineMarker, Recipe, read_marker, write_marker

__all__ = ["is_rendered", "render_line"]

_WORKERS = 2

_Job = tuple[str, str, int]  # split, kind, index


def _wanted(products: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(PRODUCTS) if products is None else tuple(dict.fromkeys(products))
    if not names:
        raise UsageError(f"no product named to render; choose from {', '.join(PRODUCTS)}")
    for name in names:
        if name not in PRODUCTS:
            raise UsageError(f"the sample line makes no product {name!r}; choose from {', '.join(PRODUCTS)}")
    return names


def _recipe(train_normals: int, test_normals: int, defects_per_kind: int, size: int, seed: int) -> Recipe:
    check_size(size)
    counts = {"train_normals": train_normals, "test_normals": test_normals, "defects_per_kind": defects_per_kind}
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise UsageError(f"{name} is {value}; give 0 or more")
    return Recipe(**counts, size=size, seed=seed)


def _jobs(product: str, recipe: Recipe) -> list[_Job]:
    jobs = [("train", "good", i) for i in range(recipe.train_normals)]
    jobs += [("test", "good", i) for i in range(recipe.test_normals)]
    return jobs + [("test", kind, i) for kind in PRODUCTS[product] for i in range(recipe.defects_per_kind)]


def _write_png(path: Path, image: np.ndarray) -> None:
    # The fast end of PNG's range: noise hardly packs any better with more work.
    path.write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def _render_one(folder: Path, product: str, recipe: Recipe, job: _Job) -> None:
    split, kind, index = job
    image, mask = render_frame(product, seed=recipe.seed, index=index, kind=kind, split=split, size=recipe.size)
    _write_png(folder / split / kind / f"{index:03d}.png", np.ascontiguousarray(image[..., ::-1]))
    if kind != "good":
        _write_png(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask.astype(np.uint8) * np.uint8(255))


def _render_product(folder: Path, product: str, recipe: Recipe, bar: Progress) -> None:
    jobs = _jobs(product, recipe)
    for split, kind, _ in jobs:
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
        if kind != "good":
            (folder / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
    task = bar.add_task(product, total=len(jobs))
    # Threads, not processes: nearly all the time is spent in calls that let go of the interpreter.
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting = [pool.submit(_render_one, folder, product, recipe, job) for job in jobs]
        try:
            for done in as_completed(waiting):
                done.result()
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def render_line(
    root: Path,
    *,
    products: Sequence[str] | None = None,
    train_normals: int = 40,
    test_normals: int = 16,
    defects_per_kind: int = 5,
    size: int = 320,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Render products (all by default) as ``root/PRODUCT/{train,test,ground_truth}/KIND/000.png``.

    Pictures are RGB of ``size`` pixels a side, masks 0 or 255. A picture depends on seed, product, split, kind, index
    and size alone, so other counts or a subset of the products give the same pictures. Each product appears complete
    or not at all; products already in ``root`` and not asked for stay. ``progress`` shows a bar on stderr.

    Raises UsageError for an unknown product, a size outside 64..2048 or a negative count, and DataError where ``root``
    holds something that is not a sample line.
    """
    names = _wanted(products)
    recipe = _recipe(train_normals, test_normals, defects_per_kind, size, seed)
    marker = read_marker(root)
    done = {} if marker is None else dict(marker.sample_line)
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        for name in names:
            # Struck out first: if this run dies, the folder no longer passes for what it may not be.
            done.pop(name, None)
            write_marker(root, LineMarker(done))
            with atomic_folder(root / name) as folder:
                _render_product(folder, name, recipe, bar)
            done[name] = recipe
            write_marker(root, LineMarker(done))


def is_rendered(
    root: Path,
    *,
    products: Sequence[str] | None = None,
    train_normals: int = 40,
    test_normals: int = 16,
    defects_per_kind: int = 5,
    size: int = 320,
    seed: int = 0,
) -> bool:
    """Whether ``render_line`` with these parameters has already completed in ``root``.

    Raises as ``render_line`` does for wrong parameters; a folder that is no sample line gives DataError.
    """
    names = _wanted(products)
    recipe = _recipe(train_normals, test_normals, defects_per_kind, size, seed)
    marker = read_marker(root)
    if marker is None:
        return False
    return all(marker.sample_line.get(name) == recipe and (root / name).is_dir() for name in names)
