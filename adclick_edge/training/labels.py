"""Which labelled defects a run may learn from, such that the rest still tests it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.labels_folder import LABELS, OtherShot, PictureLabel, read_labels
from adclick_edge.data.same_defect import same_defect_groups
from adclick_edge.errors import DataError, ImageError
from adclick_edge.files import sha256_file

__all__ = [
    "ChosenDefect",
    "DefectChoice",
    "LabelledChoice",
    "choose_defects",
    "choose_labelled",
    "labelled_by_folder",
]


@dataclass(frozen=True)
class ChosenDefect:
    sample: Sample
    defect: int
    """Which defect of its kind the picture shows."""


@dataclass(frozen=True)
class DefectChoice:
    pictures: tuple[ChosenDefect, ...]
    siblings: tuple[Sample, ...]
    """Other shots of the chosen defects: neither for training nor for testing."""


@dataclass(frozen=True)
class LabelledChoice:
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    siblings: tuple[Sample, ...]
    """Other shots of the chosen defects: neither for training nor for testing."""


def choose_labelled(
    product: Product, *, per_kind: int, skip_kinds: Sequence[str], validation_share: float
) -> LabelledChoice:
    """`choose_defects`, shared out: validation shows other defects than training."""
    choice = choose_defects(product, per_kind=per_kind, skip_kinds=skip_kinds)
    train, validation = _share_out(choice.pictures, validation_share)
    return LabelledChoice(train, validation, choice.siblings)


def choose_defects(product: Product, *, per_kind: int, skip_kinds: Sequence[str]) -> DefectChoice:
    """Choose up to ``per_kind`` outlined defects of each kind, by a hash of their content.

    Shots of one defect (`same_defect_groups`) stay together: the choice falls on at most half of a kind's defects (of a
    kind that has only one, on that one), on as many of them as possible; the other shots of those defects are siblings.
    Defects without a readable mask are not chosen.
    """
    pictures: list[ChosenDefect] = []
    siblings: list[Sample] = []
    for kind in product.kinds():
        if kind in skip_kinds:
            continue
        groups = _groups(product.defects(kinds=[kind]), kind)
        taken = groups[: min(per_kind, max(1, len(groups) // 2))]
        chosen = _round_robin(taken, per_kind)
        pictures += [ChosenDefect(sample, number) for number, sample in chosen]
        kept = {sample.path for _, sample in chosen}
        siblings += [sample for group in taken for sample in group if sample.path not in kept]
    return DefectChoice(tuple(pictures), tuple(siblings))


def labelled_by_folder(
    folder: Path, product: Product, *, skip_kinds: Sequence[str], validation_share: float
) -> LabelledChoice:
    """The pictures that a label folder (`data.labels_folder`) lists, with its masks in place of the product's own.

    They are shared out as `choose_labelled` would, from the folder's list alone. Pictures whose mask came out empty count
    as siblings: whoever labelled them has seen their defect. Pictures are found by content.

    Raises DataError when labelling was not finished, or a picture or mask is gone or another one took its place;
    ImageError for a mask that cannot be read or is of another size than its picture.
    """
    labels = read_labels(folder, product.name)
    where = folder / product.name / LABELS
    if len(labels.pictures) < labels.chosen:
        raise DataError(
            f"{where}: labelling was interrupted, {len(labels.pictures)} of {labels.chosen} pictures are done; go on "
            "with the same `adclick label`"
        )
    pictures = [p for p in labels.pictures if p.kind not in skip_kinds]
    others = [s for s in labels.siblings if s.kind not in skip_kinds]
    samples = _find(product, [*pictures, *others], where)
    chosen, unmarked = [], []
    for picture in pictures:
        sample = samples[picture.file]
        if picture.mask is None:
            unmarked.append(sample)
            # Its defect still takes part in the sharing out, so that a run on other labels of it shares alike.
            chosen.append(ChosenDefect(sample, picture.defect))
            continue
        mask = where.parent / picture.mask
        read_mask(mask, (picture.height, picture.width))
        chosen.append(ChosenDefect(replace(sample, mask_path=mask), picture.defect))
    train, validation = _share_out(chosen, validation_share)
    left = {sample.path for sample in unmarked}
    return LabelledChoice(
        tuple(s for s in train if s.path not in left),
        tuple(s for s in validation if s.path not in left),
        (*(samples[other.file] for other in others), *unmarked),
    )


def _share_out(
    chosen: Sequence[ChosenDefect], validation_share: float
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation samples: of each kind, the first ``validation_share`` of its defects, never all."""
    defects: dict[str, set[int]] = {}
    for one in chosen:
        defects.setdefault(one.sample.kind, set()).add(one.defect)
    held_out = {
        (kind, number)
        for kind, numbers in defects.items()
        for number in sorted(numbers)[: min(round(validation_share * len(numbers)), len(numbers) - 1)]
    }
    train = tuple(c.sample for c in chosen if (c.sample.kind, c.defect) not in held_out)
    return train, tuple(c.sample for c in chosen if (c.sample.kind, c.defect) in held_out)


def _find(product: Product, listed: Sequence[PictureLabel | OtherShot], where: Path) -> dict[str, Sample]:
    """The product's defective pictures by the name a label folder has for them: same content, wherever they lie now."""
    by_content: dict[str, dict[Path, Sample]] = {}
    for sample in product.defects():
        by_content.setdefault(sha256_file(sample.path), {})[sample.path] = sample
    found, changed, missing = {}, [], []
    for picture in listed:
        path = product.root / picture.file
        if copies := by_content.get(picture.sha256):
            found[picture.file] = replace(copies.get(path) or next(iter(copies.values())), kind=picture.kind)
        elif path.is_file():
            changed.append(str(path))
        else:
            missing.append(str(path))
    for paths, what in ((missing, "gone"), (changed, "changed since")):
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            raise DataError(
                f"{where}: labelled pictures are {what}: {', '.join(paths[:3])}{more}; put them back, or label again to "
                "another --out"
            )
    return found


def _groups(samples: Sequence[Sample], kind: str) -> list[list[Sample]]:
    """The readable, outlined samples by defect shown, groups and members in the order of their hashes."""
    readable, pictures = [], []
    for sample in sorted(samples, key=lambda s: sha256_file(s.path)):
        if sample.mask_path is None:
            continue
        try:
            image = read_image(sample.path)
            pictures.append((image, read_mask(sample.mask_path, shape=image.shape[:2])))
        except ImageError as error:
            progress_console().print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
            continue
        readable.append(sample)
    groups: dict[int, list[Sample]] = {}
    with progress_console().status(f"looking for repeated shots among {len(pictures)} pictures of {kind}"):
        numbers = same_defect_groups(pictures)
    for sample, number in zip(readable, numbers, strict=True):
        groups.setdefault(number, []).append(sample)
    return list(groups.values())


def _round_robin(groups: Sequence[Sequence[Sample]], count: int) -> list[tuple[int, Sample]]:
    """Up to ``count`` samples with their group's number: the first of each group, then the second of each, and so on."""
    longest = max((len(group) for group in groups), default=0)
    turns = [
        (number, group[turn]) for turn in range(longest) for number, group in enumerate(groups) if turn < len(group)
    ]
    return turns[:count]
