"""Which limits hold when: half-open validity, open ends, series apart."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.formulas.limits import in_force

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
