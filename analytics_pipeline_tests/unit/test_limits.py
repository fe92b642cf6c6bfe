"""Which limits hold when: half-open validity, open ends, series apart."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.formulas.limits import NAMES, SPAN_SCHEMA, in_force, spans

SCHEMA = {
    "series_id": pl.Int32,
    "valid_from_us": pl.Int64,
    "valid_to_us": pl.Int64,
    "lsl": pl.Float64,
    "usl": pl.Float64,
}
Row = tuple[int, int | None, int | None, float | None, float | None]


def asked(rows: list[Row], questions: list[tuple[int, int]]) -> list[tuple[float | None, float | None]]:
    series, time = (np.array(column, np.int64) for column in zip(*questions, strict=True))
    limits = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return [
        tuple(None if np.isnan(it) else float(it) for it in pair)  # type: ignore[misc]
        for pair in zip(*in_force(series, time, limits), strict=True)
    ]


@pytest.mark.parametrize(
    ("time", "usl"),
    [
        #        10         20        30
        #   ─────┼──────────┼─────────┼─────
        #        [   1.0   )[  2.0   )
        (9, None),
        (10, 1.0),
        (19, 1.0),
        (20, 2.0),
        (29, 2.0),
        (30, None),
    ],
)
def test_limits_hold_from_their_start_until_before_their_end(time: int, usl: float | None) -> None:
    rows: list[Row] = [(1, 20, 30, None, 2.0), (1, 10, 20, None, 1.0)]
    assert asked(rows, [(1, time)]) == [(None, usl)]


def test_open_ends_hold_for_ever() -> None:
    rows: list[Row] = [(1, None, 0, 0.5, 1.0), (1, 0, None, None, 2.0)]
    assert asked(rows, [(1, -(10**15)), (1, 10**15)]) == [(0.5, 1.0), (None, 2.0)]


def test_limits_of_one_series_say_nothing_of_another() -> None:
    rows: list[Row] = [(1, 0, None, 0.0, 1.0), (3, 5, None, 0.0, 3.0)]
    assert asked(rows, [(2, 9), (3, 4), (3, 5), (0, 9)]) == [(None, None), (None, None), (0.0, 3.0), (None, None)]


def test_a_limit_that_is_not_finite_is_none() -> None:
    rows: list[Row] = [
        (1, None, None, -math.inf, 5.0),
        (2, None, None, 1.0, math.inf),
        (3, None, None, math.nan, 5.0),
    ]
    assert asked(rows, [(1, 0), (2, 0), (3, 0)]) == [(None, 5.0), (1.0, None), (None, 5.0)]


def test_without_limits_there_is_none() -> None:
    assert asked([], [(1, 1)]) == [(None, None)]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 12)), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_the_answer_is_that_of_looking_at_each_row(
    begins: list[tuple[int, int]], questions: list[tuple[int, int]], length: int
) -> None:
    rows: list[Row] = []
    for series, start in begins:
        later = [at for other, at in begins if other == series and at > start]
        rows.append((series, start, min([start + length, *later]), None, float(start)))
    expected = []
    for series, time in questions:
        held = [usl for of, start, end, _, usl in rows if of == series and start <= time < end]  # type: ignore[operator]
        expected.append((None, held[0] if held else None))
    assert asked(rows, questions) == expected


# ---------------------------------------------------------------------- rows that match many series

SERIES = pl.DataFrame(
    [
        (1, "temp", "t", "f", "m1", "s1"),
        (2, "temp", "t", "f", "m1", "s2"),
        (3, "temp", "t", "f", None, None),
        (4, "flow", "t", "f", "m1", "s1"),
    ],
    schema={"series_id": pl.Int32, "metric": pl.String, **dict.fromkeys(NAMES, pl.String)},
    orient="row",
)
#: (spec_id, metric, tenant, factory, machine, sensor, valid_from, usl)
Limit = tuple[int, str, str | None, str | None, str | None, str | None, int | None, float]


def spans_of(*rows: Limit) -> list[tuple[int, int | None, int | None, float]]:
    """(series, from, to, usl) of the spans that rows of limits give."""
    schema = {"spec_id": pl.Int64, "metric": pl.String, **dict.fromkeys(NAMES, pl.String)}
    limits_ = pl.DataFrame(
        list(rows), schema=schema | {"valid_from_us": pl.Int64, "usl": pl.Float64}, orient="row"
    )
    found = spans(SERIES, limits_.with_columns(lsl=pl.lit(None, pl.Float64)))
    assert found.schema == pl.Schema(SPAN_SCHEMA)
    return found.select("series_id", "valid_from_us", "valid_to_us", "usl").rows()


def test_a_limit_of_a_metric_holds_for_all_its_series() -> None:
    assert spans_of((1, "temp", None, None, None, None, None, 9.0)) == [
        (series, None, None, 9.0) for series in (1, 2, 3)
    ]


def test_the_row_that_names_the_most_wins_as_soon_as_it_begins() -> None:
    #   time:      0        10       20
    #   metric     |--------|-- 2 ---|---- 4 -
    #   sensor              |-- 3 ------------
    rows: list[Limit] = [
        (1, "flow", None, None, None, None, 0, 2.0),
        (2, "flow", "t", None, None, "s1", 10, 3.0),
        (3, "flow", None, None, None, None, 20, 4.0),
    ]
    for order in (rows, rows[::-1]):
        assert spans_of(*order) == [(4, 0, 10, 2.0), (4, 10, None, 3.0)]


def test_a_later_row_that_names_as_much_replaces_the_earlier() -> None:
    rows: list[Limit] = [
        (1, "flow", None, None, "m1", None, None, 1.0),
        (2, "flow", "t", None, None, None, 5, 2.0),
    ]
    assert spans_of(*rows) == [(4, None, 5, 1.0), (4, 5, None, 2.0)]


def test_of_rows_alike_in_names_and_time_the_last_entered_holds() -> None:
    rows: list[Limit] = [(8, "flow", "t", None, None, None, 5, 8.0), (9, "flow", None, "f", None, None, 5, 9.0)]
    for order in (rows, rows[::-1]):
        assert spans_of(*order) == [(4, 5, None, 9.0)]


def test_a_name_that_a_series_lacks_is_never_matched() -> None:
    assert [row[0] for row in spans_of((1, "temp", None, None, None, "s1", None, 1.0))] == [1]
    assert spans_of((1, "level", None, None, None, None, None, 1.0)) == []
    assert spans_of() == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["temp", "flow"]),
            st.sampled_from([None, "t", "u"]),
            st.sampled_from([None, "f"]),
            st.sampled_from([None, "m1"]),
            st.sampled_from([None, "s1", "s2"]),
            st.sampled_from([None, 0, 5, 10]),
        ),
        max_size=12,
    )
)
def test_what_is_in_force_is_what_looking_at_each_row_says(targets: list[tuple[Any, ...]]) -> None:
    rows: list[Limit] = [(at, *target, float(at)) for at, target in enumerate(targets)]
    found = spans_of(*rows)
    for number, metric, *names in SERIES.rows():
        for time in (-1, 0, 4, 5, 9, 10, 99):
            begun = [
                (sum(wanted is not None for wanted in row[2:6]), -1 if row[6] is None else row[6], row[0])
                for row in rows
                if row[1] == metric
                and all(wanted in (None, name) for wanted, name in zip(row[2:6], names, strict=True))
                and (row[6] is None or row[6] <= time)
            ]
            held = [
                usl
                for series, start, end, usl in found
                if series == number and (start is None or start <= time) and (end is None or time < end)
            ]
            assert held == ([float(max(begun)[2])] if begun else [])


def test_ten_thousand_series_and_limits_take_well_under_a_second() -> None:
    n = 10_000
    name = [f"s{number}" for number in range(n)]
    nothing = pl.lit(None, pl.String)
    series = pl.DataFrame({"series_id": np.arange(n), "metric": "temp", "sensor_id": name}).with_columns(
        tenant_id=nothing, factory_id=nothing, machine_id=nothing
    )
    rows = series.select("metric", *NAMES).with_columns(
        spec_id=pl.Series(np.arange(n)), valid_from_us=pl.Series(np.arange(n)), lsl=pl.lit(0.0), usl=pl.lit(1.0)
    )
    asked_of, time = np.tile(np.arange(n), 60), np.repeat(np.arange(60), n) * 200
    begin = perf_counter()
    lsl, usl = in_force(asked_of, time, spans(series, rows))
    # 0.1 s on two cores; a loop over series and limits takes minutes.
    assert perf_counter() - begin < 2
    np.testing.assert_array_equal(np.isnan(usl), time < asked_of)
    np.testing.assert_array_equal(np.isnan(lsl), np.isnan(usl))
