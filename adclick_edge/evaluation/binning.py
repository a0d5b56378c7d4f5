"""Histograms of float32 values that stay exact for as long as memory allows, and then say how coarse they are.

A float32 is filed under a 32-bit integer key that sorts as the value does. Keys of full precision are kept until more
than ``max_bins`` distinct ones were seen; then the lowest bit of every key is dropped, as often as needed. With
``shift`` dropped bits a bin holds the values that share their sign, exponent and first ``23 - shift`` bits of the
fraction, so values closer than a relative ``2**(shift - 23)`` may count as equal; while ``shift`` is 0 nothing is
rounded. The bits dropped depend on the set of values alone, not on the order in which they came.

A fixed grid of as many bins spends most of them on exponents that never occur; this one gives them to the values that
do, so maps that live in a narrow range far from zero (distances of 1000.0 to 1000.5) are still told apart.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["DEFAULT_MAX_BINS", "MIN_MAX_BINS", "KeyHistogram", "key_values", "sortable_keys", "sum_by_key"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]

DEFAULT_MAX_BINS: Final = 1 << 19  # 15 MB of keys and weights
MIN_MAX_BINS: Final = 1 << 10  # sign, exponent and one bit of fraction: no finite value shares a bin with infinity

_SIGN: Final = np.uint32(0x8000_0000)


def sortable_keys(values: F32) -> U32:
    """Return one uint32 per value, ordered as the values are; -0.0 and 0.0 get the same key. ``values`` is finite."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def key_values(keys: U32) -> F32:
    """Return the value of each key: the inverse of :func:`sortable_keys`."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32)


def _run_starts(sorted_keys: U32) -> npt.NDArray[np.intp]:
    new = np.empty(sorted_keys.size, dtype=np.bool_)
    new[:1] = True
    np.not_equal(sorted_keys[1:], sorted_keys[:-1], out=new[1:])
    return np.flatnonzero(new)


def sum_by_key(keys: U32, weights: F64 | None = None) -> tuple[U32, F64]:
    """Return the distinct ``keys`` in ascending order and the sum of ``weights`` (default: the count) of each."""
    if weights is None:
        ordered = np.sort(keys)
        starts = _run_starts(ordered)
        return ordered[starts], np.diff(starts, append=ordered.size).astype(np.float64)
    if not keys.size:
        return keys, weights
    order = np.argsort(keys)
    ordered = keys[order]
    starts = _run_starts(ordered)
    return ordered[starts], np.add.reduceat(weights[order], starts)


class KeyHistogram:
    """Sums of weights per key and channel, in at most ``max_bins`` bins of ``4 + 8 * channels`` bytes.

    New entries wait in a list until there are as many as bins, so that the table is merged once per several images;
    while it is merged the memory in use is about six times the table's.

    Args:
        channels: Independent sums kept for each key.
        max_bins: Bins to keep, at least ``MIN_MAX_BINS``.
    """

    def __init__(self, channels: int, max_bins: int = DEFAULT_MAX_BINS) -> None:
        self.max_bins = max(max_bins, MIN_MAX_BINS)
        self.shift = 0
        self._channels = channels
        self._keys: U32 = np.empty(0, dtype=np.uint32)
        self._weights: F64 = np.empty((channels, 0), dtype=np.float64)
        self._pending: list[tuple[int, U32, F64]] = []
        self._pending_entries = 0

    def add(self, channel: int, keys: U32, weights: F64 | None = None) -> None:
        """Add ``weights`` (default: 1 each) to ``channel`` at ``keys``, both of shape ``[n]``."""
        entry = sum_by_key(keys >> np.uint32(self.shift), weights)
        self._pending.append((channel, *entry))
        self._pending_entries += entry[0].size
        if self._pending_entries > self.max_bins:
            self._merge()

    def totals(self) -> tuple[U32, F64]:
        """Return the lowest full key of each occupied bin ``[B]``, ascending, and its sums ``[channels, B]``."""
        if self._pending:
            self._merge()
        return self._keys << np.uint32(self.shift), self._weights

    def _merge(self) -> None:
        everything = np.concatenate([self._keys, *(keys for _, keys, _ in self._pending)])
        everything.sort()
        union = everything[_run_starts(everything)]
        weights = np.zeros((self._channels, union.size), dtype=np.float64)
        weights[:, np.searchsorted(union, self._keys)] = self._weights
        for channel, keys, sums in self._pending:
            weights[channel, np.searchsorted(union, keys)] += sums  # keys of one entry are distinct
        self._pending.clear()
        self._pending_entries = 0
        while union.size > self.max_bins:
            self.shift += 1
            union = union >> np.uint32(1)
            starts = _run_starts(union)
            union, weights = union[starts], np.add.reduceat(weights, starts, axis=1)
        self._keys, self._weights = union, weights
