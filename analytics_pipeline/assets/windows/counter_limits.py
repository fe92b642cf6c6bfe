"""What is declared of the counter that a reading is of: by the domain, per metric, and by master data, which overrides
it for single series, from a time on. What a row of master data leaves open stays as the domain declares it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.calculation import Context, Work
from analytics_pipeline.assets.windows.counter_increments import MICROS, Limits
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.formulas.counters import NO_MODULUS
from analytics_pipeline.formulas.in_force import row_at, spans


def limits_of(context: Context, work: Work, readings: pl.DataFrame) -> Limits:
    """The limits of each reading of the work's domain: those that hold at its time."""
    series = readings.select("series_id")
    wanted = series["series_id"].unique()
    known = context.series.frame(work.domain_id, wanted)
    names = known.filter(pl.col("series_id").is_in(wanted.implode()))
    declared = series.join(names.select("series_id", "metric"), on="series_id", how="left", maintain_order="left").join(
        _declared(work.domain), on="metric", how="left", maintain_order="left"
    )
    modulus = declared["modulus"].fill_null(NO_MODULUS).to_numpy()
    rate = declared["max_rate_per_s"].fill_null(np.nan).to_numpy()
    rows = context.master("counter_limits")
    if not rows.is_empty():
        found = spans(names, rows, ("modulus", "max_rate"))
        at = row_at(series["series_id"].to_numpy(), readings["event_time_us"].to_numpy(), found)
        modulus, rate = _overridden(modulus, found["modulus"], at), _overridden(rate, found["max_rate"], at)
    gap_us = np.full(readings.height, work.domain.longest_gap_s * MICROS)
    return Limits(modulus=modulus, max_rate_per_s=rate, longest_gap_us=gap_us)


def _overridden(declared: npt.NDArray[Any], column: pl.Series, at: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """What is declared, but for rows of master data that hold and say otherwise; ``at`` is −1 where none holds."""
    said = np.append(column.is_not_null().to_numpy(), False)[at]
    value = np.append(column.fill_null(0).to_numpy(), 0).astype(declared.dtype)[at]
    return np.where(said, value, declared)


def _declared(domain: Domain) -> pl.DataFrame:
    rows = [(one.metric, one.modulus, one.max_rate_per_s) for one in domain.counter_limits]
    schema = {"metric": pl.String(), "modulus": pl.Int64(), "max_rate_per_s": pl.Float64()}
    return pl.DataFrame(rows, schema=schema, orient="row")
