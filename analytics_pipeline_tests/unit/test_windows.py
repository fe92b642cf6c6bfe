"""Windows: where they begin and end, what they hold, and that nothing else changes a bit of them."""

from __future__ import annotations

import math
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from analytics_pipeline.assets.windows import transform as windows
from analytics_pipeline.assets.windows.transform import EarlierSamples
from analytics_pipeline.records import from_us
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.reference import Message, SeriesKey
from analytics_pipeline_tests.window_rows import GAP_US, MEASUREMENTS, NOON_US, SECOND, base, keyed

#: Below 2e-308 doubles are 5e-324 apart, whatever their size: a mean of a few parts is some of these steps off.
DENORMAL = 32 * 5e-324


@pytest.mark.parametrize(
    ("second", "start"),
    [
        #  11:59          12:00                    12:01
        #  ──┼──────────────┼────────────────────────┼──
        #    [ ...         )[ ...                   )[
        (-60.0, "11:59"),
        (-0.000001, "11:59"),
        (0.0, "12:00"),
        (59.999999, "12:00"),
        (60.0, "12:01"),
    ],
)
def test_a_window_holds_its_start_and_not_its_end(second: float, start: str) -> None:
    frame = base([(1, second, 1.0)])
    assert from_us(frame["bucket_start_us"][0]).strftime("%H:%M") == start


def test_windows_before_1970_are_aligned_as_later_ones() -> None:
    one, zero = np.array([1], np.int32), np.zeros(1, np.int64)
    frame = windows.base_windows(
        one, np.array([-1], np.int64), zero, np.array([1.0]), 60, longest_gap_us=0, earlier=EarlierSamples.none()
    )
    assert frame["bucket_start_us"].to_list() == [-60 * SECOND]


def test_a_window_tells_what_it_holds() -> None:
    frame = base([(1, 30, 4.0), (1, 10, 1.0), (1, 59, 2.0), (1, 20, 9.0)])
    row = frame.row(0, named=True)
    assert (row["count_n"], row["avg_val"], row["m2"]) == (4, 4.0, 38.0)
    assert (row["min_val"], row["max_val"]) == (1.0, 9.0)
    assert (row["first_val"], row["first_time_us"]) == (1.0, NOON_US + 10 * SECOND)
    assert (row["last_val"], row["last_time_us"]) == (2.0, NOON_US + 59 * SECOND)
    assert (row["base_n"], row["coverage"], row["window_s"], row["series_id"]) == (1, 1.0, 60, 1)
    assert (row["p50"], row["p95"], row["p99"]) == (2.0, 9.0, 9.0)
    assert frame.schema == pl.Schema(windows.WINDOW_SCHEMA)


def test_of_samples_at_one_time_the_sample_key_tells_first_and_last() -> None:
    for rows in ([(1, 5, 2, 7.0), (1, 5, 1, 8.0)], [(1, 5, 1, 8.0), (1, 5, 2, 7.0)]):
        row = keyed(rows).row(0, named=True)
        assert (row["first_val"], row["last_val"], row["count_n"]) == (8.0, 7.0, 2)


def test_series_stay_apart_and_rows_come_by_time_then_series() -> None:
    frame = base([(2, 61, 1.0), (1, 61, 2.0), (2, 1, 3.0), (1, 1, 4.0)])
    starts = ((frame["bucket_start_us"] - NOON_US) // SECOND).to_list()
    assert list(zip(starts, frame["series_id"], strict=True)) == [(0, 1), (0, 2), (60, 1), (60, 2)]
    assert frame["avg_val"].to_list() == [4.0, 3.0, 2.0, 1.0]


def test_nothing_gives_no_window() -> None:
    none = np.zeros(0, np.int64)
    frame = windows.base_windows(
        none.astype(np.int32), none, none, np.zeros(0), 60, longest_gap_us=0, earlier=EarlierSamples.none()
    )
    assert frame.is_empty()
    assert frame.schema == pl.Schema(windows.WINDOW_SCHEMA)
    assert windows.merge_windows(frame, 300, finest_s=60).schema == frame.schema


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        base([(1, 1, float("nan"))])


def test_series_and_times_far_apart_are_still_in_order() -> None:
    # Their spans multiplied pass 64 bits: the slow way of sorting takes over.
    far = 10**15
    frame = keyed([(2**31 - 1, far, 0, 1.0), (1, -far, 0, 2.0), (1, far, 0, 3.0), (1, far + 1, 0, 4.0)])
    assert frame["count_n"].to_list() == [1, 2, 1]
    assert frame["series_id"].to_list() == [1, 1, 2**31 - 1]
    assert frame["last_val"].to_list() == [2.0, 4.0, 1.0]


def test_coverage_is_the_share_of_base_windows_with_a_sample() -> None:
    #  12:00  :01  :02  :03  :04 | :05
    #    x         xx            |  x
    five = windows.merge_windows(
        base([(1, 1, 1.0), (1, 121, 2.0), (1, 122, 2.0), (1, 301, 5.0)]), 300, finest_s=60
    )
    assert five["base_n"].to_list() == [2, 1]
    assert five["coverage"].to_list() == [0.4, 0.2]
    hour = windows.merge_windows(five, 3600, finest_s=60)
    assert (hour["base_n"][0], hour["coverage"][0], hour["count_n"][0]) == (3, 3 / 60, 4)


def test_coverage_counts_base_windows_of_any_size() -> None:
    hour = windows.merge_windows(
        base([(1, 1, 1.0), (1, 1800, 2.0), (1, 1801, 2.0)], base_s=300), 3600, finest_s=300
    )
    assert (hour["base_n"][0], hour["coverage"][0]) == (2, 2 / 12)


def test_minus_zero_is_stored_as_zero_so_that_the_order_of_equal_values_leaves_no_trace() -> None:
    row = keyed([(1, 0, 0, -0.0), (1, 0, 1, 0.0), (1, 0, 2, -0.0)]).row(0, named=True)
    assert [math.copysign(1, row[name]) for name in ("min_val", "max_val", "first_val", "last_val")] == [1.0] * 4


def test_a_day_is_merged_from_hours_and_counts_base_windows() -> None:
    rows = base([(1, hour * 3600 + minute * 60, float(hour)) for hour in range(-12, 12) for minute in (0, 1)])
    hours = windows.merge_windows(rows, 3600, finest_s=60)
    day = windows.merge_windows(hours, 86_400, finest_s=60)
    assert (len(hours), len(day)) == (24, 1)
    assert (day["base_n"][0], day["coverage"][0], day["count_n"][0]) == (48, 48 / 1440, 48)
    assert (day["first_val"][0], day["last_val"][0]) == (-12.0, 11.0)


@pytest.mark.parametrize(("size_s", "finest_s"), [(90, 60), (300, 120)])
def test_sizes_that_do_not_divide_are_refused_by_name(size_s: int, finest_s: int) -> None:
    with pytest.raises(ValueError, match=f"windows of {size_s} s merge rows of one size"):
        windows.merge_windows(base([(1, 1, 1.0)]), size_s, finest_s=finest_s)


def test_rows_of_two_sizes_are_refused() -> None:
    mixed = pl.concat([base([(1, 1, 1.0)]), base([(1, 1, 1.0)], base_s=300)])
    with pytest.raises(ValueError, match=r"got rows of \[60, 300\] s"):
        windows.merge_windows(mixed, 3600, finest_s=60)


def exactly_equal(left: pl.DataFrame, right: pl.DataFrame) -> None:
    assert_frame_equal(left, right, check_exact=True)


@given(MEASUREMENTS, st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_change_a_bit(
    rows: list[tuple[int, int, int, float]], chance: random.Random
) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)
    exactly_equal(keyed(rows), keyed(shuffled))


def last_samples_before(frame: pl.DataFrame, start_us: int) -> list[tuple[int, int, float]]:
    """What a caller reads from stored windows: the last one of each series before a time."""
    last = frame.filter(pl.col("bucket_start_us") < start_us).sort("bucket_start_us").group_by("series_id").last()
    return last.select("series_id", pl.col("last_time_us") - NOON_US, "last_val").rows()


@given(
    MEASUREMENTS,
    st.lists(st.booleans(), min_size=15, max_size=15),
    st.sampled_from([0, SECOND // 4, 45 * SECOND, GAP_US, 500 * SECOND]),
)
def test_windows_computed_in_any_parts_have_the_bits_of_all_computed_at_once(
    rows: list[tuple[int, int, int, float]], computed: list[bool], gap_us: int
) -> None:
    whole = keyed(rows, gap_us=gap_us)
    minute = (pl.col("bucket_start_us") - NOON_US) // (60 * SECOND)
    chosen = [at for at, wanted in enumerate(computed) if wanted]
    some = [row for row in rows if row[1] // (60 * SECOND) in chosen]
    begins = [at for at in chosen if at - 1 not in chosen]
    stored = whole.filter(~minute.is_in(chosen))
    earlier = [row for at in begins for row in last_samples_before(stored, NOON_US + at * 60 * SECOND)]
    expected = whole.filter(minute.is_in(chosen))
    if some:
        exactly_equal(keyed(some, gap_us=gap_us, earlier=earlier), expected)
    else:
        assert expected.is_empty()


def test_many_measurements_a_window_change_no_bit_either() -> None:
    rng = np.random.default_rng(11)
    n = 60_000
    series, time = rng.integers(1, 6, n).astype(np.int32), NOON_US + rng.integers(0, 600 * SECOND, n)
    key, value = np.arange(n), rng.lognormal(0, 10, n)
    gap_us = rng.integers(1, 40_000, 6)[series]
    none = EarlierSamples.none()
    whole = windows.base_windows(series, time, key, value, 60, longest_gap_us=gap_us, earlier=none)
    for minute in range(10):
        start = NOON_US + minute * 60 * SECOND
        mine = rng.permutation(np.flatnonzero((time >= start) & (time < start + 60 * SECOND)))
        part = windows.base_windows(
            series[mine],
            time[mine],
            key[mine],
            value[mine],
            60,
            longest_gap_us=gap_us[mine],
            earlier=EarlierSamples.of_windows(whole.filter(pl.col("bucket_start_us") < start)),
        )
        exactly_equal(part, whole.filter(pl.col("bucket_start_us") == start))
        chunked = pl.concat([whole[i : i + 7] for i in range(0, len(whole), 7)], rechunk=False).sample(
            fraction=1.0, shuffle=True, seed=minute
        )
        exactly_equal(
            windows.merge_windows(chunked, 300, finest_s=60), windows.merge_windows(whole, 300, finest_s=60)
        )


@given(MEASUREMENTS)
def test_a_merged_window_depends_on_its_own_parts_alone(rows: list[tuple[int, int, int, float]]) -> None:
    small = keyed(rows)
    whole = windows.merge_windows(small, 300, finest_s=60)
    for (start,), part in small.group_by((pl.col("bucket_start_us") // (300 * SECOND)).alias("start")):
        exactly_equal(
            windows.merge_windows(part.reverse(), 300, finest_s=60),
            whole.filter(pl.col("bucket_start_us") == start * 300 * SECOND),
        )


@given(MEASUREMENTS)
def test_merged_windows_say_what_the_measurements_say(rows: list[tuple[int, int, int, float]]) -> None:
    exact = ["bucket_start_us", "series_id", "count_n", "min_val", "max_val", "first_val", "first_time_us"]
    exact += ["last_val", "last_time_us", "p50", "p95", "p99", "sketch"]
    merged, direct = windows.merge_windows(keyed(rows), 300, finest_s=60), keyed(rows, base_s=300)
    exactly_equal(merged.select(exact), direct.select(exact))
    for left, right in zip(merged.iter_rows(named=True), direct.iter_rows(named=True), strict=True):
        largest = max(abs(right["min_val"]), abs(right["max_val"]))
        assert left["avg_val"] == pytest.approx(right["avg_val"], rel=0, abs=1e-15 * largest + DENORMAL)
        off = reference.m2_tolerance(right["count_n"], right["m2"], largest)
        assert left["m2"] == pytest.approx(right["m2"], rel=0, abs=off)


SERIES = [SeriesKey("t1", "f1", f"m{number}", "s1", "temp") for number in range(3)]
MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 240),
        st.integers(0, 3),
        st.one_of(st.integers(-9, 9).map(float), st.floats(-1e6, 1e6).map(lambda value: value + 0.0)),
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=60)
@given(MESSAGES, st.sampled_from([60, 300]), st.sampled_from([0, 7, 60, 90, 1000]))
def test_windows_are_those_of_the_naive_reference(
    stream: list[tuple[int, int, int, float]], size_s: int, gap_s: int
) -> None:
    messages = [
        Message(("t", 1, 0, offset, 0), kafka, NOON_US + five * 5 * SECOND, SERIES[number], value)
        for offset, (number, five, kafka, value) in enumerate(stream)
    ]
    expected = reference.windows(messages, size_s, 60, gap_s * SECOND)
    kept = reference.measurements(messages)
    rows = [(SERIES.index(series), time - NOON_US, 0, value) for (series, time), value in kept.items()]
    frame = keyed(rows, gap_us=gap_s * SECOND)
    if size_s != 60:
        frame = windows.merge_windows(frame, size_s, finest_s=60)
    assert len(frame) == len(expected)
    for row, want in zip(frame.iter_rows(named=True), expected, strict=True):
        assert (row["bucket_start_us"], row["series_id"]) == (want.start_us, SERIES.index(want.series))
        for name in ("count_n", "min_val", "max_val", "first_val", "first_time_us", "last_val", "last_time_us"):
            assert row[name] == getattr(want, name), name
        assert (row["base_n"], row["coverage"]) == (want.base_n, want.coverage)
        largest = max(abs(want.min_val), abs(want.max_val))
        assert row["avg_val"] == pytest.approx(want.avg_val, rel=0, abs=1e-15 * largest + DENORMAL)
        off = reference.m2_tolerance(want.count_n, want.m2, largest)
        assert row["m2"] == pytest.approx(want.m2, rel=0, abs=off)
        for name in ("p50", "p95", "p99"):
            assert row[name] == getattr(want, name), name
        assert row["tw_covered_s"] == want.tw_covered_s
        # What is carried in may be larger than anything in the window: values are below 1e6 here.
        assert row["tw_integral"] == pytest.approx(want.tw_integral, rel=1e-12, abs=1e-15 * 1e6 * size_s)
