"""``adclick bank``"""

import os
import tempfile
import time
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import msgspec

from adclick_edge.bundle import Bundle, Tiling, read_bundle
from adclick_edge.commands.product import open_with_split
from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample, list_products, with_split
from adclick_edge.data.images import list_images
from adclick_edge.errors import AdclickError, BundleError, UsageError
from adclick_edge.features.bank import Bank
from adclick_edge.models.presets import PRESETS, Preset, preset_named
from adclick_edge.runtime.calibration import load_calibration
from adclick_edge.runtime.inspector import MAP_STRIDE
from adclick_edge.runtime.regions import Regions, load_regions, read_regions
from adclick_edge.runtime.setup import SetUp, set_up_product
from adclick_edge.runtime.tiles import plan_tiles

__all__ = ["BACKBONE_SUFFIXES", "SHIPPED_WEIGHTS", "BankCall", "run"]

SHIPPED_WEIGHTS = Path(str(files("adclick_edge") / "weights" / "edge.bundle"))
MANIFEST = "manifest.json"
BACKBONE_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class BankCall:
    """The verb's options, as given."""

    data: Path
    out: Path
    product: str | None = None
    weights: Path | None = None
    backbone: str | None = None
    preset: str | None = None
    size: int | None = None
    rows: int | None = None
    search_dims: int | None = None
    position_weight: float | None = None
    window: int | None = None
    retrieve: int | None = None
    tile_scale: float | None = None
    tile_overlap: int = 64
    regions: Path | None = None
    false_alarms: float = 0.01
    split_normals: float | None = None


def run(call: BankCall) -> None:
    began = time.monotonic()
    _check_out(call.out)
    product = _flat_product(call) or open_with_split(call.data, call.product, call.split_normals)
    before = _standing(call.out, product.name)
    normals = product.normals("train")
    with ExitStack() as stack:
        weights = _weights(call, stack)
        preset = preset_named(call.preset or weights.manifest.preset)
        setup = _setup(call, product.name, weights, preset)
        if before.regions is not None and call.regions is None:
            setup = replace(setup, regions=before.regions)
            _tell(f"the regions of the bundle at {call.out} are kept; give --regions FILE for others")
        set_up_product(weights, normals, call.out, setup)
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
    if before.held_out:
        _tell(
            "the bundle that stood here had thresholds from held-out pictures; they do not fit the new bank and were "
            f"replaced by leave-one-out ones: run `adclick calibrate {call.out}` again"
        )
    print(f"{time.monotonic() - began:.1f} s")


@dataclass(frozen=True)
class _Standing:
    """What a bundle that is about to be replaced held: regions worth keeping, and whether its thresholds were earned."""

    regions: Regions | None = None
    held_out: bool = False


def _standing(out: Path, product: str) -> _Standing:
    if not out.exists() or (out.is_dir() and not (out / MANIFEST).is_file()):
        return _Standing()
    try:
        with read_bundle(out) as bundle:
            own, regions, settings = bundle.manifest.product, load_regions(bundle), bundle.calibration
    except AdclickError as error:
        # A spoiled bundle may be replaced, but not without a word about what went with it.
        _tell(f"what stands at {out} cannot be read ({error}): its regions and thresholds, if any, are not kept")
        return _Standing()
    held_out = isinstance(settings, dict) and settings.get("source") == "held_out"
    if own != product:
        _tell(f"{out} held {own or 'weights'!r} and is replaced by {product!r}: its regions are not kept")
        return _Standing(None, held_out)
    return _Standing(regions if regions.roi or regions.ignore else None, held_out)


def _check_out(out: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent on a bank. Raises BundleError."""
    place = Path(os.path.abspath(out))
    for parent in place.parents:
        if (parent / MANIFEST).is_file():
            raise BundleError(f"{out}: lies inside the bundle {parent}, which must not change; choose another place")
    existing = next(parent for parent in place.parents if parent.exists())
    if not existing.is_dir():
        raise BundleError(f"{out}: {existing} is a file, not a folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BundleError(f"{out}: {existing} cannot be written to; choose another place, or change its rights")
    if out.suffix.lower() == ".zip":
        if out.is_dir():
            raise BundleError(f"{out}: is a folder, but the name asks for a zip; choose another name")
        if out.exists() and not _is_zipped_bundle(out):
            raise BundleError(f"{out}: exists and is not a bundle, so it will not be replaced; choose another name")
    elif out.is_dir() and not out.is_symlink():
        if not (out / MANIFEST).is_file() and any(out.iterdir()):
            raise BundleError(f"{out}: exists and is not a bundle, so it will not be replaced; choose another folder")
    elif out.exists() or out.is_symlink():
        raise BundleError(f"{out}: exists and is not a folder; choose another name, or one ending with .zip")


def _is_zipped_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _flat_product(call: BankCall) -> Product | None:
    """A folder in no known layout with pictures directly in it: all of them good parts of one product."""
    if not call.data.is_dir() or not (pictures := list_images(call.data)) or list_products(call.data):
        return None
    _tell(f"{call.data}: in no known layout; the {len(pictures)} pictures directly in it are taken for good parts")
    samples = tuple(Sample(path, "train", "good") for path in pictures)
    name = call.product or call.data.resolve().name
    product = Product(name, call.data, "flat", samples, has_split=call.split_normals is None)
    return product if call.split_normals is None else with_split(product, call.split_normals)


def _tell(message: str) -> None:
    progress_console().print(message, style="yellow", markup=False, soft_wrap=True)


def _weights(call: BankCall, stack: ExitStack) -> Bundle:
    if call.weights is None or call.weights.suffix.lower() not in BACKBONE_SUFFIXES:
        if call.backbone is not None:
            raise UsageError(
                f"--backbone {call.backbone} names what backbone weights belong to: give these with --weights, a file "
                f"ending with {', '.join(BACKBONE_SUFFIXES)}; a bundle has its backbone in it"
            )
        bundle = stack.enter_context(read_bundle(call.weights or SHIPPED_WEIGHTS))
        if call.preset is not None:
            _check_preset(preset_named(call.preset), bundle)
        return bundle
    with needs_torch("backbone weights"):
        from adclick_edge.export.run_bundle import export_backbone
    preset = preset_named(call.preset or "edge-s")
    if call.backbone is not None:
        preset = msgspec.structs.replace(preset, backbone=call.backbone)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".adclick-weights.")))
    export_backbone(preset, call.weights, scratch / "weights", weights_license="unknown")
    return stack.enter_context(read_bundle(scratch / "weights"))


def _check_preset(preset: Preset, weights: Bundle) -> None:
    """Refuse a preset that the networks of a bundle were not built by. Raises UsageError."""
    name = weights.manifest.preset
    own = PRESETS.get(name)
    if own is None:
        if preset.name == name:
            return
        raise UsageError(
            f"{weights.location}: its preset {name!r} is unknown to this release, so --preset cannot change it"
        )
    backbone = weights.manifest.training.get("backbone", own.backbone)
    for what, asked, has in (
        ("backbone", preset.backbone, backbone),
        ("embedding", preset.embedding, own.embedding),
        ("embedding strides", preset.embedding_strides, own.embedding_strides),
    ):
        if asked != has and preset.name != name:
            raise UsageError(
                f"--preset {preset.name} has the {what} {asked}, but the networks of {weights.location} have {has}; leave "
                "--preset out, or give weights made with that preset"
            )


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
        try:
            plan_tiles(*size, size, call.tile_overlap, scale=MAP_STRIDE)
        except UsageError as error:
            raise UsageError(f"--tile-overlap {call.tile_overlap}: {error}") from error
        if options.position_weight > 0 or options.window_radius >= 0:
            raise UsageError(
                "tiles have no fixed place on the part: a position window or weight does not go with them; leave out "
                f"--window, and give --position-weight 0 where the preset has a weight ({preset.name}: "
                f"{preset.bank.position_weight})"
            )
        tiling = Tiling(scale=call.tile_scale, overlap=call.tile_overlap)
    regions = Regions() if call.regions is None else read_regions(call.regions)
    return SetUp(product, size, options, tiling, regions, call.false_alarms, preset.name)
