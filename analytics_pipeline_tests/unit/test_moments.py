"""Moments against exact arithmetic, numpy and pandas, on data made to lose digits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.formulas import moments
from analytics_pipeline_tests.reference import m2_tolerance

GROUPS = st.lists(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), min_size=1, max_size=8)


def of(groups: list[list[float]]) -> tuple[moments.Moments, np.ndarray, np.ndarray]:
    """Moments of lists of values, with their minima and maxima."""
    values = np.array([value for group in groups for value in group], np.float64)
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return moments.from_values(values, starts, low, high), low, high


def exact(values: list[float]) -> tuple[float, float]:
    """Mean and M2 in rational numbers, rounded once."""
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return float(mean), float(sum((number - mean) ** 2 for number in numbers))


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, 1e12])
def test_a_large_offset_over_small_noise_costs_no_digits(offset: float) -> None:
    values = (offset + np.random.default_rng(1).normal(0, 0.5, 997)).tolist()
    moment, _, _ = of([values])
    mean, m2 = exact(values)
    assert moment.mean[0] == pytest.approx(mean, rel=1e-15)
    assert moment.m2[0] == pytest.approx(m2, rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, 1e12])
def test_merging_parts_costs_no_more_than_the_rounding_of_their_means(offset: float) -> None:
    values = offset + np.random.default_rng(2).normal(0, 0.5, 1000)
    parts, low, high = of([part.tolist() for part in np.split(values, [1, 3, 40, 500, 998])])
    whole = moments.from_parts(parts, np.array([0]), low.min(keepdims=True), high.max(keepdims=True))
    mean, m2 = exact(values.tolist())
    assert whole.n.tolist() == [1000]
    assert whole.mean[0] == pytest.approx(mean, rel=1e-15)
    assert whole.m2[0] == pytest.approx(m2, rel=0, abs=m2_tolerance(1000, m2, offset + 3))


@given(GROUPS)
def test_mean_and_m2_are_those_of_exact_arithmetic(groups: list[list[float]]) -> None:
    moment, _, _ = of(groups)
    for row, group in enumerate(groups):
        mean, m2 = exact(group)
        largest = max(abs(value) for value in group)
        assert moment.n[row] == len(group)
        assert abs(moment.mean[row] - mean) <= 4e-16 * largest
        assert moment.m2[row] == pytest.approx(m2, rel=0, abs=m2_tolerance(len(group), m2, largest))


def test_mean_and_variance_agree_with_pandas_and_numpy() -> None:
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"group": np.sort(rng.integers(0, 50, 5000)), "value": rng.normal(1e5, 3, 5000)})
    moment, _, _ = of([part["value"].tolist() for _, part in frame.groupby("group")])
    theirs = frame.groupby("group")["value"].agg(["mean", "var", "size"])
    np.testing.assert_array_equal(moment.n, theirs["size"])
    np.testing.assert_allclose(moment.mean, theirs["mean"], rtol=1e-14)
    np.testing.assert_allclose(moment.m2 / (moment.n - 1), theirs["var"], rtol=1e-10)


@given(st.lists(GROUPS, min_size=1, max_size=4))
def test_merged_parts_have_the_moments_of_all_their_values(nested: list[list[list[float]]]) -> None:
    parts, low, high = of([group for groups in nested for group in groups])
    starts = np.cumsum([0, *(len(groups) for groups in nested[:-1])])
    ends = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    whole = moments.from_parts(parts, starts, *ends)
    for row, groups in enumerate(nested):
        values = [value for group in groups for value in group]
        mean, m2 = exact(values)
        largest = max(abs(value) for value in values)
        assert abs(whole.mean[row] - mean) <= 1e-15 * largest
        assert whole.m2[row] == pytest.approx(m2, rel=0, abs=m2_tolerance(len(values), m2, largest))


@given(GROUPS)
def test_a_group_has_the_same_bits_alone_and_among_others(groups: list[list[float]]) -> None:
    together, _, _ = of(groups)
    for row, group in enumerate(groups):
        alone, _, _ = of([group])
        assert (together.mean[row], together.m2[row]) == (alone.mean[0], alone.m2[0])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 127, 128, 129, 1000, 8191, 8192, 8193, 20_000])
def test_a_sum_is_rounded_alike_wherever_its_slice_begins(length: int) -> None:
    # Numpy sums pairwise in blocks; the blocks must be those of the slice, not of the array around it.
    rng = np.random.default_rng(length)
    values = rng.lognormal(0, 8, length)
    alone = np.add.reduceat(values, [0])[0]
    for before in (1, 3, 8, 64, 129):
        around = np.concatenate([rng.normal(size=before), values, rng.normal(size=5)])
        assert np.add.reduceat(around, [0, before, before + length])[1] == alone


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 200))
def test_equal_values_have_themselves_as_mean_and_no_spread(value: float, n: int) -> None:
    moment, low, high = of([[value] * n])
    assert (moment.mean[0], moment.m2[0]) == (value, 0.0)
    three = moments.Moments(np.repeat(moment.n, 3), np.repeat(moment.mean, 3), np.repeat(moment.m2, 3))
    whole = moments.from_parts(three, np.array([0]), low, high)
    assert (whole.n[0], whole.mean[0], whole.m2[0]) == (3 * n, value, 0.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_no_finite_values_give_nan(values: list[float]) -> None:
    moment, low, high = of([values])
    assert low[0] <= moment.mean[0] <= high[0]
    assert moment.m2[0] >= 0
    two = moments.from_parts(moments.Moments(*(np.repeat(it, 2) for it in moment)), np.array([0]), low, high)
    assert low[0] <= two.mean[0] <= high[0]
    assert two.m2[0] >= 0
