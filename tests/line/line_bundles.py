"""Small real product bundles, made in seconds from the weights the package ships, and ways to spoil them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import cv2
import msgspec
import numpy as np

from adclick_edge.bundle import GoldenFrame, Tiling, golden_files, read_bundle, write_bundle
from adclick_edge.bundle.archive import folder_lock
from adclick_edge.commands.bank import SHIPPED_WEIGHTS
from adclick_edge.data.dataset import Sample
from adclick_edge.features.bank import BankOptions
from adclick_edge.line.config import Camera, Line, LineConfig, Product
from adclick_edge.runtime.setup import SetUp, set_up_product

SIDE = 64
COMPUTED = {"schema_version", "version", "files", "adclick_edge_version", "manifest_sha256"}


@dataclass(frozen=True)
class LineBundles:
    """Folders. Do not change them: copy them first (`copied`)."""

    nut: Path
    nut_more_rows: Path
    """The same graphs, another bank."""
    nut_other_weights: Path
    """Graphs of other bytes, that compute the same."""
    nut_larger: Path
    """Frames of 96 x 96 instead of 64 x 64."""
    bolt: Path
    """Another product on the graphs of ``nut``."""
    tiled: Path
    """The product "tiled", judged in tiles."""

    @classmethod
    def at(cls, root: Path) -> Self:
        return cls(**{field.name: root / field.name for field in fields(cls)})


def make_line_bundles(root: Path) -> LineBundles:
    """The bundles below ``root``, made unless another test or worker has made them."""
    with folder_lock(root.parent):
        if not root.exists():
            draft = root.with_name(f"{root.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            _fill(draft)
            draft.rename(root)
    return LineBundles.at(root)


def _fill(root: Path) -> None:
    pictures = [Sample(path, "train", "good") for path in _pictures(root / "pictures")]
    with read_bundle(SHIPPED_WEIGHTS) as weights:

        def make(name: str, product: str, *, rows: int = 60, side: int = SIDE, tiling: Tiling | None = None) -> None:
            setup = SetUp(product, (side, side), BankOptions(rows=rows, search_dims=8), tiling)
            set_up_product(weights, pictures, root / name, setup)

        make("nut", "nut")
        make("nut_more_rows", "nut", rows=120)
        make("nut_larger", "nut", side=96)
        make("bolt", "bolt", rows=80)
        make("tiled", "tiled", tiling=Tiling(scale=1.0, overlap=16))
    rewritten(root / "nut", root / "nut_other_weights", change_files=with_other_graphs)


def _pictures(folder: Path) -> list[Path]:
    """Six noisy pictures of a disc."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.cvtColor(good_frame(number), cv2.COLOR_RGB2BGR))
        paths.append(folder / f"{number}.png")
    return paths


def good_frame(seed: int, side: int = SIDE) -> np.ndarray:
    """uint8 RGB [side, side, 3]: a part as the banks know it."""
    rng = np.random.default_rng(seed)
    frame = np.full((side, side, 3), 90, np.uint8)
    cv2.circle(frame, (side // 2, side // 2), side // 3, (180, 160, 120), -1)
    return np.clip(frame.astype(np.int16) + rng.integers(-6, 7, frame.shape), 0, 255).astype(np.uint8)


def bad_frame(seed: int, side: int = SIDE) -> np.ndarray:
    frame = good_frame(seed, side)
    frame[side // 4 : side // 2, side // 2 : 3 * side // 4] = (255, 0, 255)
    return frame


def line_config(
    state: Path, max_batch: int = 2, codes: dict[str, tuple[str, ...]] | None = None, **bundles: Path
) -> LineConfig:
    """A line with a camera ``cam-PRODUCT`` for each product."""
    return LineConfig(
        line=Line(state=state, max_batch=max_batch),
        products={name: Product(bundle=path, codes=(codes or {}).get(name, ())) for name, path in bundles.items()},
        cameras={f"cam-{name}": Camera(product=name) for name in bundles},
    )


def copied(bundle: Path, out: Path) -> Path:
    shutil.copytree(bundle, out)
    return out


def version(bundle: Path) -> str:
    with read_bundle(bundle) as opened:
        return opened.manifest.version


Files = dict[str, bytes]


def rewritten(
    source: Path,
    out: Path,
    *,
    change_files: Callable[[Files], Files] = lambda files: files,
    change_golden: Callable[[GoldenFrame], GoldenFrame] | None = None,
    **fields: object,
) -> Path:
    """The bundle at ``source`` with other content, hashes and all, thresholds and regions kept where they still fit."""
    with read_bundle(source) as bundle:
        files = change_files({name: bundle.read(name) for name in bundle.manifest.files})
        if change_golden is not None:
            files |= golden_files([change_golden(golden) for golden in bundle.golden()])
        manifest = {k: v for k, v in msgspec.to_builtins(bundle.manifest).items() if k not in COMPUTED}
        calibration, regions = bundle.calibration, bundle.regions
    write_bundle(out, {**manifest, **fields}, files, regions=regions)
    with read_bundle(out) as bundle:
        if calibration is not None:
            bundle.set_calibration({**calibration, "bundle_version": bundle.manifest.version})
    return out


def with_other_graphs(files: Files) -> Files:
    import onnx

    graph = onnx.load_from_string(files["features.onnx"])
    graph.doc_string = "the same, to everybody but a hash"
    return {**files, "features.onnx": graph.SerializeToString()}


def without_thresholds(source: Path, out: Path) -> Path:
    (copied(source, out) / "calibration.json").unlink()
    return out


def with_a_graph_byte_changed(source: Path, out: Path) -> Path:
    path = copied(source, out) / "features.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return out


def with_a_file_missing(source: Path, out: Path) -> Path:
    (copied(source, out) / "segment.onnx").unlink()
    return out


def with_a_truncated_bank(source: Path, out: Path) -> Path:
    return rewritten(
        source, out, change_files=lambda files: files | {"bank.safetensors": files["bank.safetensors"][:-100]}
    )


def with_golden_frames_of_another(source: Path, out: Path) -> Path:
    return rewritten(
        source, out, change_golden=lambda g: GoldenFrame(g.name, g.frame, np.roll(g.map, 3, axis=1), g.score)
    )


def with_no_network(source: Path, out: Path) -> Path:
    return rewritten(source, out, change_files=lambda files: files | {"segment.onnx": b"not a graph"})


def zipped(source: Path, out: Path) -> Path:
    rewritten(source, out)
    return out
