"""``adclick regions``"""

from pathlib import Path

import msgspec

from adclick_edge.bundle import read_bundle
from adclick_edge.console import progress_console
from adclick_edge.runtime.inspector import MAP_STRIDE
from adclick_edge.runtime.regions import load_regions, read_regions, store_regions

__all__ = ["run"]


def run(bundle_path: Path, set_file: Path | None) -> None:
    with read_bundle(bundle_path) as bundle:
        if set_file is not None:
            height, width = bundle.manifest.input_size
            store_regions(bundle, read_regions(set_file), (height // MAP_STRIDE, width // MAP_STRIDE))
        print(msgspec.json.encode(load_regions(bundle)).decode())
    if set_file is not None:
        progress_console().print("scores change with the regions: run `adclick calibrate` again", markup=False)
