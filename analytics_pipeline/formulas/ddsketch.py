"""DDSketch: percentiles that merge exactly, within 1 % of the true value. Pure numpy, many sketches at once.

A sketch counts values in buckets whose ends grow geometrically, so that naming a bucket names a value within
a fixed relative error. Merging adds counts, which are integers: a sketch merged from parts is byte for byte
the sketch of the whole, in any order. Source: Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees", PVLDB 12(12), 2019.

The paper maps a value to its bucket by a logarithm. Here a cubic stands in for it within each octave ``[2^e,
2^(e+1))``, as in the paper's own implementations ("cubically interpolated mapping"): with ``s`` the mantissa
less one, ``35 log2(1 + s)`` becomes ``6 s^3 - 21 s^2 + 50 s``. It needs 1 % more buckets than the logarithm,
and only additions and multiplications: libraries round logarithms differently from one processor to the next,
and then two workers would store different sketches of the same hour. The slope of the cubic makes 35 buckets
an octave a relative error of at most tanh(0.01) = 0.9999667 %.

Bucket codes rise with the value: 0 holds zeros, positive codes positive values from the least denormal to the
largest double, and ``-code`` the mirrored negative value.

Bytes of a sketch, little endian; each width is the least that fits, so that equal sketches have equal bytes::

    1 byte             version (high four bits: 1), log2 of count width (2 bits), log2 of step width (2 bits)
    4 bytes            first bucket's code, signed
    (n - 1) x 1|2|4    steps from one bucket's code to the next, unsigned, at least 1
    n x 1|2|4|8        counts of the n buckets, unsigned, at least 1

No bucket at all is no bytes at all. Least and largest value stand beside the sketch, in the window's own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RELATIVE_ACCURACY = 0.01
BUCKETS_PER_OCTAVE = 35
#: Added to the octave so that the codes of positive values are positive: the least denormal is 2^-1074.
_OCTAVE_SHIFT = 1075
#: Wider than the codes of both signs, so that group and code fit one sortable integer.
_CODE_SPAN = 1 << 18
_CODE_SHIFT = 1 << 17
_VERSION = 1
_HEAD_BYTES = 5


@dataclass(frozen=True, slots=True)
class Buckets:
    """Many sketches as columns: unique (group, code), ascending, with a count of at least 1."""

    group: Ints
    code: Ints
    count: Ints


def histogram(groups: Ints, values: Floats) -> Buckets:
    """The sketches of finite values in any order; ``groups[i]``, from 0, is the sketch of ``values[i]``."""
    key = groups * _CODE_SPAN + (_codes(values) + _CODE_SHIFT)
    key.sort()
    starts = _run_starts(key)
    return _from_keys(key[starts], np.diff(starts, append=len(key)))


def merge(buckets: Buckets, new_group: Ints) -> Buckets:
    """Adds sketches together: those of group ``g`` go to group ``new_group[g]``."""
    key = new_group[buckets.group] * _CODE_SPAN + (buckets.code + _CODE_SHIFT)
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = _run_starts(key)
    if not len(starts):
        return buckets
    return _from_keys(key[starts], np.add.reduceat(buckets.count[order], starts))


def quantiles(buckets: Buckets, ranks: Sequence[float], minimum: Floats, maximum: Floats) -> Floats:
    """Percentiles of each sketch, within 1 % of the value at the lower rank ``floor(q (n - 1))``.

    Args:
        ranks: fractions from 0 to 1.
        minimum, maximum: the exact ends of each group, none empty; a bucket's middle never passes them.

    Returns:
        shape (groups, ranks).
    """
    through = np.cumsum(buckets.count)
    ends = np.searchsorted(buckets.group, np.arange(len(minimum)), side="right")
    total = through[ends - 1] if len(through) else np.zeros(0, np.int64)
    before = np.concatenate([np.zeros(1, np.int64), total[:-1]])[: len(total)]
    wanted = before[:, None] + np.floor(np.outer(total - before - 1, ranks)).astype(np.int64)
    middle = _values(buckets.code[np.searchsorted(through, wanted, side="right")])
    return np.clip(middle, minimum[:, None], maximum[:, None])


def encode(buckets: Buckets, groups: int) -> list[bytes]:
    """The bytes of sketches 0 to ``groups - 1``, as the module describes them."""
    bounds = np.searchsorted(buckets.group, np.arange(groups + 1))
    n = np.diff(bounds)
    some = np.flatnonzero(n)
    step_log, count_log = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    step = np.diff(buckets.code, prepend=0)
    step[bounds[some]] = 0
    if len(some):
        step_log[some] = _width_log(np.maximum.reduceat(step, bounds[some]))
        count_log[some] = _width_log(np.maximum.reduceat(buckets.count, bounds[some]))
    sizes = np.where(n > 0, _HEAD_BYTES + ((n - 1) << step_log) + (n << count_log), 0)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    data = np.zeros(int(ends[-1]) if groups else 0, np.uint8)
    data[starts[some]] = (_VERSION << 4 | count_log[some] << 2 | step_log[some]).astype(np.uint8)
    _put(data, starts[some] + 1, buckets.code[bounds[some]], np.full(len(some), 4))
    place = _Places(starts, n, step_log, count_log, bounds)
    later = place.rank > 0
    _put(data, place.steps[later], step[later], (1 << step_log)[place.group[later]])
    _put(data, place.counts, buckets.count, (1 << count_log)[place.group])
    whole = data.tobytes()
    return [whole[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def decode(sketches: Sequence[bytes]) -> Buckets:
    """Columns of encoded sketches; sketch ``i`` becomes group ``i``.

    Raises:
        ValueError: bytes that are no sketch of this version: which one, and what it begins with.
    """
    data = np.frombuffer(b"".join(sketches), np.uint8)
    sizes = np.fromiter(map(len, sketches), np.int64, len(sketches))
    starts = np.cumsum(sizes) - sizes
    some = np.flatnonzero(sizes)
    head = np.zeros(len(sketches), np.int64)
    head[some] = data[starts[some]]
    step_log, count_log = head & 3, head >> 2 & 3
    n, rest = np.divmod(sizes - _HEAD_BYTES + (1 << step_log), (1 << step_log) + (1 << count_log))
    n[sizes == 0] = 0
    wrong = (sizes > 0) & ((head >> 4 != _VERSION) | (sizes <= _HEAD_BYTES) | (rest != 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"sketch {at} of {len(sketches)}: {int(sizes[at])} bytes that begin with "
            f"{sketches[at][:8].hex()} are no DDSketch of version {_VERSION}; "
            "rebuild the window from its measurements"
        )
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(n)])
    place = _Places(starts, n, step_log, count_log, bounds)
    later = place.rank > 0
    code = np.zeros(len(place.rank), np.int64)
    first = _take(data, starts[some] + 1, np.full(len(some), 4))
    code[later] = _take(data, place.steps[later], (1 << step_log)[place.group[later]])
    code[bounds[some]] = first - (first >> 31 << 32)
    code = np.cumsum(code)
    code -= np.repeat(np.concatenate([np.zeros(1, np.int64), code])[bounds[:-1]], n)
    return Buckets(place.group, code, _take(data, place.counts, (1 << count_log)[place.group]))


class _Places:
    """Where each bucket's step and count lie in the concatenated bytes."""

    def __init__(self, starts: Ints, n: Ints, step_log: Ints, count_log: Ints, bounds: Ints) -> None:
        self.group: Ints = np.repeat(np.arange(len(n)), n)
        self.rank: Ints = np.arange(int(bounds[-1])) - bounds[:-1][self.group]
        body = starts + _HEAD_BYTES
        self.steps: Ints = body[self.group] + (self.rank - 1 << step_log[self.group])
        counts_from = body + (n - 1 << step_log)
        self.counts: Ints = counts_from[self.group] + (self.rank << count_log[self.group])


def _codes(values: Floats) -> Ints:
    """The bucket of each value. Rises with the value; the same on every processor."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"value {int(np.argmin(np.isfinite(values)))} of {len(values)} is NaN or infinite; "
            "only finite values have percentiles, so refuse it before"
        )
    mantissa, exponent = np.frexp(np.abs(values))
    s = 2.0 * mantissa - 1.0
    within = np.ceil(((6.0 * s - 21.0) * s + 50.0) * s)
    # Codes are below 2^18, so exact as doubles; one conversion at the end is the cheapest.
    code = (exponent + (_OCTAVE_SHIFT - 1.0)) * BUCKETS_PER_OCTAVE + within
    return (code * np.sign(values)).astype(np.int64)


def _bucket_middles() -> Floats:
    """For each bucket of the octave [1, 2) the value least wrong for both its ends: their harmonic mean."""

    def bound(index: int) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):  # halves an interval of 1 down past the last bit of a double
            middle = (low + high) / 2
            if ((6.0 * middle - 21.0) * middle + 50.0) * middle < index:
                low = middle
            else:
                high = middle
        return 1.0 + high

    ends = [bound(index) for index in range(BUCKETS_PER_OCTAVE + 1)]
    return np.array([2 * low * high / (low + high) for low, high in pairwise(ends)])


_MIDDLES = _bucket_middles()


def _values(codes: Ints) -> Floats:
    """The value that stands for each bucket; may be infinite in the last one, which the maximum cuts."""
    octave, within = np.divmod(np.abs(codes) - 1, BUCKETS_PER_OCTAVE)
    with np.errstate(over="ignore", under="ignore"):
        middle = np.ldexp(_MIDDLES[within], octave - _OCTAVE_SHIFT)
    signed: Floats = np.sign(codes) * middle
    return signed


def _run_starts(key: Ints) -> Ints:
    """Where each run of equal keys begins."""
    if not len(key):
        return np.zeros(0, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(key[1:] != key[:-1]) + 1])


def _from_keys(key: Ints, count: Ints) -> Buckets:
    return Buckets(key >> 18, (key & (_CODE_SPAN - 1)) - _CODE_SHIFT, count)


def _width_log(largest: Ints) -> Ints:
    """log2 of the least number of bytes, 1, 2, 4 or 8, that holds each value."""
    return (largest >= 1 << 8).astype(np.int64) + (largest >= 1 << 16) + (largest >= 1 << 32)


def _put(data: npt.NDArray[np.uint8], places: Ints, values: Ints, widths: Ints) -> None:
    """Writes integers of their own widths, little endian."""
    for byte in range(int(widths.max(initial=0))):
        wide = slice(None) if byte == 0 else np.flatnonzero(widths > byte)
        data[places[wide] + byte] = (values[wide] >> 8 * byte & 0xFF).astype(np.uint8)


def _take(data: npt.NDArray[np.uint8], places: Ints, widths: Ints) -> Ints:
    """Reads unsigned integers of their own widths, little endian."""
    values = np.zeros(len(places), np.int64)
    for byte in range(int(widths.max(initial=0))):
        wide = slice(None) if byte == 0 else np.flatnonzero(widths > byte)
        values[wide] |= data[places[wide] + byte].astype(np.int64) << 8 * byte
    return values
