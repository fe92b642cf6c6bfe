"""Roll-ups of events per window: how many of each type, and the sum of their values. Pure: frames in, frames out.

Windows are half-open and aligned to the UTC epoch, as those of samples are. A row depends on the events of its window
and on nothing else. Sums are taken in a fixed order, by time and identity and then window by window, so that live and
rebuild store the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

MICROS = 1_000_000

#: Whose events, and which: what a roll-up is of, beside domain and window.
GROUP = ("tenant_id", "factory_id", "machine_id", "entity_type", "event_type")

Ints = npt.NDArray[np.int64]


def base_rollups(events: pl.DataFrame, base_s: int) -> pl.DataFrame:
    """The roll-ups of base windows.

    Args:
        events: ``domain_id, event_time_us, identity``, `GROUP` and ``value``, in any order; each window that has an
            event here has all its events here.

    Returns:
        ``domain_id, window_s, bucket_start_us``, `GROUP`, ``count_n, value_n, sum_val``; one row for each group and
        window with an event.
    """
    size_us = base_s * MICROS
    rows = events.with_columns((pl.col("event_time_us") // size_us * size_us).alias("bucket_start_us"))
    ones = pl.lit(1, pl.Int64)
    counted = rows.with_columns(ones.alias("count_n"), pl.col("value").is_not_null().cast(pl.Int64).alias("value_n"))
    return _summed(counted.rename({"value": "sum_val"}), ["event_time_us", "identity"], base_s)


def merge_rollups(rollups: pl.DataFrame, size_s: int) -> pl.DataFrame:
    """Larger windows from all rows of one smaller size that divides theirs, in any order."""
    size_us = size_s * MICROS
    rows = rollups.with_columns(
        pl.col("bucket_start_us").alias("child_start_us"),
        (pl.col("bucket_start_us") // size_us * size_us).alias("bucket_start_us"),
    )
    return _summed(rows, ["child_start_us"], size_s)


def _summed(rows: pl.DataFrame, order: list[str], size_s: int) -> pl.DataFrame:
    """One row for each group and window, summed in an order that is total within them."""
    key = ["domain_id", "bucket_start_us", *GROUP]
    rows = rows.sort(*key, *order, nulls_last=False)
    if rows.is_empty():
        starts = np.zeros(0, np.int64)
        columns = dict.fromkeys(("count_n", "value_n"), starts) | {"sum_val": np.zeros(0)}
    else:
        group = rows.select(pl.struct(key).rle_id()).to_series().to_numpy()
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        columns = {
            name: np.add.reduceat(rows[name].fill_null(0).to_numpy(), starts) for name in ("count_n", "value_n")
        }
        # Minus zero would depend on which of two zeros came first.
        columns["sum_val"] = np.add.reduceat(rows["sum_val"].fill_null(0.0).to_numpy(), starts) + 0.0
    return (
        rows.select(key)[starts]
        .with_columns(pl.lit(size_s, pl.Int32).alias("window_s"), *(pl.Series(n, c) for n, c in columns.items()))
        .with_columns(pl.when(pl.col("value_n") > 0).then(pl.col("sum_val")).alias("sum_val"))
        .select("domain_id", "window_s", "bucket_start_us", *GROUP, "count_n", "value_n", "sum_val")
    )
