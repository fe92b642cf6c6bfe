"""What is declared of the counter that a reading is of.

Today the domain says it, by metric. This is the place for master data that says it of single machines, from a time on:
it overrides what the domain declares, and its edits make stale what they touch, as those of specification limits do.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Work
from analytics_pipeline.assets.windows.counter_increments import MICROS, Limits
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.formulas.counters import NO_MODULUS


def limits_of(context: Context, work: Work, readings: pl.DataFrame) -> Limits:
    """The limits of each reading of the work's domain."""
    series = readings.select("series_id")
    names = context.series.frame(work.domain_id, series["series_id"].unique()).select("series_id", "metric")
    its = series.join(names, on="series_id", how="left", maintain_order="left").join(
        _declared(work.domain), on="metric", how="left", maintain_order="left"
    )
    return Limits(
        modulus=its["modulus"].fill_null(NO_MODULUS).to_numpy(),
        max_rate_per_s=its["max_rate_per_s"].fill_null(np.nan).to_numpy(),
        longest_gap_us=np.full(readings.height, work.domain.longest_gap_s * MICROS),
    )


def _declared(domain: Domain) -> pl.DataFrame:
    rows = [(one.metric, one.modulus, one.max_rate_per_s) for one in domain.counter_limits]
    schema = {"metric": pl.String(), "modulus": pl.Int64(), "max_rate_per_s": pl.Float64()}
    return pl.DataFrame(rows, schema=schema, orient="row")
