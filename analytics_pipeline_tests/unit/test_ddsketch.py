"""DDSketch against exact order statistics, the paper's own package, and itself merged."""

from __future__ import annotations

import numpy as np
import pytest
from ddsketch import DDSketch
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_pipeline.formulas import ddsketch as sketch

RANKS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
#: Normal doubles of both signs and zero: denormals have no 1 % to keep (see the test of their own).
VALUES = st.one_of(
    st.floats(1e-300, 1e300), st.floats(-1e300, -1e-300), st.just(0.0), st.integers(-50, 50).map(float)
)
GROUPS = st.lists(st.lists(VALUES, min_size=1, max_size=40), min_size=1, max_size=8)


def columns(groups: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers and values of lists of values."""
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return numbers, np.array([value for group in groups for value in group], np.float64)


def encoded(groups: list[list[float]]) -> list[bytes]:
    return sketch.encode(sketch.histogram(*columns(groups)), len(groups))


def quantiles_of(groups: list[list[float]]) -> np.ndarray:
    ends = (np.array([function(group) for group in groups]) for function in (min, max))
    return sketch.quantiles(sketch.decode(encoded(groups)), RANKS, *ends)


@given(GROUPS)
def test_a_percentile_is_within_one_percent_of_the_exact_one(groups: list[list[float]]) -> None:
    for group, row in zip(groups, quantiles_of(groups), strict=True):
        exact = np.quantile(np.array(group), RANKS, method="lower")
        assert np.all(np.abs(row - exact) <= 0.01 * np.abs(exact) * (1 + 1e-9)), (group, row, exact)
        assert np.all(np.diff(row) >= 0)
        assert row[0] >= min(group)
        assert row[-1] <= max(group)


@pytest.mark.parametrize("shape", ["normal", "lognormal", "exponential", "negative", "mixed"])
def test_percentiles_agree_with_the_package_of_the_papers_authors(shape: str) -> None:
    rng = np.random.default_rng(7)
    values = {
        "normal": rng.normal(20, 3, 5000),
        "lognormal": rng.lognormal(0, 3, 5000),
        "exponential": rng.exponential(1e-6, 5000),
        "negative": -rng.lognormal(2, 1, 5000),
        "mixed": np.concatenate([rng.normal(0, 1e6, 5000), np.zeros(500)]),
    }[shape]
    theirs = DDSketch(0.01)
    for value in values.tolist():
        theirs.add(value)
    ours = quantiles_of([values.tolist()])[0]
    exact = np.quantile(values, RANKS, method="lower")
    for rank, value, true in zip(RANKS, ours, exact, strict=True):
        assert value == pytest.approx(true, rel=0.01)
        assert value == pytest.approx(theirs.get_quantile_value(rank), rel=0.0203)


def test_no_bucket_is_wider_than_its_accuracy() -> None:
    rng = np.random.default_rng(3)
    values = np.exp(rng.uniform(np.log(1e-300), np.log(1e300), 500_000))
    worst = np.max(np.abs(sketch._values(sketch._codes(values)) / values - 1))
    assert 0.0099 < worst <= sketch.RELATIVE_ACCURACY


def test_the_ends_of_every_bucket_of_many_octaves_keep_the_accuracy() -> None:
    # Right at a border is where a wrong index would show: step through neighbouring doubles of each one.
    borders = []
    for code in range(35 * 1075 - 200, 35 * 1075 + 200):
        low, high = sketch._values(np.array([code, code + 1]))
        while np.nextafter(low, np.inf) < high:
            middle = low + (high - low) / 2
            if sketch._codes(np.array([middle]))[0] <= code:
                low = middle
            else:
                high = middle
        borders += [low, high]
    values = np.array(borders)
    assert np.all(np.diff(sketch._codes(values)) >= 0)
    assert np.max(np.abs(sketch._values(sketch._codes(values)) / values - 1)) <= 0.01 * (1 + 1e-9)


@given(GROUPS, GROUPS)
def test_merging_two_sketches_gives_the_bytes_of_the_sketch_of_both(
    left: list[list[float]], right: list[list[float]]
) -> None:
    groups = min(len(left), len(right))
    left, right = left[:groups], right[:groups]
    merged = sketch.merge(sketch.decode(encoded(left) + encoded(right)), np.tile(np.arange(groups), 2))
    assert sketch.encode(merged, groups) == encoded([a + b for a, b in zip(left, right, strict=True)])


@given(st.lists(VALUES, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_values_does_not_change_a_byte(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert encoded([values]) == encoded([shuffled])


@given(GROUPS)
def test_a_sketch_does_not_depend_on_its_neighbours(groups: list[list[float]]) -> None:
    assert encoded(groups) == [encoded([group])[0] for group in groups]


@given(GROUPS)
def test_decoding_gives_back_what_was_encoded(groups: list[list[float]]) -> None:
    buckets = sketch.histogram(*columns(groups))
    again = sketch.decode(sketch.encode(buckets, len(groups)))
    for name in ("group", "code", "count"):
        np.testing.assert_array_equal(getattr(again, name), getattr(buckets, name))


@pytest.mark.parametrize("largest", [1, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**62])
def test_counts_of_every_width_survive_the_bytes(largest: int) -> None:
    buckets = sketch.Buckets(np.array([0, 0, 1]), np.array([-9, 70_000, 3]), np.array([1, largest, 2]))
    again = sketch.decode(sketch.encode(buckets, 2))
    assert again.count.tolist() == [1, largest, 2]
    assert again.code.tolist() == [-9, 70_000, 3]


def test_the_bytes_are_those_that_the_module_documents() -> None:
    # 1.0 is the last bucket of the octave [1/2, 1): (0 + 1075 - 1) * 35 + 35 = 37625; 1.02 is one further.
    assert encoded([[1.0, 1.0, 1.02]]) == [
        bytes([0x10]) + (37625).to_bytes(4, "little", signed=True) + bytes([1]) + bytes([2, 1])
    ]
    assert encoded([[-1.0]]) == [bytes([0x10]) + (-37625).to_bytes(4, "little", signed=True) + bytes([1])]
    assert encoded([[0.0, -0.0]]) == [bytes([0x10, 0, 0, 0, 0, 2])]


@pytest.mark.parametrize("value", [5e-324, -5e-324, 2.2e-308, 1e-310, 1.7976931348623157e308, -1e308, 0.0])
def test_one_value_of_any_magnitude_is_told_exactly(value: float) -> None:
    assert quantiles_of([[value]]).tolist() == [[value] * len(RANKS)]


def test_the_largest_doubles_stay_finite() -> None:
    low, high = 1.70e308, np.finfo(np.float64).max
    row = quantiles_of([[low, low, high, high]])[0]
    assert np.all(np.isfinite(row))
    assert row[0] >= low
    assert row[-1] == pytest.approx(high, rel=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(ValueError, match="value 2 of 3 is NaN or infinite"):
        sketch.histogram(np.zeros(3, np.int64), np.array([1.0, 2.0, bad]))


@pytest.mark.parametrize("bad", [b"\x20\0\0\0\0\1", b"\x10", b"\x10\0\0\0\0", b"\x10\0\0\0\0\1\1"])
def test_bytes_that_are_no_sketch_are_refused_with_their_place(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"sketch 1 of 2: .* no DDSketch of version 1"):
        sketch.decode([encoded([[1.0]])[0], bad])


def test_no_sketches_and_empty_sketches_are_no_error() -> None:
    none = sketch.histogram(np.zeros(0, np.int64), np.zeros(0))
    assert sketch.encode(none, 2) == [b"", b""]
    assert sketch.encode(none, 0) == []
    assert len(sketch.decode([b"", b""]).code) == 0
    assert len(sketch.merge(none, np.zeros(0, np.int64)).code) == 0
    mixed = sketch.decode([b"", encoded([[4.0]])[0], b""])
    assert mixed.group.tolist() == [1]


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_the_bucket_of_a_value_does_not_depend_on_its_place_in_the_array(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 50, 67)
    assert sketch._codes(values).tolist() == [int(sketch._codes(values[i : i + 1])[0]) for i in range(67)]
