"""Splits by content: near-copies stay together, and a picture's part does not hang on its file name."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from adclick_edge.data.images import read_image
from adclick_edge.data.near_copies import fingerprint, near_copy_groups
from adclick_edge.data.sample import Sample
from adclick_edge.errors import UsageError

__all__ = ["split_by_content"]


def split_by_content(
    samples: Sequence[Sample], fractions: Mapping[str, float], *, seed: int = 0
) -> dict[str, tuple[Sample, ...]]:
    """Split ``samples`` into parts whose sizes are near ``fractions`` (positive, of sum 1), copies never apart.

    Groups of near-copies are put in the order of a hash of their pixels and the seed, and that row is cut at the
    fractions. So a split can be repeated on another disk, under other names and in any order, and added samples move
    only those near a cut. Within a part the order of ``samples`` is kept. A part may stay empty when groups are few.
    Raises UsageError for fractions that do not fit, ImageError for a file that cannot be read.
    """
    if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise UsageError(f"the fractions of a split are {dict(fractions)}; give positive ones that add up to 1")
    prints = [fingerprint(read_image(sample.path)) for sample in samples]
    salt = seed.to_bytes(16, "little", signed=True)
    keys = [hashlib.sha256(salt + one.digest).digest() for one in prints]
    groups = sorted(near_copy_groups(prints), key=lambda group: min(keys[i] for i in group))

    names = list(fractions)
    part_of: dict[int, str] = {}
    part, filled, end = 0, 0.0, fractions[names[0]] * len(samples)
    for group in groups:
        # A group falls to the part that holds its middle.
        while filled + len(group) / 2 > end + 1e-6 and part < len(names) - 1:
            part += 1
            end += fractions[names[part]] * len(samples)
        part_of.update(dict.fromkeys(group, names[part]))
        filled += len(group)
    return {name: tuple(s for i, s in enumerate(samples) if part_of[i] == name) for name in names}
