"""Which limits hold for a series at a time. Pure: rows arrive as frames.

Reading `analytics_spec_limits` is storage's business, evaluating a window against limits a detector's or a KPI's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.formulas.as_of import last_at, order_by

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Limits of single series: spans of one series never overlap. A null time has no bound on its side.
SPAN_SCHEMA: dict[str, pl.DataType] = {
    "series_id": pl.Int64(),
    "valid_from_us": pl.Int64(),
    "valid_to_us": pl.Int64(),
    "lsl": pl.Float64(),
    "usl": pl.Float64(),
}
#: What a row of limits may name beside the metric; null matches any.
NAMES = ("tenant_id", "factory_id", "machine_id", "sensor_id")
_EVER = np.iinfo(np.int64)


def spans(series: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """The limits of each series over time, from rows that may match many series.

    Of the rows that match a series and have begun, the one that names the most is in force; among these the
    last to begin; among these the one with the greatest ``spec_id``.

    Args:
        series: series_id, metric and `NAMES`; more columns are welcome.
        limits: spec_id, metric, `NAMES`, valid_from_us (null: since ever), lsl, usl; more columns are welcome.

    Returns:
        `SPAN_SCHEMA`, sorted by (series_id, valid_from_us), as `in_force` takes it.
    """
    matched = pl.concat([_empty(series), *_matches(series, limits)])
    begin = pl.col("valid_from_us").fill_null(_EVER.min)
    following = pl.col("begin").shift(-1).over("series_id")
    return (
        matched.with_columns(begin.alias("begin"))
        .sort("series_id", "begin", "spec_id")
        # A row that names less than one that has begun never comes into force.
        .filter(pl.col("named") == pl.col("named").cum_max().over("series_id"))
        .with_columns(following.alias("valid_to_us"))
        .filter(pl.col("valid_to_us").is_null() | (pl.col("begin") < pl.col("valid_to_us")))
        .select(pl.col(name).cast(kind) for name, kind in SPAN_SCHEMA.items())
    )


def _matches(series: pl.DataFrame, limits: pl.DataFrame) -> list[pl.DataFrame]:
    """Rows of (series, limits), joined by the names that the limits give: one join per set of names."""
    columns = _empty(series).columns
    patterns = limits.with_columns(pl.concat_list([pl.col(name).is_not_null() for name in NAMES]).alias("given"))
    joined = []
    for (given,), rows in patterns.group_by("given"):
        keys = ["metric", *(name for name, is_given in zip(NAMES, given, strict=True) if is_given)]
        found = series.select("series_id", "metric", *NAMES).join(
            rows.select("spec_id", "valid_from_us", "lsl", "usl", *keys), on=keys
        )
        joined.append(found.with_columns(pl.lit(len(keys), pl.Int64).alias("named")).select(columns))
    return [frame.cast(_empty(series).schema) for frame in joined]


def _empty(series: pl.DataFrame) -> pl.DataFrame:
    schema = {"series_id": series.schema["series_id"], "spec_id": pl.Int64(), "valid_from_us": pl.Int64()}
    return pl.DataFrame(schema=schema | {"lsl": pl.Float64(), "usl": pl.Float64(), "named": pl.Int64()})


def in_force(series_id: Ints, time_us: Ints, limits: pl.DataFrame) -> tuple[Floats, Floats]:
    """The limits of each series at each time; NaN where there is none.

    Args:
        limits: series_id, valid_from_us, valid_to_us (exclusive), lsl, usl, in any order; one row holds at a
            time. A null time has no bound on its side; a limit that is null or not finite is none.

    Returns:
        lower and upper limits, as long as ``series_id``.
    """
    known = limits["series_id"].to_numpy().astype(np.int64)
    begin = limits["valid_from_us"].cast(pl.Int64).fill_null(_EVER.min).to_numpy()
    order = order_by(known, begin)
    found = last_at(np.asarray(series_id, np.int64), time_us, known[order], begin[order])
    end = np.append(limits["valid_to_us"].cast(pl.Int64).fill_null(_EVER.max).to_numpy()[order], _EVER.min)
    found[end[found] <= time_us] = -1  # row -1, the appended one, is none
    lsl, usl = (
        np.append(limits[name].cast(pl.Float64).to_numpy()[order], np.nan)[found] for name in ("lsl", "usl")
    )
    return np.where(np.isfinite(lsl), lsl, np.nan), np.where(np.isfinite(usl), usl, np.nan)
