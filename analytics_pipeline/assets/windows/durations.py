"""How long each state of a series lasted, by window, and the state that an hour hands on to the next. Pure.

A state lasts until the next change of its series, and no longer than the state clock: what lies beyond it has not
passed yet. Durations are whole microseconds, so that sums are exact in any order::

    hour                                   end        clock within the hour
    carried in ──────┬─ running ─┬─ stopped ┊
    |<- stopped ---->|<--------->|<--------->|        nothing beyond the clock
"""

from __future__ import annotations

import numpy as np
import polars as pl

MICROS = 1_000_000
HOUR_US = 3600 * MICROS


def hour_durations(
    changes: pl.DataFrame, carried: pl.DataFrame, hour_us: int, until_us: int, base_s: int
) -> pl.DataFrame:
    """The durations of one hour by base window.

    Args:
        changes: ``series_id, event_time_us, state`` of the hour, in any order; series and time are unique.
        carried: ``series_id, state`` at the beginning of the hour.
        hour_us: begin of the hour.
        until_us: the state clock.
        base_s: base window, seconds.

    Returns:
        ``bucket_start_us, series_id, state, duration_us``; what lasted no time has no row.
    """
    end_us = min(hour_us + HOUR_US, until_us)
    begins = carried.select("series_id", pl.lit(hour_us - 1, pl.Int64).alias("event_time_us"), "state")
    spells = (
        pl.concat([begins, changes.select("series_id", "event_time_us", "state")])
        .sort("series_id", "event_time_us")
        .with_columns(
            # What is carried in stands just before the hour, so that a change at its very beginning comes after it.
            pl.max_horizontal("event_time_us", pl.lit(hour_us)).alias("from_us"),
            pl.col("event_time_us").shift(-1).over("series_id").fill_null(end_us).clip(upper_bound=end_us).alias("to_us"),
        )
        .filter(pl.col("to_us") > pl.col("from_us"))
    )
    return _by_window(spells, base_s * MICROS)


def _by_window(spells: pl.DataFrame, size_us: int) -> pl.DataFrame:
    """Spells split at the edges of windows, and summed."""
    begins, ends = spells["from_us"].to_numpy(), spells["to_us"].to_numpy()
    first = begins // size_us
    windows = (ends - 1) // size_us - first + 1
    row = np.repeat(np.arange(len(begins)), windows)
    step = np.arange(len(row)) - np.repeat(np.cumsum(windows) - windows, windows)
    start = (first[row] + step) * size_us
    lasted = np.minimum(ends[row], start + size_us) - np.maximum(begins[row], start)
    pieces = spells.select("series_id", "state")[row].with_columns(
        pl.Series("bucket_start_us", start, pl.Int64()), pl.Series("duration_us", lasted, pl.Int64())
    )
    return _summed(pieces, ["bucket_start_us", "series_id", "state"])


def merge_durations(durations: pl.DataFrame, size_s: int) -> pl.DataFrame:
    """Larger windows from all rows of one smaller size that divides theirs, in any order: with ``domain_id``."""
    size_us = size_s * MICROS
    rows = durations.with_columns((pl.col("bucket_start_us") // size_us * size_us).alias("bucket_start_us"))
    return _summed(rows, ["domain_id", "bucket_start_us", "series_id", "state"])


def _summed(rows: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    return rows.group_by(key).agg(pl.col("duration_us").sum()).sort(key)


def carried_on(changes: pl.DataFrame, carried: pl.DataFrame) -> pl.DataFrame:
    """``series_id, state`` at the end of an hour, from its changes and what it began with."""
    last = changes.sort("event_time_us").unique("series_id", keep="last", maintain_order=True)
    unchanged = carried.join(last, on="series_id", how="anti").select("series_id", "state")
    return pl.concat([last.select("series_id", "state"), unchanged]).sort("series_id")
