"""``adclick eval-clicks``"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.same_defect import same_defect_groups
from adclick_edge.data.sample import Sample
from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.click_baselines import FeatureClicks, GrabCut, RefinedFeatureClicks
from adclick_edge.evaluation.click_metrics import ClickResult
from adclick_edge.evaluation.click_model import ClickModel
from adclick_edge.evaluation.click_protocol import MAX_SIDE_PX, NOC_CLICKS, ClickedImage, evaluate_clicks
from adclick_edge.evaluation.click_report import ClickSheet, write_click_report
from adclick_edge.files import sha256_file
from adclick_edge.runtime.click_session import ClickSession
from adclick_edge.runtime.ort_cpu import OrtCpuEngine
from adclick_edge.words.table import PromptTable
from adclick_edge.words.templates import kind_key

__all__ = ["EvalClicksCall", "baselines", "chosen_defects", "run"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class EvalClicksCall:
    """The verb's options, as given."""

    bundle: Path
    data: Path
    product: str | None
    clicks: int
    skip_kinds: tuple[str, ...]
    words: bool
    mirrored: bool
    limit: int | None
    one_shot_per_defect: bool
    noc: bool
    baselines: bool
    report: Path | None
    json_output: bool
    threads: int | None


def run(call: EvalClicksCall) -> None:
    began = time.monotonic()
    sheet = ClickSheet()
    with ClickSession.open(call.bundle, threads=call.threads, mirrored=call.mirrored) as session:
        manifest = session.bundle.manifest
        own = manifest.product
        product = open_product(call.data, call.product or (own if own and (call.data / own).is_dir() else None))
        samples, left_out = chosen_defects(
            product,
            skip_kinds=call.skip_kinds,
            known_hashes=manifest.clicks_trained_on,
            one_shot_per_defect=call.one_shot_per_defect,
            limit=call.limit,
        )
        table = PromptTable.of_bundle(session.bundle) if call.words else None
        known = frozenset(table.known_kinds() if table is not None else ())
        words = partial(_words, known) if known else None
        score = partial(_score, samples=samples, clicks=call.clicks, noc_clicks=NOC_CLICKS if call.noc else None)
        result = score(session, words=words, each=sheet.add)
        floors = []
        if call.baselines:
            engine = OrtCpuEngine(session.bundle.path("features.onnx").parent, threads=call.threads)
            floors = [score(model) for model in baselines(engine)]
    about: dict[str, Any] = {
        "product": product.name,
        "bundle": str(call.bundle),
        "version": manifest.version,
        "words": sorted({s.kind for s in samples if _words(known, s)}),
        **left_out,
        "mirrored": call.mirrored,
        "largest_side_px": MAX_SIDE_PX,
        "seconds": round(time.monotonic() - began, 3),
    }
    folder = call.report
    if folder is None and not call.json_output:
        folder = Path(f"{product.name}_clicks")
    if folder is not None:
        write_click_report(folder, [result, *floors], sheet)
    if call.json_output:
        print(json.dumps({**about, **_flat(result), **{floor.name: _flat(floor) for floor in floors}}))
        return
    _print_table(about, [result, *floors])
    print(f"pictures: {folder}")


def chosen_defects(
    product: Product,
    *,
    skip_kinds: Sequence[str] = (),
    known_hashes: Collection[str] = (),
    one_shot_per_defect: bool = False,
    limit: int | None = None,
) -> tuple[list[Sample], dict[str, int]]:
    """The defects of ``product`` to click on, and how many were left out for which reason.

    Left out are kinds in ``skip_kinds``, defects without a mask, pictures whose sha256 is in ``known_hashes`` (the model
    was trained on them), where asked all but the first shot of a defect, and all but ``limit`` at even distances.

    Raises:
        UsageError: A kind to skip that does not exist.
        DataError: Nothing is left.
    """
    if unknown := sorted(set(skip_kinds) - set(product.kinds())):
        raise UsageError(
            f"{product.root}: has no defects of the kind {unknown[0]!r} to skip; it has {', '.join(product.kinds())}"
        )
    defects = [sample for sample in product.defects() if sample.kind not in skip_kinds]
    masked = [sample for sample in defects if sample.mask_path is not None]
    hashes = set(known_hashes)
    fresh = [sample for sample in masked if not hashes or sha256_file(sample.path) not in hashes]
    shots = _one_shot_each(fresh) if one_shot_per_defect else fresh
    if not shots:
        raise DataError(
            f"{product.root}: no defect is left to click on ({len(defects)} of the kinds asked for, {len(masked)} with a "
            f"mask, {len(fresh)} not trained on); choose other kinds or outline some"
        )
    chosen = shots
    if limit is not None and limit < len(shots):
        chosen = [shots[place] for place in np.linspace(0, len(shots) - 1, limit).round().astype(int)]
    left_out = {
        "left_out_unmasked": len(defects) - len(masked),
        "left_out_trained_on": len(masked) - len(fresh),
        "left_out_other_shots": len(fresh) - len(shots),
        "left_out_by_limit": len(shots) - len(chosen),
    }
    return chosen, left_out


def baselines(engine: OrtCpuEngine) -> list[ClickModel]:
    """The classical answers to clicks, on the features of ``engine``."""

    def maps(square: U8) -> dict[str, F32]:
        return {name: plane for name, plane in engine.features(square).items() if name.startswith("map")}

    return [GrabCut(), FeatureClicks(maps), RefinedFeatureClicks(maps)]


def _words(known: frozenset[str], sample: Sample) -> str | None:
    return sample.kind if kind_key(sample.kind) in known else None


def _score(
    model: ClickModel,
    *,
    samples: Sequence[Sample],
    clicks: int,
    noc_clicks: int | None,
    words: Callable[[Sample], str | None] | None = None,
    each: Callable[[ClickedImage], object] | None = None,
) -> ClickResult:
    shown = track(samples, model.name, console=progress_console())
    return evaluate_clicks(model, shown, clicks, noc_clicks=noc_clicks, words=words, each=each)


def _one_shot_each(samples: Sequence[Sample]) -> list[Sample]:
    """The first shot of each defect. Shots of one defect are of one kind: comparing within kinds saves most of the time."""
    kept: list[Sample] = []
    for kind in dict.fromkeys(sample.kind for sample in samples):
        shots = [sample for sample in samples if sample.kind == kind]
        pictures = []
        for sample in shots:
            frame = read_image(sample.path)
            assert sample.mask_path is not None
            pictures.append((frame, read_mask(sample.mask_path, shape=(frame.shape[0], frame.shape[1]))))
        first: dict[int, Sample] = {}
        for group, sample in zip(same_defect_groups(pictures), shots, strict=True):
            first.setdefault(group, sample)
        kept += first.values()
    return kept


def _flat(result: ClickResult) -> dict[str, Any]:
    flat: dict[str, Any] = msgspec.to_builtins(result)
    return flat


def _print_table(about: dict[str, Any], results: Sequence[ClickResult]) -> None:
    first = results[0]
    left = ", ".join(
        f"{number} {name.removeprefix('left_out_').replace('_', ' ')}"
        for name, number in about.items()
        if name.startswith("left_out_") and number
    )
    print(
        f"{about['product']}, version {about['version']}: {first.images} defects"
        + (f" (left out: {left})" if left else "")
        + (f", words for {', '.join(about['words'])}" if about["words"] else ", no words")
        + f", {about['seconds']:.1f} s"
    )
    if first.reduced_images:
        print(f"{first.reduced_images} pictures were scaled down to {about['largest_side_px']} px")
    console = Console(highlight=False)
    figures = _table("clicks", "IoU", "AP", "PRO", "AUROC")
    costs = _table("NoC@80", "NoC@85", "NoC@90", "ms/click", "ms/image")
    for result in results:
        for place, scores in enumerate(result.per_click):
            figures.add_row(
                result.name if place == 0 else "",
                str(scores.clicks),
                *(_shown(value) for value in (scores.mean_iou, scores.ap, scores.pro, scores.auroc)),
                end_section=place == len(result.per_click) - 1,
            )
        costs.add_row(
            result.name,
            *(_shown(noc, ".1f") for noc in (result.noc80, result.noc85, result.noc90)),
            f"{1e3 * result.seconds_per_click:.0f}",
            f"{1e3 * result.seconds_per_image:.0f}",
        )
    console.print(figures)
    console.print(costs)


def _table(*columns: str) -> Table:
    table = Table("", box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _shown(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
