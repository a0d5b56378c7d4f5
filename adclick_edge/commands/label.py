"""``adclick label``"""

import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from rich.progress import track

from adclick_edge.bundle import read_bundle
from adclick_edge.console import progress_console
from adclick_edge.data.clicks import Click
from adclick_edge.data.dataset import Product, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.labels_folder import (
    LABELS,
    Labels,
    LabelSettings,
    OtherShot,
    PictureLabel,
    mask_name,
    read_labels,
    write_labels,
    write_mask,
)
from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.click_model import ClickModel, PromptedModel
from adclick_edge.evaluation.click_robot import THRESHOLD, next_click
from adclick_edge.files import sha256_file
from adclick_edge.training.labels import ChosenDefect, DefectChoice, choose_defects
from adclick_edge.words.table import PromptTable
from adclick_edge.words.templates import kind_key

__all__ = ["LabelCall", "LabelModel", "label_product", "run"]

Bool = npt.NDArray[np.bool_]
U8 = npt.NDArray[np.uint8]


class LabelModel(ClickModel, PromptedModel, Protocol):
    """What labels are made with: it takes clicks, and words."""


@dataclass(frozen=True, kw_only=True)
class LabelCall:
    """The verb's options, as given."""

    bundle: Path
    data: Path
    product: str | None
    out: Path
    clicks: int
    per_kind: int
    skip_kinds: tuple[str, ...]
    words: bool
    mirrored: bool
    threads: int | None


def run(call: LabelCall) -> Labels:
    with read_bundle(call.bundle) as bundle:
        manifest = bundle.manifest
        table = PromptTable.of_bundle(bundle) if call.words else None
        known = frozenset(table.known_kinds() if table is not None else ())
    own = manifest.product
    product = open_product(call.data, call.product or (own if own and (call.data / own).is_dir() else None))
    settings = LabelSettings(
        bundle_version=manifest.version,
        clicks=call.clicks,
        per_kind=call.per_kind,
        skip_kinds=tuple(sorted(set(call.skip_kinds))),
        words=call.words,
        mirrored=call.mirrored,
        threshold=THRESHOLD,
    )
    with _open_session(call.bundle, call.threads, call.mirrored) as model:
        labels = label_product(
            model,
            product,
            call.out,
            settings,
            known_kinds=known,
            trained_on=manifest.clicks_trained_on,
        )
    _say(call, labels)
    return labels


def label_product(
    model: LabelModel,
    product: Product,
    out: Path,
    settings: LabelSettings,
    *,
    known_kinds: Collection[str] = frozenset(),
    trained_on: Collection[str] = frozenset(),
) -> Labels:
    """Label the very pictures that `training.labels.choose_labelled` chooses, by the robot's clicks (method section 4).

    The mask is where the probability after the last click exceeds ``settings.threshold`` (method section 3). Kinds whose
    `kind_key` is in ``known_kinds`` are named to the model. ``trained_on`` holds SHA-256 of pictures the model was trained on.
    After each picture the folder ``out`` is whole: called again with the same arguments, this goes on where it stopped.

    Raises UsageError when ``out`` is within the data, or holds something else or labels made with other settings; DataError
    when no defect can be labelled, or the pictures changed since labelling began.
    """
    if unknown := sorted(set(settings.skip_kinds) - set(product.kinds())):
        raise UsageError(
            f"{product.root}: has no defects of the kind {unknown[0]!r} to skip; it has {', '.join(product.kinds())}"
        )
    folder = out / product.name
    if folder.resolve().is_relative_to(product.root.resolve()):
        raise UsageError(f"{folder} lies within the data of {product.name}; give another --out")
    if (folder / LABELS).is_file():
        _check_settings(folder, read_labels(out, product.name).settings, settings)
    choice = choose_defects(product, per_kind=settings.per_kind, skip_kinds=settings.skip_kinds)
    if not choice.pictures:
        raise DataError(f"{product.root}: no defect with a readable ground truth to click by; add some")
    hashes = {one.sample.path: sha256_file(one.sample.path) for one in choice.pictures}
    labels = _begin(out, product, settings, choice, hashes, trained_on)
    done = {
        picture.sha256: picture
        for picture in labels.pictures
        if picture.mask is None or (folder / picture.mask).is_file()
    }
    for one in track(choice.pictures, f"labels of {product.name}", console=progress_console()):
        sha256 = hashes[one.sample.path]
        if sha256 in done:
            continue
        taken = frozenset(picture.mask for picture in done.values() if picture.mask is not None)
        done[sha256] = _label(model, product, folder, one, sha256, settings, known_kinds, taken)
        in_order = [hashes[chosen.sample.path] for chosen in choice.pictures]
        labels = msgspec.structs.replace(labels, pictures=tuple(done[h] for h in in_order if h in done))
        write_labels(out, labels)
    return labels


def _open_session(bundle: Path, threads: int | None, mirrored: bool) -> AbstractContextManager[LabelModel]:
    from adclick_edge.runtime.click_session import ClickSession

    return ClickSession.open(bundle, threads=threads, mirrored=mirrored)


def _check_settings(folder: Path, found: LabelSettings, wanted: LabelSettings) -> None:
    other = [
        f"{name} {getattr(found, name)!r} there, {getattr(wanted, name)!r} now"
        for name in LabelSettings.__struct_fields__
        if getattr(found, name) != getattr(wanted, name)
    ]
    if other:
        raise UsageError(
            f"{folder} holds labels made otherwise ({'; '.join(other)}); give another --out, or the same bundle and options"
        )


def _begin(
    out: Path,
    product: Product,
    settings: LabelSettings,
    choice: DefectChoice,
    hashes: Mapping[Path, str],
    trained_on: Collection[str],
) -> Labels:
    """The labels found in ``out``, or none so far; then labels.json is written before any mask."""
    folder = out / product.name
    siblings = tuple(
        OtherShot(sample.path.relative_to(product.root).as_posix(), sha256_file(sample.path), sample.kind)
        for sample in choice.siblings
    )
    begun = Labels(
        product=product.name,
        settings=settings,
        chosen=len(choice.pictures),
        seen_in_training=sum(h in trained_on for h in hashes.values()),
        pictures=(),
        siblings=siblings,
    )
    if begun.seen_in_training:
        progress_console().print(
            f"warning: the bundle was trained on {begun.seen_in_training} of the {begun.chosen} pictures: their labels are "
            "better than those of new pictures would be",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if not (folder / LABELS).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: holds something else than labels; give another --out")
        write_labels(out, begun)
        return begun
    found = read_labels(out, product.name)
    known = set(hashes.values())
    if found.chosen != begun.chosen or found.siblings != siblings or any(p.sha256 not in known for p in found.pictures):
        raise DataError(
            f"{product.root}: its defects are not those that {folder / LABELS} began with; put them back, or label to "
            "another --out"
        )
    return found


def _label(
    model: LabelModel,
    product: Product,
    folder: Path,
    one: ChosenDefect,
    sha256: str,
    settings: LabelSettings,
    known_kinds: Collection[str],
    taken: frozenset[str],
) -> PictureLabel:
    sample = one.sample
    assert sample.mask_path is not None  # only outlined defects are chosen
    image = read_image(sample.path)
    truth = read_mask(sample.mask_path, shape=image.shape[:2])
    prompt = sample.kind if kind_key(sample.kind) in known_kinds else None
    mask, clicks, seconds = _click(model, image, truth, prompt, settings)
    name = mask_name(sample.kind, sample.path.name, sha256, taken) if mask.any() else None
    if name is None:
        progress_console().print(
            f"not labelled: {sample.path}: the mask is empty after {len(clicks)} clicks",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    else:
        write_mask(folder / name, mask)
    return PictureLabel(
        file=sample.path.relative_to(product.root).as_posix(),
        sha256=sha256,
        kind=sample.kind,
        defect=one.defect,
        height=truth.shape[0],
        width=truth.shape[1],
        mask=name,
        clicks=clicks,
        prompt=prompt,
        iou=float((mask & truth).sum() / max(1, (mask | truth).sum())),
        seconds=round(seconds, 4),
    )


def _click(
    model: LabelModel, image: U8, truth: Bool, prompt: str | None, settings: LabelSettings
) -> tuple[Bool, tuple[Click, ...], float]:
    """The mask (bool [H, W]), the clicks it took and the model's seconds; fewer clicks where no error is left."""
    began = time.perf_counter()
    model.set_image(image)
    model.prompt(prompt)
    seconds = time.perf_counter() - began
    probability = np.zeros(truth.shape, np.float32)
    clicks: list[Click] = []
    while len(clicks) < settings.clicks:
        click = next_click(probability, truth, clicks, settings.threshold)
        if click is None:
            break
        clicks.append(click)
        began = time.perf_counter()
        probability = model.click(click.y, click.x, click.positive)
        seconds += time.perf_counter() - began
    return probability > settings.threshold, tuple(clicks), seconds


def _say(call: LabelCall, labels: Labels) -> None:
    made = [p for p in labels.pictures if p.mask is not None]
    empty = len(labels.pictures) - len(made)
    iou = float(np.mean([p.iou for p in labels.pictures]))
    seconds = float(np.mean([p.seconds for p in labels.pictures]))
    print(
        f"{call.out / labels.product}: {len(made)} masks by up to {labels.settings.clicks} clicks each, mean IoU with the "
        f"ground truth {iou:.3f}, {seconds:.2f} s of computing per picture"
        + (f"; {empty} came out empty and were not written" if empty else "")
    )
    print(f"next: adclick train seg --data {call.data} --product {labels.product} --labels {call.out} --out RUN")
