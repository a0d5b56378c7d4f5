"""Which labelled defects a run may learn from, such that the rest still tests it."""

from collections.abc import Sequence
from dataclasses import dataclass

from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.same_defect import same_defect_groups
from adclick_edge.errors import ImageError
from adclick_edge.files import sha256_file

__all__ = ["LabelledChoice", "choose_labelled"]


@dataclass(frozen=True)
class LabelledChoice:
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    siblings: tuple[Sample, ...]
    """Other shots of the chosen defects: neither for training nor for testing."""


def choose_labelled(
    product: Product, *, per_kind: int, skip_kinds: Sequence[str], validation_share: float
) -> LabelledChoice:
    """Choose up to ``per_kind`` labelled defects of each kind, by a hash of their content.

    Shots of one defect (`same_defect_groups`) stay together: labels come from at most half of a kind's defects (of a kind
    that has only one, from that one), from as many of them as possible, validation from others of these than training; the
    other shots of those defects are siblings. Defects without a readable mask are not chosen.
    """
    train: list[Sample] = []
    validation: list[Sample] = []
    siblings: list[Sample] = []
    for kind in product.kinds():
        if kind in skip_kinds:
            continue
        groups = _groups(product.defects(kinds=[kind]), kind)
        taken = groups[: min(per_kind, max(1, len(groups) // 2))]
        chosen = _round_robin(taken, per_kind)
        held_out = set(range(min(round(validation_share * len(taken)), len(taken) - 1)))
        train += [sample for group, sample in chosen if group not in held_out]
        validation += [sample for group, sample in chosen if group in held_out]
        kept = {sample.path for _, sample in chosen}
        siblings += [sample for group in taken for sample in group if sample.path not in kept]
    return LabelledChoice(tuple(train), tuple(validation), tuple(siblings))


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
