"""From products on disk to what ADClick-Seg trains on: banks, training pictures, validation pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.resize import fit, fit_mask
from adclick_edge.data.splits import split_by_content
from adclick_edge.data.synthetic import add_defect
from adclick_edge.errors import ImageError, TrainingError, UsageError
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.extractor import Extractor
from adclick_edge.files import sha256_file
from adclick_edge.training.episodes import ProductPictures
from adclick_edge.training.labels import choose_labelled, labelled_by_folder

__all__ = ["ProductSplit", "TrainingProduct", "ValidationPicture", "choose_split", "load_product"]

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FEWEST_NORMALS_TO_HOLD_OUT = 12
MOST_VALIDATION_PICTURES = 48


@dataclass(frozen=True)
class ProductSplit:
    """Which samples are for what. Training learns nothing from defects that are not named here."""

    train_normals: tuple[Sample, ...]
    validation_normals: tuple[Sample, ...]
    train_defects: tuple[Sample, ...]
    validation_defects: tuple[Sample, ...]
    siblings: tuple[Sample, ...]
    """Other shots of the labelled defects: left out of everything, testing too."""


@dataclass(frozen=True)
class ValidationPicture:
    frame: U8
    mask: Bool
    exclude_image: int


@dataclass(frozen=True)
class TrainingProduct:
    pictures: ProductPictures
    validation: tuple[ValidationPicture, ...]
    bank: Bank
    split_hashes: dict[str, list[str]]
    """SHA-256 of the files of each part."""


def choose_split(
    product: Product,
    *,
    real_defects_per_kind: int,
    skip_kinds: Sequence[str],
    validation_share: float,
    seed: int,
    labels: Path | None = None,
) -> ProductSplit:
    """Split the train normals by content, and choose the labelled defects: by content, or those of a label folder.

    With fewer than 12 normals none is held out: validation then draws synthetic defects on training normals, each matched
    without its own rows. Normals that cannot be read are reported on stderr and left out.
    """
    normals = tuple(_readable(product.normals("train")))
    if len(normals) < 2:
        raise TrainingError(
            f"{product.root}: {len(normals)} readable normal training images; training needs at least 2"
        )
    validation_normals: tuple[Sample, ...] = ()
    if len(normals) >= FEWEST_NORMALS_TO_HOLD_OUT:
        parts = split_by_content(normals, {"train": 1 - validation_share, "validation": validation_share}, seed=seed)
        normals, validation_normals = parts["train"], parts["validation"]
    if labels is not None:
        if real_defects_per_kind:
            raise UsageError("labelled defects come from a label folder or from the ground truth; ask for one of them")
        labelled = labelled_by_folder(labels, product, skip_kinds=skip_kinds, validation_share=validation_share)
    elif real_defects_per_kind:
        labelled = choose_labelled(
            product, per_kind=real_defects_per_kind, skip_kinds=skip_kinds, validation_share=validation_share
        )
    else:
        return ProductSplit(normals, validation_normals, (), (), ())
    return ProductSplit(normals, validation_normals, labelled.train, labelled.validation, labelled.siblings)


def _readable(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose pictures can be read; the others are reported on stderr."""
    usable = []
    for sample in samples:
        try:
            read_image(sample.path)
        except ImageError as error:
            progress_console().print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
        else:
            usable.append(sample)
    return usable


def load_product(
    product: Product,
    split: ProductSplit,
    extractor: Extractor,
    options: BankOptions,
    *,
    input_size: tuple[int, int],
    seed: int,
    device: torch.device,
) -> TrainingProduct:
    """Read the pictures of ``split``, bring them to the input size and build the bank of the training normals.

    Labelled defects whose files cannot be read are reported on stderr and left out.
    """
    console = progress_console()

    def read(samples: Sequence[Sample]) -> list[tuple[Sample, U8]]:
        return [(sample, fit(read_image(sample.path), input_size)) for sample in samples]

    def read_labelled(samples: Sequence[Sample]) -> list[tuple[U8, Bool]]:
        labelled = []
        for sample in samples:
            try:
                image = read_image(sample.path)
                assert sample.mask_path is not None  # choose_split takes masked samples only
                mask = read_mask(sample.mask_path, shape=image.shape[:2])
            except ImageError as error:
                console.print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
                continue
            if not mask.any():
                console.print(
                    f"skipped: {sample.mask_path}: marks no pixel", style="yellow", markup=False, soft_wrap=True
                )
                continue
            share = fit_mask(mask, input_size)
            # A defect too thin to fill half a pixel at the input size keeps the pixels it fills most.
            labelled.append((fit(image, input_size), share >= min(0.5, float(share.max()))))
        return labelled

    normals = read(split.train_normals)
    builder = BankBuilder(options, seed=seed)
    for sample, frame in track(normals, f"bank of {product.name}", console=console):
        with torch.no_grad():
            features = extractor(torch.from_numpy(frame[None]).to(device))
        retrieval = features["map4"][0].cpu().numpy() if options.retrieve_images else None
        builder.add(
            features["embedding"][0].cpu().numpy(), image_hash=sha256_file(sample.path), retrieval_map=retrieval
        )
    held_out = read(split.validation_normals)
    parts = {
        "train_normals": split.train_normals,
        "validation_normals": split.validation_normals,
        "train_defects": split.train_defects,
        "validation_defects": split.validation_defects,
        "siblings": split.siblings,
    }
    return TrainingProduct(
        ProductPictures(product.name, [frame for _, frame in normals], read_labelled(split.train_defects)),
        tuple(
            _validation(
                [f for _, f in normals], [f for _, f in held_out], read_labelled(split.validation_defects), seed
            )
        ),
        builder.build(),
        {name: [sha256_file(s.path) for s in samples] for name, samples in parts.items()},
    )


def _validation(
    normals: list[U8], held_out: list[U8], labelled: list[tuple[U8, Bool]], seed: int
) -> list[ValidationPicture]:
    """Held-out normals as they are, the same ones with synthetic defects, and held-out labelled defects."""
    base = [(frame, -1) for frame in held_out] or [(frame, i) for i, frame in enumerate(normals)]
    base = base[:MOST_VALIDATION_PICTURES]
    pictures = []
    for place, (frame, exclude) in enumerate(base):
        pictures.append(ValidationPicture(frame, np.zeros(frame.shape[:2], bool), exclude))
        damaged, mask = add_defect(frame, np.random.default_rng([seed, 1_000_003, place]))
        pictures.append(ValidationPicture(damaged, mask, exclude))
    pictures += [ValidationPicture(frame, mask, -1) for frame, mask in labelled]
    return pictures
