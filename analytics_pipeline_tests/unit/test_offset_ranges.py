"""Offset ranges as one value: what went in comes out, joined ranges count alike, and a range costs few bytes."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.storage.offset_ranges import OffsetRanges, checksum, decode, encode, join, of_rows

LARGEST = 2**63 - 1
Row = tuple[int, int, int, int, int]


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Ranges of a few logs that do not overlap, some of them one after the other."""
    found: list[Row] = []
    for log_id in draw(st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=5)):
        at = draw(st.integers(0, 2**40))
        for _ in range(draw(st.integers(0, 4))):
            at += draw(st.sampled_from([0, 0, 1, 1000]))
            width = draw(st.integers(1, 1000))
            messages = draw(st.integers(0, width))
            found.append((log_id, at, at + width, messages, draw(st.sampled_from([0, 1, 2**64 - 1]))))
            at += width
    return found


def rows_of(ranges: OffsetRanges) -> list[Row]:
    columns = (ranges.log_id, ranges.from_offset, ranges.to_offset, ranges.messages, ranges.checksum)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(rows())
def test_what_is_encoded_is_decoded(given_rows: list[Row]) -> None:
    assert rows_of(decode(encode(of_rows(given_rows)))) == sorted(given_rows)


def test_the_largest_offset_fits() -> None:
    one = [(2**31 - 1, LARGEST - 1, LARGEST, 1, 0)]
    assert rows_of(decode(encode(of_rows(one)))) == one


@given(st.lists(rows(), max_size=4))
def test_joined_ranges_cover_the_same_offsets_with_as_many_messages(batches: list[list[Row]]) -> None:
    # Each batch continues where the one before ended, in logs of its own.
    apart = [(log_id * 10 + at, *rest) for at, batch in enumerate(batches) for log_id, *rest in batch]
    joined = rows_of(join([of_rows(batch) for batch in ([], apart)]))
    assert sum(row[3] for row in joined) == sum(row[3] for row in apart)
    assert sum(row[2] - row[1] for row in joined) == sum(row[2] - row[1] for row in apart)
    assert sum(row[4] for row in joined) % 2**64 == sum(row[4] for row in apart) % 2**64
    for before, after in pairwise(joined):
        assert before[0] < after[0] or before[2] < after[1]


def test_ranges_of_one_log_that_follow_each_other_become_one() -> None:
    first, later, last = [(7, 0, 20, 20, 6), (8, 0, 1, 1, 0)], [(7, 20, 30, 9, 5)], [(7, 31, 32, 1, 0)]
    parts = [of_rows(one) for one in (later, first, last)]
    assert rows_of(join(parts)) == [(7, 0, 30, 29, 11), (7, 31, 32, 1, 0), (8, 0, 1, 1, 0)]


def test_a_value_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2: this code reads version 1"):
        decode(b"\x02" + encode(of_rows([]))[1:])


def test_a_checksum_tells_payloads_and_their_offsets_apart() -> None:
    payloads = [b"one", b"two", None]
    whole = checksum(payloads, [5, 6, 7])
    assert whole == sum(zlib.crc32(one or b"", at) for at, one in enumerate(payloads, 5))
    assert whole == (checksum(payloads[:1], [5]) + checksum(payloads[1:], [6, 7])) % 2**64
    assert len({whole, checksum([b"two", b"one", None], [5, 6, 7]), checksum(payloads, [6, 7, 8])}) == 3


def test_a_range_of_a_busy_partition_costs_at_most_eight_bytes() -> None:
    rng = np.random.default_rng(0)
    partitions = 5_000
    begin = rng.integers(0, 2**31, partitions)
    width = rng.integers(1, 8, partitions)
    unchecked = np.zeros(partitions, np.uint64)
    value = encode(OffsetRanges(np.arange(partitions), begin, begin + width, width, unchecked))
    assert len(value) <= 8 * partitions
