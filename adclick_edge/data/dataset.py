"""Data sets on disk as products: which pictures there are, which are normal, which are defective and how."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.layouts import LAYOUTS, Layout, detect_layout, layout_named
from adclick_edge.data.layouts.layout import subfolders
from adclick_edge.data.sample import Sample, Split
from adclick_edge.data.splits import split_by_content
from adclick_edge.errors import DataError, ImageError, UsageError

__all__ = [
    "Problem",
    "Product",
    "Sample",
    "Split",
    "check_product",
    "list_products",
    "open_product",
    "with_split",
]


@dataclass(frozen=True)
class Product:
    """One product: ``root`` is its own folder. Without ``has_split`` the samples' ``split`` says nothing."""

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    has_split: bool = True

    def normals(self, split: Split | None = None) -> tuple[Sample, ...]:
        """Normal samples of one split, or of both. DataError for a named split when the product has none."""
        if split is not None and not self.has_split:
            raise DataError(
                f"{self.root}: its normal images are not split into train and test; split them by content "
                "(--split-normals FRACTION on the command line, with_split in Python)"
            )
        return tuple(s for s in self.samples if not s.is_defect and split in (None, s.split))

    def defects(self, split: Split | None = None, kinds: Collection[str] | None = None) -> tuple[Sample, ...]:
        """Defective samples, of one split and of some kinds if asked. DataError for a kind that does not exist."""
        unknown = sorted(set(kinds or ()) - set(self.kinds()))
        if unknown:
            raise DataError(
                f"{self.root}: has no defects of the kind {unknown[0]!r}; it has {', '.join(self.kinds()) or 'none'}"
            )
        return tuple(
            s for s in self.samples if s.is_defect and split in (None, s.split) and (kinds is None or s.kind in kinds)
        )

    def kinds(self) -> tuple[str, ...]:
        """The kinds of defects, sorted."""
        return tuple(sorted({s.kind for s in self.samples if s.is_defect}))

    def unmasked(self) -> tuple[Sample, ...]:
        """Defects without a mask: fit to judge verdicts on whole images, not pixels."""
        return tuple(s for s in self.samples if s.is_defect and s.mask_path is None)


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used as it is, and why."""

    path: Path
    message: str


def list_products(root: Path, layout: str = "auto") -> tuple[str, ...]:
    """Names of the products in ``root``: its own name if it is one product, else the subfolders that are.

    ``layout`` is "auto" or the name of one. DataError when ``root`` is no folder or follows several layouts.
    """
    return tuple(_find_products(root, layout))


def open_product(root: Path, product: str | None = None, layout: str = "auto") -> Product:
    """The product called ``product`` in ``root``; None will do where ``root`` is one product or holds exactly one.

    Raises DataError when it is not there, when files contradict the layout or when it holds no picture, ImageError for
    a ground truth that cannot be read (KSDD2 only: elsewhere no file is opened).
    """
    found = _find_products(root, layout)
    if not found:
        wanted = LAYOUTS.values() if layout == "auto" else [layout_named(layout)]
        forms = "; ".join(f"{a.name}: {a.description}" for a in wanted)
        raise DataError(f"{root}: holds no product in a known layout. Known layouts ({forms})")
    if product is None:
        if len(found) > 1:
            raise DataError(f"{root}: holds {len(found)} products; name one of {', '.join(found)}")
        product = next(iter(found))
    if product not in found:
        raise DataError(f"{root}: has no product {product!r}; it has {', '.join(found)}")
    folder, its_layout = found[product]
    reading = its_layout.read(folder)
    if not reading.samples:
        raise DataError(f"{folder}: has the folders of the layout {its_layout.name} but no image in them; add images")
    return Product(product, folder, its_layout.name, reading.samples, reading.has_split)


def _find_products(root: Path, layout: str) -> dict[str, tuple[Path, Layout]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; check the path of the data set")
    fixed = None if layout == "auto" else layout_named(layout)

    def layout_of(folder: Path) -> Layout | None:
        if fixed is None:
            return detect_layout(folder)
        return fixed if fixed.matches(folder) else None

    root_layout = layout_of(root)
    if root_layout is not None:
        return {root.resolve().name: (root, root_layout)}
    return {sub.name: (sub, found) for sub in subfolders(root) if (found := layout_of(sub)) is not None}


def with_split(product: Product, train_fraction: float, seed: int = 0) -> Product:
    """``product`` with its normals split into train and test by content; its defects are all test.

    Copies and near-copies of one picture stay together. Raises UsageError when the product has a split already or the
    fraction is not strictly between 0 and 1, DataError when a part stays empty.
    """
    if product.has_split:
        raise UsageError(f"{product.root}: is already split into train and test; leave the split as it is")
    if not 0 < train_fraction < 1:
        raise UsageError(f"the fraction of normals to train on is {train_fraction}; give one between 0 and 1")
    parts = split_by_content(product.normals(), {"train": train_fraction, "test": 1 - train_fraction}, seed=seed)
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"{product.root}: no normal image falls to {name}; add images that are not copies of each other, "
                f"or train on another fraction than {train_fraction}"
            )
    train = {sample.path for sample in parts["train"]}
    samples = tuple(replace(s, split="train" if s.path in train else "test") for s in product.samples)
    return replace(product, samples=samples, has_split=True)


def check_product(product: Product) -> list[Problem]:
    """Read every file of ``product`` and list those that cannot be used, in the order of its samples.

    Besides unreadable files: masks of another size than their image and masks that mark nothing.
    """
    problems = []
    for sample in product.samples:
        at = sample.path
        try:
            height, width, _ = read_image(sample.path).shape
            if sample.mask_path is not None:
                at = sample.mask_path
                if not read_mask(sample.mask_path, (height, width)).any():
                    problems.append(Problem(at, f"{at}: marks no pixel; draw the defect or remove the mask"))
        except ImageError as error:
            problems.append(Problem(at, str(error)))
    return problems
