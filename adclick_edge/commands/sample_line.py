"""``adclick sample-line``"""

from collections.abc import Sequence
from pathlib import Path

from adclick_edge.console import progress_console
from adclick_edge.data.sample_line import PRODUCTS, contact_sheet, is_rendered, render_line

__all__ = ["run"]


def run(
    root: Path,
    products: Sequence[str] | None,
    train_normals: int,
    test_normals: int,
    defects_per_kind: int,
    size: int,
    seed: int,
    sheet: Path | None,
) -> None:
    chosen = list(products or PRODUCTS)

    def done() -> bool:
        return is_rendered(
            root,
            products=chosen,
            train_normals=train_normals,
            test_normals=test_normals,
            defects_per_kind=defects_per_kind,
            size=size,
            seed=seed,
        )

    if root.is_dir() and any(root.iterdir()) and done():
        progress_console().print(f"{root} holds this very line already", markup=False, soft_wrap=True)
    else:
        render_line(
            root,
            products=chosen,
            train_normals=train_normals,
            test_normals=test_normals,
            defects_per_kind=defects_per_kind,
            size=size,
            seed=seed,
            progress=True,
        )
    if sheet is not None:
        contact_sheet(root, sheet)
    print(f"{root}: products {', '.join(chosen)}")
