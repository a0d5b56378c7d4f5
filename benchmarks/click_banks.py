"""Product bundles that the benchmarks of clicks score, each made once from a bundle of weights with click graphs."""

from pathlib import Path

from adclick_edge.bundle import read_bundle
from adclick_edge.commands.bank import BankCall
from adclick_edge.commands.bank import run as make_bank
from adclick_edge.errors import UsageError

__all__ = ["product_bundle"]


def product_bundle(weights: Path, data: Path, product: str, out: Path, size: int) -> Path:
    """The bundle ``out`` of a product's good parts, as `adclick bank --size` makes it; one that is there is taken.

    Raises UsageError where what is there was made from other weights or at another size.
    """
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        make_bank(BankCall(data=data, out=out, product=product, weights=weights, size=size))
    with read_bundle(weights) as base, read_bundle(out) as made:
        if (made.manifest.parent, made.manifest.input_size) != (base.manifest.version, (size, size)):
            raise UsageError(
                f"{out} was made from other weights than {weights} or at another size; give another --banks"
            )
    return out
