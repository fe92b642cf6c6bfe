"""Windows of samples with a quality: what bad ones are kept out of, what is counted, and how long values hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from analytics_pipeline.assets.windows import transform as windows
from analytics_pipeline.assets.windows.transform import EarlierSamples
from analytics_pipeline.domains.base import QUALITIES
from analytics_pipeline_tests import rated_reference, reference
from analytics_pipeline_tests.rated_reference import RatedMessage, RatedWindow
from analytics_pipeline_tests.unit.test_windows import DENORMAL
from analytics_pipeline_tests.window_rows import GAP_US, NOON_US, SECOND

LATENESS_US = 60 * SECOND
MARKS = {"?": "uncertain", "x": "bad", "<": "below", ">": "above"}
#: Series, microseconds after noon, value, quality, seconds from the event to Kafka.
Row = tuple[int, int, float, str, int]


def computed(
    rows: list[Row], base_s: int = 60, gap_us: int = GAP_US, earlier: EarlierSamples | None = None
) -> pl.DataFrame:
    """Base windows of some rows."""
    series, time, value, quality, delay = zip(*rows, strict=True)
    time_us = np.array(time, np.int64) + NOON_US
    return windows.base_windows(
        np.array(series, np.int64),
        time_us,
        np.zeros(len(rows), np.int64),
        np.array(value, np.float64),
        base_s,
        longest_gap_us=gap_us,
        earlier=earlier or EarlierSamples.none(),
        quality=np.array([QUALITIES.index(one) for one in quality], np.int16),
        kafka_time_us=time_us + np.array(delay, np.int64) * SECOND,
        allowed_lateness_us=LATENESS_US,
    )


def line(timeline: str, gap_s: int = 300) -> pl.DataFrame:
    """The windows of a timeline: one character per 10 s, digits are good samples; what follows one is its mark."""
    rows: list[Row] = [
        (1, at * 10 * SECOND, math.nan if mark == "x" else float(mark), MARKS.get(mark, "good"), 0)
        for at, mark in enumerate(timeline)
        if mark != "."
    ]
    return computed(rows, gap_us=gap_s * SECOND)


def weighted(timeline: str, gap_s: int = 300) -> list[tuple[float, float]]:
    return line(timeline, gap_s).select("tw_integral", "tw_covered_s").rows()


@pytest.mark.parametrize(
    ("timeline", "expected"),
    [
        # One character is 10 s, six are a window; x is a bad sample. What holds where is worked out by hand.
        ("5.x...", [(100, 20)]),  # a bad sample ends the hold
        ("5.x.7.", [(100 + 140, 40)]),  # until the next good one
        ("x..7..", [(210, 30)]),
        ("5....x" + "...7..", [(250, 50), (210, 30)]),  # nothing is carried past it
        ("5.x.7." + "...1..", [(240, 40), (210 + 30, 60)]),  # but what came after it is
        ("5....." + "..x...", [(300, 60), (100, 20)]),  # a window of bad samples alone is covered up to the first
        ("5....." + "..x..." + "...1..", [(300, 60), (100, 20), (30, 30)]),  # and carries nothing on
        ("5....." + "x....." + "...1..", [(300, 60), (0, 0), (30, 30)]),
        ("5....." + "......" + "..x..." + "1.....", [(300, 60), (100, 20), (60, 60)]),
        ("x....." + "x.x...", [(0, 0), (0, 0)]),
    ],
)
def test_nothing_is_covered_from_a_bad_sample_to_the_next_good_one(
    timeline: str, expected: list[tuple[float, float]]
) -> None:
    assert weighted(timeline) == expected


def test_a_window_with_only_bad_samples_has_a_row_without_figures() -> None:
    row = line("..x..x").row(0, named=True)
    assert (row["count_n"], row["bad_n"], row["base_n"], row["coverage"], row["m2"]) == (0, 2, 0, 0.0, 0.0)
    assert (row["first_time_us"], row["last_time_us"], row["ends_bad"], row["sketch"]) == (NOON_US, NOON_US, True, b"")
    figures = ("avg_val", "min_val", "max_val", "first_val", "last_val", "p50", "p95", "p99")
    assert all(math.isnan(row[name]) for name in figures)


def test_a_hold_that_is_known_to_have_ended_is_not_carried_in_from_stored_windows() -> None:
    before = line("5....x")
    later: list[Row] = [(1, 90 * SECOND, 1.0, "good", 0)]
    for stored in (before, line("5....." + "x.....").filter(pl.col("bucket_start_us") > NOON_US)):
        frame = computed(later, earlier=EarlierSamples.of_windows(stored))
        assert frame.select("tw_integral", "tw_covered_s").rows() == [(30.0, 30.0)]
    held = computed(later, earlier=EarlierSamples.of_windows(line("x...5.")))
    assert held.select("tw_integral", "tw_covered_s").rows() == [(5.0 * 30 + 30.0, 60.0)]


@pytest.mark.parametrize(
    ("second", "delay_s", "late"),
    [
        (0, 119, 0),  # Kafka has it one second before its minute and the allowed minute are over
        (0, 120, 1),
        (59, 60, 0),
        (59, 61, 1),
        (60, 119, 0),
        (59, -3600, 0),
    ],
)
def test_a_sample_is_late_from_the_end_of_its_base_window_and_the_allowed_lateness(
    second: int, delay_s: int, late: int
) -> None:
    frame = computed([(1, second * SECOND, 1.0, "good", delay_s), (2, second * SECOND, 1.0, "bad", delay_s)])
    assert frame["late_n"].to_list() == [late, late]
    assert windows.merge_windows(frame, 3600, finest_s=60)["late_n"].to_list() == [late, late]


VALUES = st.one_of(st.integers(-5, 5).map(float), st.floats(-1e6, 1e6).map(lambda value: value + 0.0))
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(0, 15 * 60 // 5).map(lambda fives: fives * 5 * SECOND),
        VALUES,
        st.sampled_from([*QUALITIES, "bad", "bad"]),
        st.integers(0, 240),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[:2],
)
GAPS = st.sampled_from([0, 7 * SECOND, GAP_US, 400 * SECOND])


def without_value(rows: list[Row]) -> list[Row]:
    """Every other bad sample has no value."""
    return [(*row[:2], math.nan, *row[3:]) if row[3] == "bad" and row[1] // (5 * SECOND) % 2 else row for row in rows]


@settings(max_examples=150)
@given(ROWS, st.sampled_from([60, 300, 3600]), GAPS)
def test_windows_are_those_of_the_naive_reference(rows: list[Row], size_s: int, gap_us: int) -> None:
    frame = computed(rows, gap_us=gap_us)
    for larger in (300, 3600):
        if larger <= size_s:
            frame = windows.merge_windows(frame, larger, finest_s=60)
    messages = [
        RatedMessage(("t", 1, 0, at, 0), NOON_US + time + delay * SECOND, NOON_US + time, series, value, quality)
        for at, (series, time, value, quality, delay) in enumerate(rows)
    ]
    expected = rated_reference.windows(messages, size_s, 60, gap_us, LATENESS_US)
    got = {(row["bucket_start_us"], row["series_id"]): row for row in frame.iter_rows(named=True)}
    assert list(got) == sorted(expected)
    for key, row in got.items():
        assert_row(row, expected[key], size_s)


def assert_row(row: dict[str, Any], want: RatedWindow, size_s: int) -> None:
    exact = {name: value for name, value in vars(want).items() if name not in ("avg_val", "m2", "tw_integral")}
    got = {name: None if isinstance(row[name], float) and math.isnan(row[name]) else row[name] for name in exact}
    assert got == exact
    # What is carried in may be larger than anything in the window: values are below 1e6 here.
    assert row["tw_integral"] == pytest.approx(want.tw_integral, rel=1e-12, abs=1e-15 * 1e6 * size_s)
    if want.avg_val is None or want.min_val is None or want.max_val is None:
        assert math.isnan(row["avg_val"])
        assert row["m2"] == 0
        return
    largest = max(abs(want.min_val), abs(want.max_val))
    assert row["avg_val"] == pytest.approx(want.avg_val, rel=0, abs=1e-15 * largest + DENORMAL)
    off = reference.m2_tolerance(want.count_n, want.m2, largest)
    assert row["m2"] == pytest.approx(want.m2, rel=0, abs=off)


@settings(max_examples=150)
@given(ROWS, st.lists(st.booleans(), min_size=16, max_size=16), GAPS)
def test_windows_computed_in_any_parts_have_the_bits_of_all_computed_at_once(
    rows: list[Row], chosen: list[bool], gap_us: int
) -> None:
    rows = without_value(rows)
    whole = computed(rows, gap_us=gap_us)
    minute = (pl.col("bucket_start_us") - NOON_US) // (60 * SECOND)
    mine = [at for at, wanted in enumerate(chosen) if wanted]
    some = [row for row in rows if row[1] // (60 * SECOND) in mine]
    if not some:
        return
    stored = whole.filter(~minute.is_in(mine)).sample(fraction=1.0, shuffle=True, seed=7)
    part = computed(some, gap_us=gap_us, earlier=EarlierSamples.of_windows(stored))
    assert_frame_equal(part, whole.filter(minute.is_in(mine)), check_exact=True)


@given(ROWS)
def test_a_merged_window_depends_on_its_own_parts_alone(rows: list[Row]) -> None:
    small = computed(without_value(rows))
    whole = windows.merge_windows(small, 300, finest_s=60)
    for (start,), part in small.group_by((pl.col("bucket_start_us") // (300 * SECOND)).alias("start")):
        alone = windows.merge_windows(part.reverse(), 300, finest_s=60)
        expected = whole.filter(pl.col("bucket_start_us") == start * 300 * SECOND)
        assert_frame_equal(alone, expected, check_exact=True)


@given(ROWS)
def test_what_bad_samples_say_changes_no_bit_of_a_figure(rows: list[Row]) -> None:
    other = [(*row[:2], math.nan if row[3] == "bad" else row[2], *row[3:]) for row in rows]
    assert_frame_equal(computed(rows), computed(other), check_exact=True)


@given(ROWS, ROWS, GAPS)
def test_recomputing_what_changed_and_what_is_reached_gives_a_full_recompute(
    before: list[Row], late: list[Row], gap_us: int
) -> None:
    everything = list({row[:2]: row for row in (*before, *late)}.values())
    old, new = (computed(without_value(rows), gap_us=gap_us) for rows in (before, everything))
    key = ["series_id", "bucket_start_us"]
    changed = sorted({(series, NOON_US + time // (60 * SECOND) * 60 * SECOND) for series, time, *_ in late})
    known = new.select(key).rows()
    mask = windows.carried_into(
        *(np.array(column) for column in zip(*changed, strict=True)),
        *(np.array(column) for column in zip(*known, strict=True)),
        base_s=60,
        longest_gap_us=gap_us,
    )
    stale = {*changed, *(row for row, hit in zip(known, mask, strict=True) if hit)}
    kept = [row for row in old.iter_rows() if (row[2], row[0]) not in stale]
    fresh = [row for row in new.iter_rows() if (row[2], row[0]) in stale]
    assert sorted(map(repr, kept + fresh)) == sorted(map(repr, new.rows()))
