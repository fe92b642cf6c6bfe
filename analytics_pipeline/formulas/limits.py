"""Which limits hold for a series at a time. Pure: rows arrive as frames.

Reading `analytics_spec_limits` is storage's business, evaluating a window against limits a detector's or a KPI's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.formulas import in_force as rows_in_force
from analytics_pipeline.formulas.conversion import in_canonical_unit
from analytics_pipeline.formulas.in_force import NAMES

__all__ = ["LIMITS", "NAMES", "SPAN_SCHEMA", "in_canonical_units", "in_force", "spans"]

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
LIMITS = ("lsl", "usl")


def spans(series: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """The limits of each series over time, from rows that may match many series: see `in_force.spans`.

    Of two rows that tell nothing apart the one with the greatest ``spec_id`` holds.

    Args:
        series: series_id, metric and the names that rows may give; more columns are welcome.
        limits: spec_id, metric, these names, valid_from_us (null: since ever), lsl, usl; more columns are welcome.

    Returns:
        `SPAN_SCHEMA`, sorted by (series_id, valid_from_us), as `in_force` takes it.
    """
    found = rows_in_force.spans(series, limits.sort("spec_id"), LIMITS)
    return found.select(pl.col(name).cast(kind) for name, kind in SPAN_SCHEMA.items())


def in_canonical_units(limits: pl.DataFrame, units: pl.DataFrame) -> pl.DataFrame:
    """Limits as figures are, in the canonical unit of their metric. One without a unit is given in that; one in a
    unit that nobody declared for the metric stays as it is.

    Args:
        limits: metric, unit, lsl, usl; more columns are welcome, and the order is kept.
        units: metric, unit, factor, shift.
    """
    if limits["unit"].null_count() == limits.height or units.is_empty():
        return limits
    known = limits.join(units.select("metric", "unit", "factor", "shift"), on=["metric", "unit"], how="left")
    factor, shift = known["factor"].fill_null(1.0).to_numpy(), known["shift"].fill_null(0.0).to_numpy()
    return limits.with_columns(
        pl.Series(name, in_canonical_unit(known[name].to_numpy(), factor, shift), nan_to_null=True) for name in LIMITS
    )


def in_force(series_id: Ints, time_us: Ints, limits: pl.DataFrame) -> tuple[Floats, Floats]:
    """The limits of each series at each time; NaN where there is none.

    Args:
        limits: series_id, valid_from_us, valid_to_us (exclusive), lsl, usl, in any order; one row holds at a
            time. A null time has no bound on its side; a limit that is null or not finite is none.

    Returns:
        lower and upper limits, as long as ``series_id``.
    """
    found = rows_in_force.row_at(series_id, time_us, limits)
    lsl, usl = (np.append(limits[name].cast(pl.Float64).to_numpy(), np.nan)[found] for name in LIMITS)
    return np.where(np.isfinite(lsl), lsl, np.nan), np.where(np.isfinite(usl), usl, np.nan)
