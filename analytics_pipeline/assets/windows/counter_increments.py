"""What counters counted per window. Pure: frames in, frames out.

An increment belongs to the window of the later of its two readings. So a window depends on its readings and on the last
one before it, however old that is. Sums are exact: an increment beyond int64 is unknown, with the reason `OVERFLOW`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.formulas.as_of import last_at, order_by
from analytics_pipeline.formulas.counters import FIRST, RESET, ROLL_OVER, SWAP, increments

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MICROS = 1_000_000

#: Why nothing is known of what was counted in a window.
FIRST_READING, SWAPPED, OVERFLOW = "first_reading", "swap", "overflow"

#: The last reading of a window, and of which.
LAST: dict[str, Any] = {
    "domain_id": pl.Int32(),
    "series_id": pl.Int64(),
    "bucket_start_us": pl.Int64(),
    "last_time_us": pl.Int64(),
    "last_reading": pl.Int64(),
}
#: Counts that are summed over windows.
COUNTS = ("readings", "resets", "roll_overs", "swaps", "unknown_n", "gaps_spanned")


class Limits(NamedTuple):
    """What is declared of the series of each reading: see `formulas.counters`; and its domain's longest gap."""

    modulus: Ints
    max_rate_per_s: Floats
    longest_gap_us: Ints


def last_readings(readings: pl.DataFrame, base_s: int) -> pl.DataFrame:
    """The last reading of each base window: `LAST`, sorted by (series, window).

    Args:
        readings: ``domain_id, series_id, event_time_us, reading``, sorted by (series, time), which are unique.
    """
    bucket = readings["event_time_us"].to_numpy() // (base_s * MICROS)
    ends = np.flatnonzero(_differs(readings["series_id"].to_numpy(), bucket, last=True))
    return readings[ends].select(
        "domain_id",
        "series_id",
        pl.Series("bucket_start_us", bucket[ends] * base_s * MICROS),
        pl.col("event_time_us").alias("last_time_us"),
        pl.col("reading").alias("last_reading"),
    )


def base_increments(readings: pl.DataFrame, before: pl.DataFrame, limits: Limits, base_s: int) -> pl.DataFrame:
    """The base windows of some readings.

    Args:
        readings: as of `last_readings`; all of each window that has one here.
        before: ``series_id, last_time_us, last_reading`` of readings of other windows, in any order: the last one
            before each window is among them, or among the readings, or there is none.

    Returns:
        ``domain_id, window_s, bucket_start_us, series_id, increment, reason``, `COUNTS`, ``last_time_us,
        last_reading``; by (series, window).
    """
    series, time = readings["series_id"].to_numpy(), readings["event_time_us"].to_numpy()
    reading = readings["reading"].to_numpy()
    known_series = np.concatenate([before["series_id"].to_numpy(), series])
    known_time = np.concatenate([before["last_time_us"].to_numpy(), time])
    known_reading = np.concatenate([before["last_reading"].to_numpy(), reading])
    order = order_by(known_series, known_time)
    at = last_at(series, time - 1, known_series[order], known_time[order])
    known = at >= 0
    old, since = (column[order][at] if len(order) else column for column in (known_reading, known_time))
    elapsed = np.where(known, time - since, 1)
    counted, kind = increments(old, reading, elapsed, known, limits.modulus, limits.max_rate_per_s)
    rows = readings.select("domain_id", "series_id").with_columns(
        pl.Series("bucket_start_us", time // (base_s * MICROS) * base_s * MICROS),
        pl.Series("increment", counted),
        pl.lit(1, pl.Int64).alias("readings"),
        pl.Series("resets", (kind == RESET).astype(np.int64)),
        pl.Series("roll_overs", (kind == ROLL_OVER).astype(np.int64)),
        pl.Series("swaps", (kind == SWAP).astype(np.int64)),
        pl.Series("unknown_n", ((kind == SWAP) | (kind == FIRST)).astype(np.int64)),
        pl.Series("gaps_spanned", (known & (elapsed > limits.longest_gap_us)).astype(np.int64)),
        pl.lit(None, pl.String).alias("reason"),
        pl.Series("last_time_us", time),
        pl.Series("last_reading", reading),
    )
    return _summed(rows, base_s)


def merge_increments(windows: pl.DataFrame, size_s: int) -> pl.DataFrame:
    """Larger windows from all rows of one smaller size that divides theirs, in any order; as `base_increments`."""
    size_us = size_s * MICROS
    rows = windows.with_columns((pl.col("bucket_start_us") // size_us * size_us).alias("bucket_start_us"))
    return _summed(rows.sort("series_id", "last_time_us"), size_s)


def _summed(rows: pl.DataFrame, size_s: int) -> pl.DataFrame:
    """One row for each series and window; ``rows`` are sorted by (series, time)."""
    starts = np.flatnonzero(_differs(rows["series_id"].to_numpy(), rows["bucket_start_us"].to_numpy(), last=False))
    ends = np.append(starts[1:], rows.height)[: len(starts)] - 1
    total, fits = _total(rows["increment"].fill_null(0).to_numpy(), starts)
    overflown = _sums(rows["reason"].eq_missing(OVERFLOW).to_numpy().astype(np.int64), starts) > 0
    counts = [pl.Series(name, _sums(rows[name].to_numpy(), starts)) for name in COUNTS]
    unknown = pl.col("unknown_n") == pl.col("readings")
    reason = (
        pl.when(pl.Series(overflown | ~fits, dtype=pl.Boolean)).then(pl.lit(OVERFLOW))
        .when(unknown & (pl.col("swaps") > 0)).then(pl.lit(SWAPPED))
        .when(unknown).then(pl.lit(FIRST_READING))
    )  # fmt: skip
    return (
        rows[ends]
        .with_columns(pl.Series("increment", total), pl.lit(size_s, pl.Int32).alias("window_s"), *counts)
        .with_columns(reason.alias("reason"))
        .with_columns(pl.when(pl.col("reason").is_null()).then("increment").alias("increment"))
    )


def _sums(values: Ints, starts: Ints) -> Ints:
    """Sums by group, of at least none."""
    return np.add.reduceat(values, starts) if len(starts) else starts


def _total(increment: Ints, starts: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Sums of numbers that are not negative, by group, and whether they are int64: what is beyond would begin again
    below zero, so that the halves of the bits are summed apart."""
    high = _sums(increment >> 32, starts) + (_sums(increment & 0xFFFFFFFF, starts) >> 32)
    return _sums(increment, starts), high < 1 << 31


def _differs(series: Ints, bucket: Ints, *, last: bool) -> npt.NDArray[np.bool_]:
    """Which rows are the first, or the last, of their series and window."""
    differs = np.ones(len(series), np.bool_)
    other = (series[1:] != series[:-1]) | (bucket[1:] != bucket[:-1])
    differs[slice(None, -1) if last else slice(1, None)] = other
    return differs

