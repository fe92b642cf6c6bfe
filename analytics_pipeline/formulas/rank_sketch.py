"""Percentiles by rank from mergeable sketches of at most 1 kB. Pure numpy, many sketches at once.

A sketch holds order statistics of a window's samples, that is, values that occurred:

* of up to `ITEMS` samples all of them: percentiles are exact;
* of more, the samples at `ITEMS` fixed ranks. The sorted samples are cut into runs whose lengths follow from
  the number of samples alone (`_lengths`), and each run is represented by its middle sample. The first and
  the last run are single samples, the minimum and the maximum.

A percentile is the least value ``v`` with ``F(v) >= q``, where F is the share of samples at or below v: SQL's
``percentile_disc``, definition 1 of Hyndman and Fan, "Sample Quantiles in Statistical Packages", The American
Statistician 50(4), 1996. Nothing is interpolated: between two levels of a signal no third one is invented.
Samples count alike, however far apart in time they are.

Children are merged all at once: their items, each with the length of its run as weight, are sorted by value
and cut anew. The order of the children leaves no trace, but a merge of merges differs from one merge of all:
a larger window is therefore always merged from all its children, and never added to.

Runs are shorter at both ends (half the average length) than in the middle (5/4 of it), so that p99 is
sharper than p50. The rank error, the distance of q to ``[F(v-), F(v)]``, is at most half a run in one level and
below 1 % after four levels (60 s, 300 s, 1 h, 1 day) on everything that the tests try. Only comparisons and
``+ - * /`` are used: each processor stores the same bytes.

This replaces a t-digest (Dunning, Ertl, "Computing Extremely Accurate Quantiles Using t-Digests",
arXiv:1902.04023), whose cluster means lie between levels of a signal, and whose usual scale functions need a
logarithm or an arcsine. Equally spaced order statistics are the buffers of Munro and Paterson, "Selection and
sorting with limited storage", Theoretical Computer Science 12(3), 1980.

Bytes of a sketch, little endian; of equal sketches they are equal::

    1 byte     version (high four bits: 2), 2 if values are run-length encoded, 1 if the number of samples follows
    0|8 bytes  number of samples, if more than `ITEMS`; else it is the number of items
    n x 8      the items, ascending doubles; or, where that is shorter:
    d x 8      the d distinct items, ascending doubles, and
    d x 1      how many items each of them stands for
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Items of a full sketch, 993 bytes. Odd, so that the middle of an item, not a border of two, is at p50.
ITEMS = 123
MAX_BYTES = 9 + 8 * ITEMS
_VERSION = 2
_RUNS, _LARGE = 2, 1
#: Segments up to this length are sorted as rows of one matrix per length, longer ones one by one: that is where
#: a call of numpy costs as much as it sorts.
_MATRIX_LENGTH = 256
#: Elements of one such matrix: bounds the memory of sorting.
_MATRIX_ELEMENTS = 1 << 20


def _cuts() -> Floats:
    """The share of the samples beyond `ITEMS` that the first i items have taken up: x/2 + (3 x^2 - 2 x^3)/2."""
    d = ITEMS - 2  # the first and the last item take up none
    return np.array(
        [(k * d * d + 3 * k * k * d - 2 * k**3) / (2 * d**3) for k in (0, *range(d + 1), d)], np.float64
    )


_CUTS = _cuts()


@dataclass(frozen=True, slots=True)
class Sketches:
    """Many sketches as columns.

    Attributes:
        n: samples of each sketch, at least 1.
        value: the items of all sketches, ``min(n, ITEMS)`` each, ascending within a sketch.
    """

    n: Ints
    value: Floats

    def __len__(self) -> int:
        return len(self.n)

    @property
    def sizes(self) -> Ints:
        """Items of each sketch."""
        return np.minimum(self.n, ITEMS)

    @property
    def starts(self) -> Ints:
        """Where the items of each sketch begin."""
        return _starts_of(self.sizes)


def from_values(values: Floats, starts: Ints) -> Sketches:
    """The sketches of slices of values, which may be in any order within a slice.

    Args:
        values: finite; the samples of a group next to each other.
        starts: where each group begins, the first at 0, none empty.

    Raises:
        ValueError: NaN or infinity among the values.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            f"value {int(np.argmin(np.isfinite(values)))} of {len(values)} is NaN or infinite; "
            "only finite values have percentiles, so refuse it before"
        )
    # Two zeros of different sign are equal to a sort: which of them is kept would depend on their order.
    return _of_samples(np.asarray(values, np.float64) + 0.0, starts, np.diff(starts, append=len(values)))


def merge(children: Sketches, starts: Ints) -> Sketches:
    """One sketch for each slice of sketches.

    Args:
        starts: where the children of each group begin, the first at 0, none empty.
    """
    if not len(children):
        return children
    n = np.add.reduceat(children.n, starts)
    item_starts = children.starts[starts]
    if (children.n <= ITEMS).all():  # every item is one sample
        return _of_samples(children.value, item_starts, n)
    order = _segments(np.argsort, children.value, item_starts)
    through = np.cumsum(_lengths(children.n)[order])
    wanted = np.repeat(_starts_of(n), np.minimum(n, ITEMS)) + _middles(n)
    return Sketches(n, children.value[order[np.searchsorted(through, wanted, side="right")]])


def quantiles(sketches: Sketches, ranks: Sequence[float]) -> Floats:
    """The percentiles of each sketch: values that occurred, exact for up to `ITEMS` samples.

    Args:
        ranks: fractions from 0 to 1; 0 is the minimum, 1 the maximum.

    Returns:
        shape (sketches, ranks).
    """
    n = sketches.n[:, None]
    rank = np.clip(np.ceil(sketches.n[:, None] * np.asarray(ranks)).astype(np.int64) - 1, 0, n - 1)
    low, high = np.zeros_like(rank), np.broadcast_to(sketches.sizes[:, None] - 1, rank.shape)
    for _ in range(ITEMS.bit_length()):  # bisection: the last item whose run does not begin after the rank
        middle = (low + high + 1) // 2
        after = _begin(n, middle) > rank
        low, high = np.where(after, low, middle), np.where(after, middle - 1, high)
    found: Floats = sketches.value[sketches.starts[:, None] + low]
    return found


def encode(sketches: Sketches) -> list[bytes]:
    """The bytes of each sketch, as the module describes them; at most `MAX_BYTES`."""
    new = np.ones(len(sketches.value), np.int64)
    new[1:] = sketches.value[1:] != sketches.value[:-1]
    new[sketches.starts] = 1
    distinct = np.add.reduceat(new, sketches.starts) if len(sketches) else sketches.n
    runs, large = 9 * distinct < 8 * sketches.sizes, sketches.n > ITEMS
    stored = np.where(runs, distinct, sketches.sizes)
    item = np.flatnonzero(new) if runs.any() else new[:0]  # the first item of each run of equal ones
    value, repeats = sketches.value[item], np.diff(item, append=len(new)).astype(np.uint8)
    first = np.where(runs, _starts_of(distinct), sketches.starts)
    head = _VERSION << 4 | runs * _RUNS | large * _LARGE
    encoded = np.empty(len(sketches), object)
    # Sketches of one layout are the rows of one matrix of bytes.
    for some in _alike(stored << 8 | head):
        place = first[some, None] + np.arange(stored[some[0]])
        parts = [_bytes(head[some, None], "u1")]
        if large[some[0]]:
            parts.append(_bytes(sketches.n[some, None], "<i8"))
        if runs[some[0]]:
            parts += [_bytes(value[place], "<f8"), repeats[place]]
        else:
            parts.append(_bytes(sketches.value[place], "<f8"))
        rows = np.ascontiguousarray(np.hstack(parts))
        encoded[some] = rows.view(f"V{rows.shape[1]}")[:, 0].tolist()
    return list(encoded.tolist())


def decode(encoded: Sequence[bytes]) -> Sketches:
    """The sketches of encoded ones, in their order.

    Raises:
        ValueError: bytes that are no sketch of this version: which one, and what it begins with.
    """
    length = np.fromiter(map(len, encoded), np.int64, len(encoded))
    head = np.fromiter((one[0] if one else 0 for one in encoded), np.int64, len(encoded))
    large, runs = (head & _LARGE) > 0, (head & _RUNS) > 0
    stored, rest = np.divmod(length - 1 - 8 * large, np.where(runs, 9, 8))
    _refuse(encoded, (head >> 2 != _VERSION << 2) | (stored < 1) | (stored > ITEMS) | (rest != 0))
    n, begin = stored.copy(), _starts_of(stored)
    value, repeats = np.empty(int(stored.sum())), np.ones(int(stored.sum()), np.int64)
    for some in _alike(length << 2 | head & 3):
        rows = np.frombuffer(b"".join([encoded[i] for i in some.tolist()]), np.uint8).reshape(len(some), -1)
        size, skip = int(stored[some[0]]), 9 if large[some[0]] else 1
        place = begin[some, None] + np.arange(size)
        value[place] = np.ascontiguousarray(rows[:, skip : skip + 8 * size]).view("<f8")
        if runs[some[0]]:
            repeats[place] = rows[:, skip + 8 * size :]
        if skip > 1:
            n[some] = np.ascontiguousarray(rows[:, 1:9]).view("<i8")[:, 0]
    items = np.add.reduceat(repeats, begin) if len(encoded) else stored
    n[~large] = items[~large]
    _refuse(encoded, np.where(large, (items != ITEMS) | (n <= ITEMS), (items < 1) | (items > ITEMS)))
    return Sketches(n, np.repeat(value, repeats) if runs.any() else value)


def _refuse(encoded: Sequence[bytes], wrong: npt.NDArray[np.bool_]) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"sketch {at} of {len(encoded)}: {len(encoded[at])} bytes that begin with "
            f"{encoded[at][:8].hex()} are no rank sketch of version {_VERSION}; "
            "rebuild the window from its measurements"
        )


# ---------------------------------------------------------------------- ranks


def _begin(n: Ints, item: Ints) -> Ints:
    """How many of n samples come before the run of an item; ``item`` may be one past the last."""
    return item + np.floor(np.maximum(n - ITEMS, 0) * _CUTS[item]).astype(np.int64)


def _lengths(n: Ints) -> Ints:
    """The lengths of the runs of sketches of n samples, one sketch after the other; they sum to n."""
    return _fill(n, np.ones_like, lambda begin: np.diff(begin, axis=1))


def _middles(n: Ints) -> Ints:
    """The rank, from 0, of the middle sample of each run, one sketch after the other.

    Of two samples in the middle it is in turn the lower and the upper, so that the sketch leans to no side.
    """
    upper = np.arange(ITEMS) & 1
    return _fill(n, lambda rank: rank, lambda begin: (begin[:, :-1] + begin[:, 1:] - 1 + upper) // 2)


def _fill(n: Ints, small: Callable[[Ints], Ints], large: Callable[[Ints], Ints]) -> Ints:
    """One figure per item: of the items' numbers in small sketches, of the beginnings of runs in large ones."""
    sizes = np.minimum(n, ITEMS)
    figures = small(np.arange(int(sizes.sum())) - np.repeat(_starts_of(sizes), sizes))
    many = np.flatnonzero(n > ITEMS)
    if len(many):
        begin = _begin(n[many, None], np.arange(ITEMS + 1)[None, :])
        figures[np.repeat(n > ITEMS, sizes)] = large(begin).ravel()
    return figures


def _of_samples(values: Floats, starts: Ints, n: Ints) -> Sketches:
    """The sketches of slices of samples."""
    ordered = _segments(np.sort, values, starts)
    if (n <= ITEMS).all():
        return Sketches(n, ordered)
    return Sketches(n, ordered[np.repeat(starts, np.minimum(n, ITEMS)) + _middles(n)])


# ---------------------------------------------------------------------- columns


def _starts_of(sizes: Ints) -> Ints:
    return np.cumsum(sizes) - sizes


def _bytes(values: npt.NDArray[np.generic], kind: str) -> npt.NDArray[np.uint8]:
    """A matrix of numbers as one of bytes."""
    return np.ascontiguousarray(values.astype(kind)).view(np.uint8)


def _alike(key: Ints) -> list[Ints]:
    """The places of each key."""
    order = np.argsort(key, kind="stable")
    return [part for part in np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(part)]


def _segments(sort: Callable[..., npt.NDArray[Any]], values: Floats, starts: Ints) -> npt.NDArray[Any]:
    """`np.sort`, or `np.argsort` with indices into ``values``, of each segment separately.

    Neither is stable: only equal values change places by that, and those cannot be told apart.
    """
    sizes = np.diff(starts, append=len(values))
    shift = starts if sort is np.argsort else np.zeros_like(starts)
    found = np.empty(len(values), np.int64 if sort is np.argsort else np.float64)
    for at in np.flatnonzero(sizes > _MATRIX_LENGTH).tolist():
        part = slice(starts[at], starts[at] + sizes[at])
        found[part] = sort(values[part]) + shift[at]
    short = np.flatnonzero(sizes <= _MATRIX_LENGTH)
    for alike in _alike(sizes[short]):
        size = int(sizes[short[alike[0]]])
        step = max(1, _MATRIX_ELEMENTS // size)
        for some in (short[alike[i : i + step]] for i in range(0, len(alike), step)):
            place = starts[some, None] + np.arange(size)
            found[place] = sort(values[place], axis=1) + shift[some, None]
    return found
