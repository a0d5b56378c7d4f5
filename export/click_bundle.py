"""An exported bundle and a network for clicks to one bundle that does both, through the parity gate of the click graphs."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from adclick_edge.bundle import Bundle, read_bundle, write_bundle
from adclick_edge.bundle.names import BANK, CLICK_GOLDEN, CLICK_GRAPHS, PROMPTS
from adclick_edge.data.clicks import MAX_CLICKS
from adclick_edge.data.resize import fit, fit_mask
from adclick_edge.data.synthetic import add_defect
from adclick_edge.errors import ExportError
from adclick_edge.export.click_graphs import click_spec, export_click_graphs
from adclick_edge.export.click_parity import ClickCase, ClickParityReport, check_click_parity
from adclick_edge.features.bank import Bank
from adclick_edge.models.adclick import PROMPT_DIMS
from adclick_edge.runtime.calibration import load_calibration, store_calibration
from adclick_edge.runtime.click_golden import golden_click_file
from adclick_edge.runtime.click_view import crop_grid, whole_view
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.words import PromptTable

__all__ = ["CLICK_SIZE", "write_click_bundle"]

U8 = npt.NDArray[np.uint8]

CLICK_SIZE = (512, 512)
PARITY_FRAMES = 4
_COMPUTED = ("schema_version", "version", "files", "adclick_edge_version", "manifest_sha256", "created_utc")


def write_click_bundle(
    base: Bundle,
    network: nn.Module,
    prompts_json: bytes | None,
    out: Path,
    *,
    size: tuple[int, int] = CLICK_SIZE,
    training: Mapping[str, Any] | None = None,
    pictures: Sequence[U8] | None = None,
) -> ClickParityReport:
    """Write to ``out`` the bundle ``base`` (of weights or of a product) with the click graphs of ``network``.

    Args:
        network: An `adclick_edge.export.click_graphs.ClickNetwork` for the features of ``base``.
        prompts_json: What becomes ``prompts.json``; None keeps that of ``base``, where it has one.
        size: Height and width of the network's views, multiples of 32.
        training: Becomes ``training.click`` of the manifest.
        pictures: Normal pictures for the parity gate (uint8 [H, W, 3] each); procedural ones by default.

    Thresholds and regions of ``base`` are kept: nothing that gives a score has changed.

    Raises ParityError when the graphs do not compute what was trained, ExportError when they cannot be made or the prompts
    are of another length than they take, BundleError for prompts that cannot be read.
    """
    table = PromptTable.of_bundle(base) if prompts_json is None else PromptTable.decode(prompts_json, PROMPTS)
    if table is not None and table.dims != PROMPT_DIMS:
        raise ExportError(
            f"{PROMPTS} holds vectors of {table.dims} numbers ({table.encoder_name}), the network takes {PROMPT_DIMS}; make "
            "it with the text encoder that the network was trained with"
        )
    features = OrtCpuEngine(base.path("features.onnx").parent)
    cases = _cases(base, features, size, pictures)
    graphs = export_click_graphs(
        network, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in cases[0].inputs.items()}
    )
    replaced = (*CLICK_GRAPHS, CLICK_GOLDEN)
    files: dict[str, bytes | Path] = {name: base.read(name) for name in base.manifest.files if name not in replaced}
    if prompts_json is not None:
        files[PROMPTS] = prompts_json
    with tempfile.TemporaryDirectory(prefix=".adclick-export.") as scratch:
        folder = Path(scratch) / "graphs"
        folder.mkdir()
        for name, data in {**files, **graphs}.items():
            if name.endswith(".onnx"):
                (folder / name).write_bytes(data if isinstance(data, bytes) else data.read_bytes())
        engine = OrtCpuEngine(folder)
        report = check_click_parity(network, engine, cases, max_clicks=MAX_CLICKS)
        files |= graphs
        files[CLICK_GOLDEN] = golden_click_file(engine, size, base.manifest.embedding_dims, PROMPT_DIMS, MAX_CLICKS)
        fields = _fields(base, click_spec(graphs, report.as_json()), training)
        calibration = load_calibration(base)
        if calibration is not None:
            with read_bundle(write_bundle(Path(scratch) / "draft", fields, files, regions=base.regions)) as draft:
                calibration = store_calibration(draft, msgspec.structs.replace(calibration, bundle_version=None))
        write_bundle(out, fields, files, calibration=calibration, regions=base.regions)
    return report


def _fields(base: Bundle, click: Mapping[str, object], training: Mapping[str, Any] | None) -> dict[str, object]:
    fields: dict[str, Any] = msgspec.to_builtins(base.manifest)
    for key in _COMPUTED:
        del fields[key]
    fields |= {"click": click, "parent": base.manifest.version}
    if training is not None:
        fields["training"] = {**fields["training"], "click": dict(training)}
    return fields


def _cases(base: Bundle, engine: OrtCpuEngine, size: tuple[int, int], pictures: Sequence[U8] | None) -> list[ClickCase]:
    """Pictures with a defect each, every other one with words, with residuals where ``base`` has a bank."""
    from adclick_edge.data.procedural.textures import random_texture

    rng = np.random.default_rng(0)
    if pictures is None:
        pictures = [(random_texture(rng, *size) * 255).astype(np.uint8) for _ in range(PARITY_FRAMES)]
    handle = engine.load_bank(Bank.from_bytes(base.read(BANK))) if BANK in base.manifest.files else None
    cases = []
    for number, picture in enumerate(pictures):
        frame, mask = add_defect(fit(picture, size), rng)
        grid = (size[0] // 8, size[1] // 8)
        if handle is not None:
            found = engine.residuals(fit(frame, base.manifest.input_size)[None], handle)
            maps = [
                crop_grid(found[name][0], whole_view(size), size, grid) for name in ("relative", "relative_distance")
            ]
        else:
            # What a bank might give: about 1 everywhere, more on the defect.
            level = 0.5 + rng.random((1, *grid), np.float32) + 3 * fit_mask(mask, grid)[None]
            maps = [level * rng.random((base.manifest.embedding_dims, 1, 1), np.float32), level]
        prompt = rng.normal(size=PROMPT_DIMS) * (number % 2)
        prompt /= max(float(np.linalg.norm(prompt)), 1e-12)
        inputs: dict[str, npt.NDArray[Any]] = {
            **engine.features(frame[None]),
            "frames": frame[None],
            "relative": maps[0][None].astype(np.float32),
            "relative_distance": maps[1][None].astype(np.float32),
        }
        cases.append(ClickCase(inputs, mask, prompt.astype(np.float32)))
    return cases
