"""``adclick bank``"""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec

from adclick_edge.bundle import Bundle, Tiling, read_bundle
from adclick_edge.commands.product import open_with_split
from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.errors import UsageError
from adclick_edge.features.bank import Bank
from adclick_edge.models.presets import Preset, preset_named
from adclick_edge.runtime.calibration import load_calibration
from adclick_edge.runtime.regions import Regions, read_regions
from adclick_edge.runtime.setup import SetUp, set_up_product

__all__ = ["BACKBONE_SUFFIXES", "SHIPPED_WEIGHTS", "BankCall", "run"]

SHIPPED_WEIGHTS = Path(str(files("adclick_edge") / "weights" / "edge.bundle"))
BACKBONE_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class BankCall:
    """The verb's options, as given."""

    data: Path
    out: Path
    product: str | None
    weights: Path | None
    backbone: str | None
    preset: str | None
    size: int | None
    rows: int | None
    search_dims: int | None
    position_weight: float | None
    window: int | None
    retrieve: int | None
    tile_scale: float | None
    tile_overlap: int
    regions: Path | None
    false_alarms: float
    split_normals: float | None


def run(call: BankCall) -> None:
    began = time.monotonic()
    product = open_with_split(call.data, call.product, call.split_normals)
    normals = product.normals("train")
    with ExitStack() as stack:
        weights = stack.enter_context(_weights(call, stack))
        preset = preset_named(call.preset or weights.manifest.preset)
        set_up_product(weights, normals, call.out, _setup(call, product.name, weights, preset))
    with read_bundle(call.out) as bundle:
        thresholds = load_calibration(bundle)
        pictures = len(Bank.from_bytes(bundle.read("bank.safetensors")).image_hashes)
        print(f"{call.out}: {product.name}, version {bundle.manifest.version}, {pictures} normal pictures")
        if thresholds is None:
            print("no thresholds yet: run `adclick calibrate` with normal pictures that are not in the bank")
        else:
            print(f"first thresholds: uncertain from {thresholds.lower:.4g}, ng from {thresholds.upper:.4g}")
            for note in thresholds.notes:
                print(f"  note: {note}")
    print(f"{time.monotonic() - began:.1f} s")


def _weights(call: BankCall, stack: ExitStack) -> Bundle:
    if call.weights is None:
        return read_bundle(SHIPPED_WEIGHTS)
    if call.weights.suffix.lower() not in BACKBONE_SUFFIXES:
        return read_bundle(call.weights)
    with needs_torch("backbone weights"):
        from adclick_edge.export.run_bundle import export_backbone
    preset = preset_named(call.preset or "edge-s")
    if call.backbone is not None:
        preset = msgspec.structs.replace(preset, backbone=call.backbone)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".adclick-weights.")))
    export_backbone(preset, call.weights, scratch / "weights", weights_license="unknown")
    return read_bundle(scratch / "weights")


def _setup(call: BankCall, product: str, weights: Bundle, preset: Preset) -> SetUp:
    given = {
        "rows": call.rows,
        "search_dims": call.search_dims,
        "position_weight": call.position_weight,
        "window_radius": call.window,
        "retrieve_images": call.retrieve,
    }
    options = msgspec.structs.replace(preset.bank, **{k: v for k, v in given.items() if v is not None})
    if options.window_radius >= 0 and options.retrieve_images:
        raise UsageError("--window and --retrieve exclude each other: parts are aligned, or looked up among all")
    size = preset.input_size if call.preset else weights.manifest.input_size
    if call.size is not None:
        if call.size < 32 or call.size % 16:
            raise UsageError(f"--size {call.size}: the network needs a multiple of 16, at least 32")
        size = (call.size, call.size)
    tiling = None
    if call.tile_scale is not None:
        if call.tile_overlap >= min(size):
            raise UsageError(f"--tile-overlap {call.tile_overlap} must be less than the tile, {min(size)} px")
        if call.window is not None or call.position_weight:
            raise UsageError(
                "tiles have no fixed place on the part: --window and --position-weight do not go with them"
            )
        tiling = Tiling(scale=call.tile_scale, overlap=call.tile_overlap)
    regions = Regions() if call.regions is None else read_regions(call.regions)
    return SetUp(product, size, options, tiling, regions, call.false_alarms)
