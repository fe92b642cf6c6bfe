"""The time-weighted mean: what holds how long, and which windows a changed last sample reaches."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.assets.windows import transform as windows
from analytics_pipeline.assets.windows.transform import EarlierSamples
from analytics_pipeline.formulas import moments, rank_sketch
from analytics_pipeline.formulas.moments import LARGEST_VALUE
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.window_rows import GAP_US, MEASUREMENTS, NOON_US, SECOND, keyed


def weighted(
    timeline: str, gap: int, earlier: list[tuple[int, int, float]] | None = None
) -> list[tuple[float, float]]:
    """(integral, covered) of the windows of a timeline: one character per 10 s, digits are samples."""
    rows = [(1, at * 10 * SECOND, 0, float(mark)) for at, mark in enumerate(timeline) if mark.isdigit()]
    frame = keyed(rows, gap_us=gap * SECOND, earlier=earlier)
    return list(zip(frame["tw_integral"], frame["tw_covered_s"], strict=True))


@pytest.mark.parametrize(
    ("timeline", "gap", "expected"),
    [
        # One character is 10 s, six are a window. What holds where is worked out by hand.
        ("5.....", 60, [(300, 60)]),  # a value holds to the window's end
        ("5.....", 30, [(150, 30)]),  # at most for the gap
        ("...5..", 60, [(150, 30)]),  # nothing is known before the first sample
        ("1..3..", 60, [(30 + 90, 60)]),  # each holds until the next
        ("1..3..", 20, [(20 + 60, 40)]),  # and no longer than the gap
        ("1....." + "...3..", 120, [(60, 60), (30 + 90, 60)]),  # carried into the next window
        ("1....." + "...3..", 70, [(60, 60), (10 + 90, 40)]),  # as far as the gap reaches
        ("1....." + "...3..", 60, [(60, 60), (90, 30)]),  # a gap that ends with the window carries nothing
        ("1....." + "......" + "..3...", 600, [(60, 60), (20 + 120, 60)]),  # over an empty window, without a row
        ("1....." + "3....." + "..2...", 600, [(60, 60), (180, 60), (60 + 80, 60)]),  # the last earlier one
        ("1....." + "3.....", 600, [(60, 60), (180, 60)]),  # a sample on the start leaves nothing to carry in
    ],
)
def test_each_value_holds_until_the_next_at_most_for_the_gap(
    timeline: str, gap: int, expected: list[tuple[float, float]]
) -> None:
    assert weighted(timeline, gap) == expected


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        #   -40 s    -10 s   12:00       :30
        #     4        2      |           5         gap: 30 s
        ([(1, -10, 2.0)], (20 * 2 + 30 * 5, 50)),
        ([(1, -40, 4.0), (1, -10, 2.0)], (20 * 2 + 30 * 5, 50)),
        ([(1, -40, 4.0)], (30 * 5, 30)),
        ([(1, -30, 4.0)], (30 * 5, 30)),
        ([(2, -10, 2.0)], (30 * 5, 30)),
        ([(1, 40, 9.0), (1, 0, 9.0)], (30 * 5, 30)),
    ],
)
def test_of_the_earlier_samples_the_last_before_the_window_is_carried_in(
    earlier: list[tuple[int, int, float]], expected: tuple[float, float]
) -> None:
    for order in (earlier, earlier[::-1]):
        known = [(series, second * SECOND, value) for series, second, value in order]
        assert weighted("...5..", 30, known) == [expected]


def test_of_samples_at_one_time_the_last_by_sample_key_holds() -> None:
    row = keyed([(1, 0, 2, 7.0), (1, 0, 1, 8.0), (1, 30 * SECOND, 0, 1.0)]).row(0, named=True)
    assert (row["tw_integral"], row["tw_covered_s"]) == (30 * 7.0 + 30 * 1.0, 60.0)


def test_series_have_gaps_of_their_own() -> None:
    one, zero = np.array([1, 2]), np.zeros(2, np.int64)
    gap_us = np.array([10, 20]) * SECOND
    frame = windows.base_windows(
        one, zero + NOON_US, zero, np.ones(2), 60, longest_gap_us=gap_us, earlier=EarlierSamples.none()
    )
    assert frame["tw_covered_s"].to_list() == [10.0, 20.0]


def test_larger_windows_sum_integral_and_covered_time_of_those_with_a_sample() -> None:
    #         12:00    :01      :02      :03
    frame = keyed([(1, 0, 0, 2.0), (1, 150 * SECOND, 0, 4.0)], gap_us=600 * SECOND)
    five = windows.merge_windows(frame, 300, finest_s=60)
    assert five.select("tw_integral", "tw_covered_s").rows() == [(60 * 2.0 + 30 * 2.0 + 30 * 4.0, 120.0)]


@given(st.lists(st.integers(0, 600 * SECOND - 1), min_size=1, max_size=40, unique=True))
def test_covered_time_is_exact_to_the_microsecond_in_every_size(times: list[int]) -> None:
    frame = keyed([(1, time, 0, 1.0) for time in times], gap_us=7_000_001)
    day = windows.merge_windows(windows.merge_windows(frame, 300, finest_s=60), 3600, finest_s=60)
    history = [(time, 1.0) for time in sorted(times)]
    starts = sorted({time // (60 * SECOND) * 60 * SECOND for time in times})
    pieces = [us for at in starts for _, us in reference.held(at, at + 60 * SECOND, history, 7_000_001)]
    assert day["tw_covered_s"].to_list() == [sum(pieces) / SECOND]


def test_the_mean_is_unknown_where_nothing_is_covered() -> None:
    mean = windows.time_weighted_mean(np.array([6.0, 0.0]), np.array([3.0, 0.0]))
    np.testing.assert_array_equal(mean, [2.0, np.nan])


@pytest.mark.parametrize("value", [LARGEST_VALUE, -LARGEST_VALUE])
def test_figures_are_finite_up_to_the_largest_value(value: float) -> None:
    rows = [(1, second * SECOND, key, (-1) ** second * value) for second in range(600) for key in range(3)]
    frame = keyed(rows)
    for size in (300, 3600, 86_400):
        assert frame.select(pl.col(pl.Float64).is_finite().all()).row(0) == (True,) * 12
        sketches = rank_sketch.decode(frame["sketch"].to_list())
        assert np.isfinite(sketches.value).all()
        frame = windows.merge_windows(frame, size, finest_s=60)
    # With as many samples as a window may hold, M2 is n times the square.
    n = 10**8
    many = moments.Moments(np.array([n, n]) // 2, np.array([value, -value]), np.zeros(2))
    assert np.isfinite(moments.from_parts(many, np.array([0]), -np.abs([value]), np.abs([value])).m2).all()


# ---------------------------------------------------------------------- what a changed last sample reaches


def reached(changed: str, stored: str, gap: int) -> str:
    """Marks with ``!`` which windows are reached: one character per minute, ``x`` changed, ``w`` stored."""
    starts = {
        name: np.array([at for at, mark in enumerate(line) if mark == name], np.int64) * 60 * SECOND
        for name, line in (("x", changed), ("w", stored))
    }
    mask = windows.carried_into(
        np.ones(len(starts["x"]), np.int64),
        starts["x"],
        np.ones(len(starts["w"]), np.int64),
        starts["w"],
        base_s=60,
        longest_gap_us=gap * SECOND,
    )
    line = ["."] * len(stored)
    for start in starts["w"][mask]:
        line[start // (60 * SECOND)] = "!"
    return "".join(line)


@pytest.mark.parametrize(
    ("changed", "stored", "gap", "expected"),
    [
        ("x....", "wwwww", 60, ".!..."),  # only the next one
        ("x....", "wwwww", 600, ".!..."),  # however long the gap
        ("x....", ".wwww", 60, ".!..."),  # also if the changed one is gone
        ("x....", "w..ww", 121, "...!."),  # the next one that holds a sample
        ("x....", "w..ww", 120, "....."),  # within the gap
        ("x.x..", "wwwww", 60, ".!.!."),
        ("xx...", "wwwww", 60, ".!!.."),  # changed ones follow each other
        ("..x..", "ww...", 600, "....."),  # nothing earlier
        ("x....", "wwwww", 0, "....."),
        (".....", "wwwww", 60, "....."),
        ("x....", ".....", 60, "....."),
    ],
)
def test_a_changed_last_sample_reaches_the_next_window_within_the_gap(
    changed: str, stored: str, gap: int, expected: str
) -> None:
    assert reached(changed, stored, gap) == expected


def test_a_change_reaches_no_other_series_and_gaps_may_differ() -> None:
    mask = windows.carried_into(
        np.array([1, 2]),
        np.array([0, 0]),
        np.array([3, 2, 1]),
        np.array([60, 120, 120]) * SECOND,
        base_s=60,
        longest_gap_us=np.array([600, 600, 30]) * SECOND,
    )
    assert mask.tolist() == [False, True, False]


@given(MEASUREMENTS, MEASUREMENTS, st.sampled_from([SECOND, 30 * SECOND, GAP_US, 400 * SECOND]))
def test_recomputing_what_changed_and_what_is_reached_gives_a_full_recompute(
    before: list[tuple[int, int, int, float]], late: list[tuple[int, int, int, float]], gap_us: int
) -> None:
    everything = list({row[:3]: row for row in (*before, *late)}.values())
    old, new = keyed(before, gap_us=gap_us), keyed(everything, gap_us=gap_us)
    key = ["series_id", "bucket_start_us"]
    computed = sorted({(series, NOON_US + time // (60 * SECOND) * 60 * SECOND) for series, time, *_ in late})
    known = new.select(key).rows()
    mask = windows.carried_into(
        *(np.array(column) for column in zip(*computed, strict=True)),
        *(np.array(column) for column in zip(*known, strict=True)),
        base_s=60,
        longest_gap_us=gap_us,
    )
    stale = {*computed, *(row for row, hit in zip(known, mask, strict=True) if hit)}
    kept = [row for row in old.iter_rows() if (row[2], row[0]) not in stale]
    fresh = [row for row in new.iter_rows() if (row[2], row[0]) in stale]
    assert sorted(kept + fresh) == sorted(new.rows())
