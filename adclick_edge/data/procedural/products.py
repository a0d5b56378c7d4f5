"""Procedural worlds as products on disk, in MVTec AD layout: what the shipped ADClick-Seg is trained on.

    python -m adclick_edge.data.procedural.products DIR --worlds 32 --normals 16
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from adclick_edge.console import progress_console
from adclick_edge.data.procedural.scenes import World
from adclick_edge.errors import UsageError
from adclick_edge.files import atomic_folder

__all__ = ["write_worlds"]


def write_worlds(root: Path, *, worlds: int, normals: int, side_px: int = 256, seed: int = 0) -> None:
    """Write ``worlds`` products of ``normals`` training pictures each to ``root``; UsageError if it exists."""
    if root.exists():
        raise UsageError(f"{root} exists; give a new folder for the procedural products")
    with atomic_folder(root) as folder:
        for number in track(range(worlds), "worlds", console=progress_console()):
            world = World(seed * 1_000_003 + number)
            good = folder / f"world{number:03d}" / "train" / "good"
            good.mkdir(parents=True)
            for picture in range(normals):
                rgb = world.picture(np.random.default_rng([seed, number, picture]), side_px, side_px).rgb
                pixels = (rgb * 255 + 0.5).astype(np.uint8)
                cv2.imwrite(str(good / f"{picture:03d}.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--normals", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_worlds(options.root, worlds=options.worlds, normals=options.normals, seed=options.seed)


if __name__ == "__main__":
    main()
