"""Setting up a product on the edge box: normal pictures and weights in, a product bundle out. No training, no torch."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.progress import track

from adclick_edge.bundle import Bundle, GoldenFrame, Tiling, golden_files, write_bundle
from adclick_edge.bundle.names import CLICK_GOLDEN, PROMPTS
from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Sample
from adclick_edge.data.images import read_image
from adclick_edge.data.resize import fit
from adclick_edge.errors import DataError, ImageError
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.files import sha256_file
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.inspector import MAP_STRIDE, Inspector, scaled_size
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.runtime.regions import Regions, masked_score, store_regions, valid_mask
from adclick_edge.runtime.tiles import cut_tile, plan_tiles

__all__ = ["SetUp", "build_bank", "set_up_product", "write_product"]

U8 = npt.NDArray[np.uint8]

GOLDEN_FRAMES = 3
MOST_FRAMES = 64
CELL = 8
KEPT_MANIFEST_FIELDS = (
    "segmenter",
    "features_outputs",
    "segment_inputs",
    "segment_outputs",
    "embedding_dims",
    "training",
    "metrics",
    "parity",
    "weights_license",
    "click",
)


@dataclass(frozen=True)
class SetUp:
    """What a product's set-up is decided by, besides its pictures."""

    product: str
    input_size: tuple[int, int]
    options: BankOptions
    tiling: Tiling | None = None
    regions: Regions = field(default_factory=Regions)
    false_alarms: float = 0.01
    preset: str | None = None
    """What the manifest calls the preset; None: the weights' own."""


def set_up_product(weights: Bundle, normals: Sequence[Sample], out: Path, setup: SetUp) -> Path:
    """Write the product bundle ``out``: graphs of ``weights``, a bank of ``normals``, golden frames, first thresholds.

    The thresholds come from leave-one-out scores of the bank's own normals and say so; `adclick calibrate` replaces
    them by ones from held-out parts. Unreadable pictures are reported on stderr and left out; DataError if none is left.
    """
    engine = OrtCpuEngine(weights.path("features.onnx").parent)
    usable = _readable(normals)
    bank = build_bank(engine, usable, setup)
    return write_product(weights, bank, [s.path for s in usable], out, setup)


def build_bank(engine: OrtCpuEngine, normals: Sequence[Sample], setup: SetUp) -> Bank:
    """The bank of normal pictures, in the order given."""
    builder = BankBuilder(setup.options)
    for sample in track(normals, "bank", console=progress_console()):
        image = read_image(sample.path)
        digest = sha256_file(sample.path)
        for number, (frame, valid) in enumerate(_network_frames(image, setup)):
            features = engine.features(frame[None])
            retrieval = features["map4"][0] if setup.options.retrieve_images else None
            builder.add(
                features["embedding"][0],
                # All tiles of a picture are one picture: none of them may match its neighbour's overlap.
                image_hash=digest,
                new_image=number == 0,
                retrieval_map=retrieval,
                valid=valid,
            )
    return builder.build()


def write_product(
    weights: Bundle,
    bank: Bank,
    pictures: Sequence[Path],
    out: Path,
    setup: SetUp,
    *,
    held_out: Sequence[Path] = (),
) -> Path:
    """Write a product bundle around ``bank``.

    ``pictures`` are the bank's images, in its order; ``held_out`` are normal ones that are not in it, to take the first
    thresholds from.
    """
    manifest: Mapping[str, Any] = msgspec.to_builtins(weights.manifest)
    kept = {
        name: weights.read(name)
        for name in weights.manifest.files
        if name.endswith(".onnx") or name in (PROMPTS, CLICK_GOLDEN)
    }
    fields: dict[str, object] = {
        **{key: manifest[key] for key in KEPT_MANIFEST_FIELDS},
        "kind": "product",
        "preset": setup.preset or weights.manifest.preset,
        "product": setup.product,
        "parent": weights.manifest.version,
        "input_size": setup.input_size,
        "search_dims": bank.projection.shape[1],
        "tiling": None if setup.tiling is None else msgspec.to_builtins(setup.tiling),
    }
    files: dict[str, bytes | Path] = {**kept, "bank.safetensors": bank.to_bytes()}
    # Golden frames and first thresholds are computed by drafts of the bundle itself; `out` appears once, complete.
    with tempfile.TemporaryDirectory(prefix=".adclick-bank.") as scratch:
        draft = write_bundle(Path(scratch) / "draft", fields, files)
        with Inspector.open(draft) as inspector:
            files |= golden_files(_golden(inspector, pictures, setup))
        checked = write_bundle(Path(scratch) / "checked", fields, files)
        with Inspector.open(checked) as inspector:
            _settle(inspector, pictures, setup, held_out)
            calibration, regions = inspector.bundle.calibration, inspector.bundle.regions
    return write_bundle(out, fields, files, calibration=calibration, regions=regions)


def _settle(inspector: Inspector, pictures: Sequence[Path], setup: SetUp, held_out: Sequence[Path]) -> None:
    """Give a bundle its regions and first thresholds."""
    if setup.regions.roi or setup.regions.ignore:
        (probe,), _ = inspector.maps([read_image(pictures[0])])
        store_regions(inspector.bundle, setup.regions, (probe.shape[0], probe.shape[1]))
        inspector.reload_settings()
    if held_out:
        scores, source = _scores(inspector, held_out, leave_one_out=False), "held_out"
    else:
        scores, source = _scores(inspector, pictures, leave_one_out=True), "leave_one_out"
    if not scores:
        return
    first = calibrate(scores, false_alarms=setup.false_alarms, source=source, author="set-up")  # type: ignore[arg-type]
    if seen := _seen_in_training(inspector, held_out or pictures):
        note = f"the network's training saw {seen} of these pictures: calibrate on fresh normals for bounds that hold"
        first = msgspec.structs.replace(first, notes=(*first.notes, note))
    store_calibration(inspector.bundle, first)


def _seen_in_training(inspector: Inspector, pictures: Sequence[Path]) -> int:
    """How many of ``pictures`` the network learnt from or had its checkpoint chosen by."""
    seen = frozenset(inspector.bundle.manifest.training.get("image_hashes", ()))
    return sum(sha256_file(path) in seen for path in pictures) if seen else 0


def _readable(normals: Sequence[Sample]) -> list[Sample]:
    console = progress_console()
    usable = []
    for sample in normals:
        try:
            read_image(sample.path)
        except ImageError as error:
            console.print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
        else:
            usable.append(sample)
    if not usable:
        raise DataError("none of the normal pictures can be read; a bank needs at least one (20 to 200 are usual)")
    return usable


def _network_frames(image: U8, setup: SetUp) -> list[tuple[U8, npt.NDArray[np.bool_] | None]]:
    """What the network sees of a picture, each with the cells that are inspected."""
    if setup.tiling is None:
        grid = (setup.input_size[0] // CELL, setup.input_size[1] // CELL)
        everywhere = not setup.regions.roi and not setup.regions.ignore
        return [(fit(image, setup.input_size), None if everywhere else valid_mask(setup.regions, *grid))]
    scaled = fit(image, scaled_size(image.shape, setup.tiling.scale))
    tiles = plan_tiles(scaled.shape[0], scaled.shape[1], setup.input_size, setup.tiling.overlap, scale=MAP_STRIDE)
    return [(cut_tile(scaled, tile), None) for tile in tiles]


def _golden(inspector: Inspector, pictures: Sequence[Path], setup: SetUp) -> list[GoldenFrame]:
    """A few pictures as the network sees them, half of one darkened: it must not be normal in every cell."""
    chosen = [pictures[i] for i in sorted({0, len(pictures) // 2, len(pictures) - 1})][:GOLDEN_FRAMES]
    golden = []
    for number, path in enumerate(chosen):
        frame, _ = _network_frames(read_image(path), setup)[0]
        if number == 0:
            frame = frame.copy()
            frame[: frame.shape[0] // 2, : frame.shape[1] // 2] //= 2
        (anomaly_map,), _ = inspector.maps([frame])
        golden.append(GoldenFrame(f"{number:03d}", frame, anomaly_map, masked_score(anomaly_map)))
    return golden


def _scores(inspector: Inspector, pictures: Sequence[Path], *, leave_one_out: bool) -> list[float]:
    """Scores of up to 64 normal pictures; ``leave_one_out``: they are the bank's, each is matched to all others."""
    step = -(-len(pictures) // MOST_FRAMES)
    scores = []
    for number in track(range(0, len(pictures), step), "first thresholds", console=progress_console()):
        own = [number] if leave_one_out else None
        if leave_one_out and (inspector.bank.row_image == number).all():
            continue  # the only picture, or one that all others repeat: without it there is nothing to match
        (anomaly_map,), _ = inspector.maps([read_image(pictures[number])], exclude_images=own)
        scores.append(masked_score(anomaly_map, inspector.valid(anomaly_map.shape)))
    return scores
