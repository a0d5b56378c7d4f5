"""Opening a product as the verbs do."""

from pathlib import Path

from adclick_edge.data.dataset import Product, open_product, with_split

__all__ = ["open_with_split"]


def open_with_split(data: Path, product: str | None, split_normals: float | None) -> Product:
    """The product; its normals split by content where ``split_normals`` (a share for training) is given."""
    opened = open_product(data, product)
    return opened if split_normals is None else with_split(opened, split_normals)
