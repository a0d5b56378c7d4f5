"""``adclick regions``"""

from pathlib import Path

import msgspec

from adclick_edge.bundle import Bundle, read_bundle
from adclick_edge.bundle.names import SETTINGS
from adclick_edge.console import progress_console
from adclick_edge.errors import BundleError, UsageError
from adclick_edge.features.bank import Bank
from adclick_edge.runtime.inspector import MAP_STRIDE
from adclick_edge.runtime.regions import Regions, check_covered, load_regions, read_regions, store_regions

__all__ = ["run"]


def run(bundle_path: Path, set_file: Path | None) -> None:
    # Neither setting is read on opening: damaged ones must not keep anybody from setting the regions again.
    with read_bundle(bundle_path, unread=SETTINGS) as bundle:
        if set_file is not None:
            _set(bundle, read_regions(set_file))
        print(msgspec.json.encode(load_regions(bundle)).decode())
    if set_file is not None:
        progress_console().print(
            "thresholds set under other regions are no longer used: run `adclick calibrate` again", markup=False
        )


def _set(bundle: Bundle, regions: Regions) -> None:
    if bundle.manifest.kind == "product" and bundle.manifest.tiling is None:
        bank = Bank.from_bytes(bundle.read("bank.safetensors"), name=f"{bundle.location}: bank.safetensors")
        check_covered(regions, _present(bundle), bank.row_cell, bank.grid)
    height, width = bundle.manifest.input_size
    store_regions(bundle, regions, (height // MAP_STRIDE, width // MAP_STRIDE))


def _present(bundle: Bundle) -> Regions | None:
    try:
        return load_regions(bundle)
    except (BundleError, UsageError):
        return None  # damaged, which is why they are being set
