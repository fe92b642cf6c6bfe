"""Anomalies: the same result however much of the hour is evaluated, and that of the naive reference."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from analytics_pipeline.assets.anomalies import transform as anomalies
from analytics_pipeline.assets.anomalies.transform import ANOMALY_SCHEMA, detect
from analytics_pipeline.assets.windows.transform import EarlierSamples, base_windows
from analytics_pipeline.detectors import Detector, RobustZScore, SpecLimits
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.reference import Limit, Message, SeriesKey

HOUR_US = 3600 * 1_000_000
MINUTE_US = 60 * 1_000_000
NOON_US = 494_820 * HOUR_US
HISTORY = ["bucket_start_us", "series_id", "avg_val"]
BOTH = (RobustZScore(), SpecLimits())
LIMIT_SCHEMA = {
    "series_id": pl.Int64,
    "valid_from_us": pl.Int64,
    "valid_to_us": pl.Int64,
    "lsl": pl.Float64,
    "usl": pl.Float64,
}
NO_LIMITS = pl.DataFrame(schema=LIMIT_SCHEMA)


def rows(averages: list[tuple[int, int, float]], half: float = 0.5) -> pl.DataFrame:
    """Windows of (series, minutes after noon, average), sorted by series and time."""
    return pl.DataFrame(
        [
            (NOON_US + minute * MINUTE_US, 60, series, 20, mean, mean - half, mean + half)
            for series, minute, mean in averages
        ],
        schema={
            "bucket_start_us": pl.Int64,
            "window_s": pl.Int32,
            "series_id": pl.Int64,
            "count_n": pl.Int64,
            "avg_val": pl.Float64,
            "min_val": pl.Float64,
            "max_val": pl.Float64,
        },
        orient="row",
    ).sort("series_id", "bucket_start_us")


def detected(
    targets: pl.DataFrame, history: pl.DataFrame, known: pl.DataFrame, detectors: tuple[Detector, ...]
) -> pl.DataFrame:
    """Anomalies among the targets, held against the history too."""
    parts = [targets.with_columns(is_target=True), history.with_columns(is_target=False)]
    return detect(pl.concat(parts, how="diagonal"), known, detectors)


def usual(series: int, minutes: range) -> list[tuple[int, int, float]]:
    return [(series, minute, 20.0 + minute % 3) for minute in minutes]


def limits(*known: tuple[int, int | None, int | None, float | None, float | None]) -> pl.DataFrame:
    return pl.DataFrame(list(known), schema=LIMIT_SCHEMA, orient="row")


def test_a_window_is_held_against_the_windows_stored_before_it() -> None:
    history = rows(usual(1, range(-20, 0))).select(HISTORY)
    found = detected(rows([(1, 0, 21.0), (1, 1, 50.0)]), history, NO_LIMITS, BOTH)
    row = found.row(0, named=True)
    assert len(found) == 1
    assert found.schema == pl.Schema(ANOMALY_SCHEMA)
    assert (row["bucket_start_us"], row["window_s"], row["series_id"]) == (NOON_US + MINUTE_US, 60, 1)
    assert (row["detector"], row["severity"], row["value"]) == ("robust_zscore", "critical", 50.0)
    assert row["score"] == pytest.approx(0.6745 * 29)
    assert json.loads(row["detail"]) == {
        "centre": 21.0,
        "scale": pytest.approx(1 / 0.6745),
        "threshold": 3.5,
        "n": 21,
    }


def test_a_window_never_counts_itself_or_later_ones() -> None:
    # Eleven earlier windows are one too few, however many follow.
    frame = rows([*usual(1, range(11)), (1, 11, 999.0), *usual(1, range(12, 60))])
    assert detected(frame, NO_HISTORY, NO_LIMITS, BOTH).is_empty()
    frame = rows([*usual(1, range(12)), (1, 12, 999.0), *usual(1, range(13, 60))])
    assert detected(frame, NO_HISTORY, NO_LIMITS, BOTH)["bucket_start_us"].to_list() == [NOON_US + 12 * MINUTE_US]


NO_HISTORY = rows([]).select(HISTORY)


@pytest.mark.parametrize(("oldest_minute", "alarms"), [(-1440, 1), (-1441, 0)])
def test_windows_older_than_the_look_back_do_not_count(oldest_minute: int, alarms: int) -> None:
    #  12:00 the day before                             12:00
    #  x  . . . . . . . . . . . . . . . xxxxxxxxxxx (11)  ?
    history = rows([(1, oldest_minute, 20.0), *usual(1, range(-11, 0))]).select(HISTORY)
    assert len(detected(rows([(1, 0, 99.0)]), history, NO_LIMITS, BOTH)) == alarms


def test_a_gap_in_the_windows_is_no_anomaly() -> None:
    history = rows([*usual(1, range(-300, -280)), *usual(1, range(-3, 0))]).select(HISTORY)
    assert detected(rows([(1, 20, 21.0)]), history, NO_LIMITS, BOTH).is_empty()


def test_series_do_not_lend_each_other_a_baseline() -> None:
    history = rows([*usual(1, range(-60, 0)), *usual(3, range(-60, 0))]).select(HISTORY)
    found = detected(rows([(1, 0, 99.0), (2, 0, 99.0), (3, 0, 21.0)]), history, NO_LIMITS, BOTH)
    assert found["series_id"].to_list() == [1]


def test_limits_are_those_in_force_when_the_window_begins() -> None:
    known = limits((1, None, NOON_US + MINUTE_US, None, 30.0), (1, NOON_US + MINUTE_US, None, None, 10.0))
    found = detected(rows([(1, 0, 20.0), (1, 1, 20.0), (2, 1, 20.0)]), NO_HISTORY, known, BOTH)
    assert found["bucket_start_us"].to_list() == [NOON_US + MINUTE_US]
    assert json.loads(found["detail"][0])["threshold"] == 10.0


def test_both_detectors_may_flag_one_window_each_with_its_own_lasting_id() -> None:
    history = rows(usual(1, range(-20, 0))).select(HISTORY)
    frame, known = rows([(1, 0, 99.0)]), limits((1, None, None, 0.0, 30.0))
    found = detected(frame, history, known, BOTH)
    assert found["detector"].to_list() == ["robust_zscore", "spec_limits"]
    assert {uuid.UUID(it).version for it in found["anomaly_id"]} == {5}
    assert found["anomaly_id"].n_unique() == 2
    assert_frame_equal(found, detected(frame, history, known, BOTH[::-1]))
    # Ids are stored: another way of making them would orphan what people have linked to.
    assert found["anomaly_id"][0] == "d467551f-1fd7-5ba4-845d-073a49f92940"


def test_a_window_read_twice_is_refused_by_name() -> None:
    frame = rows([(4, 0, 1.0)])
    with pytest.raises(ValueError, match=f"series 4 has two windows that begin at {NOON_US} us"):
        detected(frame, frame.select(HISTORY), NO_LIMITS, BOTH)


def test_nothing_to_evaluate_gives_no_anomaly() -> None:
    empty = detected(rows([]), NO_HISTORY, NO_LIMITS, BOTH)
    assert empty.schema == pl.Schema(ANOMALY_SCHEMA)
    assert detected(rows([(1, 0, 1.0)]), NO_HISTORY, NO_LIMITS, ()).schema == empty.schema
    assert detected(rows([(1, 0, 1.0)]), NO_HISTORY, NO_LIMITS, BOTH).schema == empty.schema


def test_spans_far_apart_are_evaluated_at_once_each_with_its_own_history() -> None:
    #  history   12:00             history  08:00 two days later, beyond the look-back
    #  xxxxxxxxxx T T      …      xxxxxxxxxx T T T
    morning = 44 * 60
    history = rows([*usual(1, range(-20, 0)), *usual(1, range(morning - 20, morning))]).select(HISTORY)
    targets = rows([(1, 0, 99.0), (1, 1, 21.0), *usual(1, range(morning, morning + 2)), (1, morning + 2, 99.0)])
    together = detected(targets, history, NO_LIMITS, BOTH)
    border = NOON_US + morning * MINUTE_US - HOUR_US
    start = pl.col("bucket_start_us")
    alone = [
        detected(targets.filter(inside), history.filter(inside), NO_LIMITS, BOTH)
        for inside in (start < border, start >= border)
    ]
    assert [len(part) for part in alone] == [1, 1]
    assert_frame_equal(together, pl.concat(alone), check_exact=True)


def test_evaluating_in_chunks_changes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    frame = rows([(series, minute, float(rng.normal(20, 3))) for series in range(5) for minute in range(60)])
    history = rows([(series, minute, 20.0 + minute % 3) for series in range(0, 5, 2) for minute in range(-90, 0)])
    known = limits((1, None, None, 15.0, 25.0))
    whole = detected(frame, history.select(HISTORY), known, BOTH)
    assert len(whole) > 20
    for rows_at_once in (1, 7, 64):
        monkeypatch.setattr(anomalies, "CHUNK_BYTES", 8 * 120 * rows_at_once)
        assert_frame_equal(detected(frame, history.select(HISTORY), known, BOTH), whole, check_exact=True)


def test_an_hour_of_many_series_is_evaluated_in_bounded_memory() -> None:
    #: 2,000 series of a full hour with a full baseline: a matrix of all baselines were 115 MB, a sort 115 more.
    series, minute = (axis.ravel() for axis in np.meshgrid(np.arange(2000), np.arange(-120, 60), indexing="ij"))
    average = np.random.default_rng(3).normal(size=len(series))
    frame = pl.DataFrame(
        {
            "bucket_start_us": NOON_US + minute * MINUTE_US,
            "window_s": np.full(len(series), 60, np.int32),
            "series_id": series.astype(np.int64),
            "count_n": np.full(len(series), 20),
            "avg_val": average,
            "min_val": average - 1,
            "max_val": average + 1,
            "is_target": minute >= 0,
        }
    )
    tracemalloc.start()
    try:
        found = detect(frame, NO_LIMITS, BOTH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 20 < len(found) < 1000
    columns = 5 * 8 * len(series)  # the line of windows, its order and copies on the way
    assert peak < 50_000_000 + columns, f"{peak:,} bytes"


AVERAGES = st.one_of(st.integers(18, 22).map(float), st.floats(15, 25), st.sampled_from([-500.0, 80.0]))
DETECTORS = (
    RobustZScore(baseline_windows=6, min_windows=3, look_back=timedelta(minutes=9)),
    RobustZScore(),
    SpecLimits(),
)


@given(
    st.dictionaries(st.tuples(st.integers(1, 3), st.integers(-60, 59)), AVERAGES, min_size=1, max_size=150),
    st.integers(0, 59),
    st.sampled_from(DETECTORS),
    st.randoms(use_true_random=False),
)
def test_the_tail_of_an_hour_evaluated_alone_has_the_rows_of_the_whole_hour(
    averages: dict[tuple[int, int], float], tail: int, detector: RobustZScore | SpecLimits, chance: object
) -> None:
    everything = rows([(series, minute, mean) for (series, minute), mean in averages.items()])
    known = limits((1, None, NOON_US + 30 * MINUTE_US, 17.0, 23.0), (2, NOON_US, None, None, 21.0))
    start = pl.col("bucket_start_us")

    def evaluated_from(minute: int) -> pl.DataFrame:
        border = NOON_US + minute * MINUTE_US
        before = everything.filter(start < border).select(HISTORY)
        # As the reader does: the last windows of each series, as many as are asked for.
        last = before.group_by("series_id").tail(detector.baseline_windows)
        history = last.select(HISTORY) if detector.baseline_windows else NO_HISTORY
        history = history.sample(fraction=1.0, shuffle=True, seed=chance.randrange(2**32))  # type: ignore[attr-defined]
        return detected(everything.filter(start >= border), history, known, (detector,))

    tail_us = NOON_US + tail * MINUTE_US
    assert_frame_equal(evaluated_from(tail), evaluated_from(0).filter(start >= tail_us), check_exact=True)


SERIES = [SeriesKey("t1", "f1", f"m{number}", "s1", "temp") for number in range(2)]
STREAM = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 40 * 4),
        st.integers(0, 3),
        st.one_of(st.integers(18, 22).map(float), st.sampled_from([20.0, 90.0, -7.5])),
    ),
    min_size=30,
    max_size=160,
)


@settings(max_examples=50)
@given(STREAM)
def test_anomalies_are_those_of_the_naive_reference(stream: list[tuple[int, int, int, float]]) -> None:
    messages = [
        Message(("t", 1, 0, offset, 0), kafka, NOON_US + quarter * 15_000_000, SERIES[number], value)
        for offset, (number, quarter, kafka, value) in enumerate(stream)
    ]
    border = NOON_US + 20 * MINUTE_US
    known = {SERIES[0]: [Limit(None, border, 10.0, 25.0), Limit(border, None, None, 21.0)]}
    kept = [(SERIES.index(of), time, value) for (of, time), value in reference.measurements(messages).items()]
    series, time, value = (np.array(column) for column in zip(*kept, strict=True))
    frame = base_windows(
        series.astype(np.int64),
        time,
        np.zeros_like(time),
        value.astype(np.float64),
        60,
        longest_gap_us=0,
        earlier=EarlierSamples.none(),
    )
    table = limits((0, None, border, 10.0, 25.0), (0, border, None, None, 21.0))
    found = detected(frame, NO_HISTORY, table, BOTH)
    expected = reference.anomalies(messages, 60, known)
    assert len(found) == len(expected)
    for row, want in zip(found.iter_rows(named=True), expected, strict=True):
        assert (row["bucket_start_us"], row["window_s"]) == (want.start_us, want.size_s)
        assert (row["series_id"], row["detector"]) == (SERIES.index(want.series), want.detector)
        assert row["severity"] == want.severity
        assert row["value"] == pytest.approx(want.value, rel=1e-12)
        assert row["score"] == pytest.approx(want.score, rel=1e-9)
        detail = json.loads(row["detail"])
        assert detail.keys() == want.detail.keys()
        for name, figure in want.detail.items():
            assert detail[name] == (pytest.approx(figure, rel=1e-9) if isinstance(figure, float) else figure), name
