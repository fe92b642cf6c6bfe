"""Rank sketches against exact order statistics: exact while small, within 1 % of rank after four levels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.formulas import rank_sketch
from analytics_pipeline.formulas.rank_sketch import ITEMS, MAX_BYTES, Sketches
from analytics_pipeline_tests import reference

QUANTILES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.98, 0.99)
DAY_S = 86_400
VALUES = st.one_of(st.floats(-1e150, 1e150), st.integers(-5, 5).map(float))
GROUPS = st.lists(st.lists(VALUES, min_size=1, max_size=2 * ITEMS), min_size=1, max_size=6)


def sketches(groups: list[list[float]]) -> Sketches:
    sizes = np.array([len(group) for group in groups])
    return rank_sketch.from_values(np.array([v for group in groups for v in group]), np.cumsum(sizes) - sizes)


def encoded(groups: list[list[float]]) -> list[bytes]:
    return rank_sketch.encode(sketches(groups))


def wide(rng: np.random.Generator, sizes: list[int]) -> Sketches:
    n = np.array(sizes)
    return rank_sketch.from_values(rng.normal(size=int(n.sum())), np.cumsum(n) - n)


# ---------------------------------------------------------------------- exact while small


@given(st.lists(VALUES, min_size=1, max_size=ITEMS), st.floats(0, 1))
def test_percentiles_of_few_samples_are_those_of_percentile_disc(values: list[float], rank: float) -> None:
    found = rank_sketch.quantiles(sketches([values]), (rank, 0.5, 0.95, 0.99))[0].tolist()
    assert found == [reference.percentile(values, q) for q in (rank, 0.5, 0.95, 0.99)]


def test_at_least_a_hundred_samples_are_exact() -> None:
    assert ITEMS >= 100


@pytest.mark.parametrize(
    ("samples", "p50", "p95"), [([7.0], 7.0, 7.0), ([2.0, 1.0], 1.0, 2.0), ([3.0, 1.0, 2.0], 2.0, 3.0)]
)
def test_a_percentile_is_the_least_value_with_that_share_at_or_below(
    samples: list[float], p50: float, p95: float
) -> None:
    assert rank_sketch.quantiles(sketches([samples]), (0.5, 0.95)).tolist() == [[p50, p95]]


@given(st.lists(st.lists(VALUES, min_size=1, max_size=ITEMS // 4), min_size=1, max_size=4))
def test_while_all_fit_a_merged_sketch_is_that_of_all_samples(children: list[list[float]]) -> None:
    merged = rank_sketch.merge(sketches(children), np.array([0]))
    assert rank_sketch.encode(merged) == encoded([[value for child in children for value in child]])


@given(GROUPS)
def test_minimum_and_maximum_stay_exact_through_merges(groups: list[list[float]]) -> None:
    merged = rank_sketch.merge(sketches(groups), np.array([0]))
    every = [value for group in groups for value in group]
    assert rank_sketch.quantiles(merged, (0.0, 1.0)).tolist() == [[min(every), max(every)]]
    assert merged.n.tolist() == [len(every)]


@given(GROUPS)
def test_every_percentile_is_a_value_that_occurred_and_they_are_in_order(groups: list[list[float]]) -> None:
    found = rank_sketch.quantiles(sketches(groups), QUANTILES)
    for group, row in zip(groups, found, strict=True):
        assert set(row.tolist()) <= set(group)
        assert np.all(np.diff(row) >= 0)


# ---------------------------------------------------------------------- rank error


def rank_error(found: np.ndarray, samples: np.ndarray) -> float:
    """The largest distance of a quantile to [F(v-), F(v)]."""
    ordered = np.sort(samples)
    below = np.searchsorted(ordered, found, "left") / len(ordered)
    through = np.searchsorted(ordered, found, "right") / len(ordered)
    wanted = np.array(QUANTILES)
    return float(np.maximum(0, np.maximum(below - wanted, wanted - through)).max())


def by_day(values: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
    """Percentiles of a day by way of 60, 300 and 3,600 s, and the longest sketch on the way."""
    bucket, level, longest = second // 60, None, 0
    for factor in (1, 5, 12, 24):
        bucket = bucket // factor
        starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
        level = rank_sketch.from_values(values, starts) if level is None else rank_sketch.merge(level, starts)
        as_bytes = rank_sketch.encode(level)
        longest = max(longest, *map(len, as_bytes))
        level, bucket = rank_sketch.decode(as_bytes), bucket[starts]
    assert level is not None
    assert level.n.tolist() == [len(values)]
    return rank_sketch.quantiles(level, QUANTILES)[0], longest


def shapes(rng: np.random.Generator, n: int) -> Iterator[tuple[str, np.ndarray]]:
    index = np.arange(n)
    yield "constant", np.full(n, 3.3)
    yield "two values at random", (rng.random(n) < 0.3).astype(float)
    yield "two values in turn", (index // 7 % 2).astype(float)
    yield "102.1 +- 0.3, normal", 102.1 + 0.1 * rng.normal(size=n)
    yield "the same to one decimal", np.round(102.1 + 0.1 * rng.normal(size=n), 1)
    yield "heavy tail (Pareto 1.1)", rng.pareto(1.1, n) + 1
    yield "ramp up", index.astype(float)
    yield "ramp down", -index.astype(float)
    for period in (7, 61, 300, 1000, 3600, 20_000):
        yield f"sawtooth of {period} samples", (index % period).astype(float)


def uneven(rng: np.random.Generator) -> np.ndarray:
    """A day of a few samples a minute, one minute of very many and ten seconds of many."""
    busy = [rng.integers(18_000, 18_060, 300_000), rng.integers(80_000, 80_010, 100_000)]
    return np.sort(np.concatenate([rng.integers(0, DAY_S, 5_000), *busy]))


RATES = {
    "1 per minute": lambda rng: np.arange(0, DAY_S, 60),
    "1 per second": lambda rng: np.arange(DAY_S),
    "30 per second": lambda rng: np.arange(30 * DAY_S) // 30,
    "uneven": uneven,
}


@pytest.mark.parametrize("rate", RATES)
def test_after_a_day_of_merging_the_rank_error_is_below_one_percent(rate: str) -> None:
    rng = np.random.default_rng(3)
    second = RATES[rate](rng)
    for name, values in shapes(rng, len(second)):
        found, longest = by_day(values, second)
        assert rank_error(found, values) <= 0.01, name
        assert longest <= MAX_BYTES <= 1000


def test_a_hundred_samples_per_second_for_a_day_stay_below_one_percent_too() -> None:
    rng = np.random.default_rng(4)
    second = np.repeat(np.arange(DAY_S), 100)
    values = 102.1 + 0.1 * rng.normal(size=len(second))
    found, _ = by_day(values, second)
    assert rank_error(found, values) <= 0.01
    assert found[QUANTILES.index(0.5)] < found[QUANTILES.index(0.95)] < found[QUANTILES.index(0.99)]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_one_merge_errs_by_less_than_one_percent_whatever_the_sizes(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(rng.integers(-3, 3), 1, size) for size in sizes])
    children = rank_sketch.from_values(values, np.cumsum(sizes) - sizes)
    found = rank_sketch.quantiles(rank_sketch.merge(children, np.array([0])), QUANTILES)[0]
    assert rank_error(found, values) <= 0.011 + 1 / len(values)


# ---------------------------------------------------------------------- the same bits


@given(GROUPS, st.randoms(use_true_random=False))
def test_the_order_of_values_does_not_change_a_byte(groups: list[list[float]], chance: random.Random) -> None:
    shuffled = [chance.sample(group, len(group)) for group in groups]
    assert encoded(groups) == encoded(shuffled)


def test_zeros_of_both_signs_leave_no_trace_of_their_order() -> None:
    both = sketches([[0.0, -0.0, 1.0], [-0.0, 0.0, 1.0], [-0.0]])
    assert not np.signbit(both.value).any()


@given(GROUPS)
def test_a_sketch_does_not_depend_on_its_neighbours(groups: list[list[float]]) -> None:
    assert encoded(groups) == [encoded([group])[0] for group in groups]


def test_long_and_short_slices_are_sorted_alike() -> None:
    rng = np.random.default_rng(8)
    sizes = [1, 255, 256, 257, 1, 700, 256, 3]
    together = rank_sketch.encode(wide(rng, sizes))
    rng = np.random.default_rng(8)
    assert together == [rank_sketch.encode(wide(rng, [size]))[0] for size in sizes]


@given(st.lists(st.integers(1, 400), min_size=2, max_size=9), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_children_does_not_change_a_byte(
    sizes: list[int], chance: random.Random, coarse: bool
) -> None:
    rng = np.random.default_rng(len(sizes))
    groups = [np.round(rng.normal(size=size), 1 if coarse else 9).tolist() for size in sizes]
    one = rank_sketch.merge(sketches(groups), np.array([0]))
    other = rank_sketch.merge(sketches(chance.sample(groups, len(groups))), np.array([0]))
    assert rank_sketch.encode(one) == rank_sketch.encode(other)


@given(st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_merged_sketch_does_not_depend_on_its_neighbours(families: list[list[int]]) -> None:
    children = rank_sketch.encode(wide(np.random.default_rng(1), [size for family in families for size in family]))
    starts = np.cumsum([0, *(len(family) for family in families)])
    together = rank_sketch.encode(rank_sketch.merge(rank_sketch.decode(children), starts[:-1]))
    for at, (begin, end) in enumerate(pairwise(starts.tolist())):
        alone = rank_sketch.merge(rank_sketch.decode(children[begin:end]), np.array([0]))
        assert rank_sketch.encode(alone) == [together[at]]


# ---------------------------------------------------------------------- bytes


@given(GROUPS)
def test_decoding_gives_back_what_was_encoded(groups: list[list[float]]) -> None:
    before = sketches(groups)
    as_bytes = rank_sketch.encode(before)
    after = rank_sketch.decode(as_bytes)
    np.testing.assert_array_equal(after.n, before.n)
    np.testing.assert_array_equal(after.value, before.value)
    assert rank_sketch.encode(after) == as_bytes


@given(GROUPS)
def test_few_samples_need_few_bytes_and_none_more_than_a_kilobyte(groups: list[list[float]]) -> None:
    for group, as_bytes in zip(groups, encoded(groups), strict=True):
        assert len(as_bytes) <= min(1 + 8 * len(group), MAX_BYTES) <= 1000


def test_repeated_values_are_stored_once() -> None:
    constant, many, two = encoded([[20.5] * 60, [20.5] * 60_000, [0.0, 1.0] * 30])
    assert (len(constant), len(many), len(two)) == (10, 18, 19)


def test_the_bytes_are_those_that_the_module_documents() -> None:
    one, two, three = (np.float64(value).tobytes() for value in (1.0, 2.0, 3.0))
    assert encoded([[2.0, 1.0, 3.0]]) == [b"\x20" + one + two + three]
    assert encoded([[2.0, 1.0, 1.0, 1.0]]) == [b"\x22" + one + two + b"\x03\x01"]
    large = b"\x23" + (500).to_bytes(8, "little") + one + two
    # All but the maximum are ones: the last item alone stands for it.
    assert encoded([[2.0] + [1.0] * 499]) == [large + bytes([ITEMS - 1, 1])]
    plain = encoded([[float(value) for value in range(1, 1001)]])[0]
    assert plain[:9] == b"\x21" + (1000).to_bytes(8, "little")
    assert plain[9:17] == one
    assert plain[-8:] == np.float64(1000.0).tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x20",
        b"\x10" + bytes(8),
        b"\x24" + bytes(8),
        b"\x20" + bytes(9),
        b"\x20" + bytes(8 * ITEMS + 8),
        b"\x22" + bytes(8) + b"\x00",
        b"\x22" + bytes(8) + b"\xff",
        b"\x21" + (500).to_bytes(8, "little") + bytes(8),
        b"\x21" + (5).to_bytes(8, "little") + bytes(8 * ITEMS),
        b"\x23" + (500).to_bytes(8, "little") + bytes(8) + b"\x05",
    ],
)
def test_bytes_that_are_no_sketch_are_refused_with_their_place(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"sketch 1 of 2: .* no rank sketch of version 2"):
        rank_sketch.decode([encoded([[1.0]])[0], bad])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(ValueError, match="value 2 of 3 is NaN or infinite"):
        rank_sketch.from_values(np.array([1.0, 2.0, bad]), np.array([0]))


def test_no_sketches_are_no_error() -> None:
    none = rank_sketch.from_values(np.zeros(0), np.zeros(0, np.int64))
    assert rank_sketch.encode(none) == []
    assert len(rank_sketch.decode([])) == 0
    assert len(rank_sketch.merge(none, np.zeros(0, np.int64))) == 0
    assert rank_sketch.quantiles(none, (0.5,)).shape == (0, 1)


def test_the_samples_of_a_large_sketch_are_told_apart_up_to_two_to_the_fifty() -> None:
    huge = Sketches(np.array([1 << 50]), np.arange(float(ITEMS)))
    again = rank_sketch.decode(rank_sketch.encode(huge))
    assert again.n.tolist() == [1 << 50]
    assert rank_sketch.quantiles(again, (0.0, 0.5, 1.0)).tolist() == [[0.0, ITEMS // 2, ITEMS - 1]]
