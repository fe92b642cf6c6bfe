"""Measurements as figures are made of them: calibrated, and in the canonical unit of their metric.

What was sent stays as it is stored in normalized_measurements, so that an edit of master data recomputes figures from
it. A value whose unit nobody declared for its metric stays as it was sent, and the view ``series_unit`` says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.calculation import Context
from analytics_pipeline.formulas.conversion import calibrated, in_canonical_unit
from analytics_pipeline.formulas.in_force import row_at, spans

Floats = npt.NDArray[np.float64]


def corrected(context: Context, rows: pl.DataFrame) -> pl.DataFrame:
    """Measurements (domain_id, series_id, event_time_us, value, …) with the values that figures are made of.

    The calibration is the one that holds at the time of the sample. Where no master data speaks of a series its
    values keep their bits.
    """
    calibration, units = context.master("calibration"), context.master("units")
    if calibration.is_empty() and units.is_empty():
        return rows
    series = context.named(rows)
    value = _calibrated(rows, spans(series, calibration, ("gain", "offset")))
    value = _converted(rows, value, series.join(units, on=["metric", "unit"]).select("series_id", "factor", "shift"))
    return rows.with_columns(pl.Series("value", value))


def _calibrated(rows: pl.DataFrame, found: pl.DataFrame) -> Floats:
    value = rows["value"].to_numpy()
    if found.is_empty():
        return value
    at = row_at(rows["series_id"].to_numpy(), rows["event_time_us"].to_numpy(), found)
    gain, offset = found["gain"].to_numpy()[at], found["offset"].to_numpy()[at]
    return np.where(at >= 0, calibrated(value, gain, offset), value)


def _converted(rows: pl.DataFrame, value: Floats, units: pl.DataFrame) -> Floats:
    if units.is_empty():
        return value
    its = rows.select("series_id").join(units, on="series_id", how="left", maintain_order="left")
    known = its["factor"].is_not_null().to_numpy()
    factor, shift = its["factor"].fill_null(1.0).to_numpy(), its["shift"].fill_null(0.0).to_numpy()
    return np.where(known, in_canonical_unit(value, factor, shift), value)
