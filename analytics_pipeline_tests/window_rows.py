"""Windows from a few written-out measurements, for tests."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
from hypothesis import strategies as st

from analytics_pipeline.assets.windows import transform as windows
from analytics_pipeline.assets.windows.transform import EarlierSamples
from analytics_pipeline.records import to_us

NOON_US = to_us(datetime.fromisoformat("2026-11-21T12:00:00+00:00"))
SECOND = 1_000_000


def base(rows: list[tuple[int, float, float]], base_s: int = 60) -> pl.DataFrame:
    """Base windows of (series, seconds after noon, value)."""
    return keyed([(series, round(second * SECOND), 0, value) for series, second, value in rows], base_s)


#: The longest gap of these tests; shorter than most pauses of their data, longer than some.
GAP_US = 90 * SECOND


def keyed(
    rows: list[tuple[int, int, int, float]],
    base_s: int = 60,
    gap_us: int = GAP_US,
    earlier: list[tuple[int, int, float]] | None = None,
) -> pl.DataFrame:
    """Base windows of (series, microseconds after noon, sample key, value); earlier samples without the key."""
    series, time, key, value = zip(*rows, strict=True)
    return windows.base_windows(
        np.array(series, np.int32),
        np.array(time, np.int64) + NOON_US,
        np.array(key, np.int64),
        np.array(value, np.float64),
        base_s,
        longest_gap_us=gap_us,
        earlier=carried_from(earlier or []),
    )


def carried_from(rows: list[tuple[int, int, float]]) -> EarlierSamples:
    """Earlier samples of (series, microseconds after noon, value)."""
    series, time, value = zip(*rows, strict=True) if rows else ((), (), ())
    return EarlierSamples(np.array(series, np.int64), np.array(time, np.int64) + NOON_US, np.array(value, float))


#: Rows of `keyed`: a quarter of an hour of three series.
MEASUREMENTS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(0, 15 * 60 * 4).map(lambda quarter: quarter * SECOND // 4),
        st.integers(0, 1),
        st.one_of(st.integers(-5, 5).map(float), st.floats(-1e12, 1e12), st.floats(-1e-5, 1e-5)),
    ),
    min_size=1,
    max_size=120,
    unique_by=lambda row: row[:3],
)
