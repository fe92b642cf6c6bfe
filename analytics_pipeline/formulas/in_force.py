"""Which row of master data holds for a series at a time. Pure: rows arrive as frames.

Reading the rows is storage's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.formulas.as_of import last_at, order_by

Ints = npt.NDArray[np.int64]

#: What a row may name beside the metric; null matches any.
NAMES = ("tenant_id", "factory_id", "machine_id", "sensor_id")
_EVER = np.iinfo(np.int64)


def spans(series: pl.DataFrame, rows: pl.DataFrame, values: Sequence[str]) -> pl.DataFrame:
    """What holds for each series over time, from rows that may match many series.

    Of the rows that match a series and have begun, the one that names the most is in force; among these the
    last to begin; among these the one that stands last.

    Args:
        series: series_id, metric and `NAMES`; more columns are welcome.
        rows: metric, `NAMES`, valid_from_us (null: since ever) and ``values``; more columns are welcome.

    Returns:
        series_id, valid_from_us, valid_to_us and ``values``, sorted by (series_id, valid_from_us). Spans of one
        series never overlap; a null time has no bound on its side.
    """
    numbered = rows.select("metric", *NAMES, pl.col("valid_from_us").cast(pl.Int64), *values).with_row_index("place")
    empty = _matched(series, numbered.clear(), values, ["metric"])
    matched = pl.concat([empty, *_matches(series, numbered, values)])
    begin = pl.col("valid_from_us").fill_null(_EVER.min)
    following = pl.col("begin").shift(-1).over("series_id")
    return (
        matched.with_columns(begin.alias("begin"))
        .sort("series_id", "begin", "place")
        # A row that names less than one that has begun never comes into force.
        .filter(pl.col("named") == pl.col("named").cum_max().over("series_id"))
        .with_columns(following.alias("valid_to_us"))
        .filter(pl.col("valid_to_us").is_null() | (pl.col("begin") < pl.col("valid_to_us")))
        .select("series_id", "valid_from_us", "valid_to_us", *values)
    )


def _matches(series: pl.DataFrame, rows: pl.DataFrame, values: Sequence[str]) -> list[pl.DataFrame]:
    """Rows of (series, row), joined by the names that the rows give: one join per set of names."""
    patterns = rows.with_columns(pl.concat_list([pl.col(name).is_not_null() for name in NAMES]).alias("given"))
    found = []
    for (given,), its in patterns.group_by("given"):
        names = [name for name, is_given in zip(NAMES, given, strict=True) if is_given]
        found.append(_matched(series, its, values, ["metric", *names]))
    return found


def _matched(series: pl.DataFrame, rows: pl.DataFrame, values: Sequence[str], keys: list[str]) -> pl.DataFrame:
    wanted = rows.select("place", "valid_from_us", *values, *keys)
    found = series.select("series_id", "metric", *NAMES).join(wanted, on=keys)
    return found.select(
        pl.col("series_id").cast(pl.Int64),
        "place",
        "valid_from_us",
        *values,
        pl.lit(len(keys), pl.Int64).alias("named"),
    )


def row_at(series_id: Ints, time_us: Ints, found: pl.DataFrame) -> Ints:
    """Which row of some spans holds for each series at each time.

    Args:
        found: series_id, valid_from_us, valid_to_us (exclusive), in any order; one row holds at a time. A null
            time has no bound on its side.

    Returns:
        row numbers of ``found``, -1 where none holds; as long as ``series_id``.
    """
    known = found["series_id"].to_numpy().astype(np.int64)
    begin = found["valid_from_us"].cast(pl.Int64).fill_null(_EVER.min).to_numpy()
    order = order_by(known, begin)
    last = last_at(np.asarray(series_id, np.int64), time_us, known[order], begin[order])
    end = np.append(found["valid_to_us"].cast(pl.Int64).fill_null(_EVER.max).to_numpy()[order], _EVER.min)
    holds = end[last] > time_us  # row -1, the appended one, never does
    at: Ints = np.where(holds, np.append(order, -1)[last], -1)
    return at
