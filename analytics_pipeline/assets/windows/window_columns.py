"""The columns of window rows, and how they are put together. Pure. Not here: what they are computed from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.windows.sample_quality import Counts, Some
from analytics_pipeline.formulas import moments, rank_sketch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PERCENTILES = (0.50, 0.95, 0.99)

#: The columns of every window row. Times in microseconds since the Unix epoch.
WINDOW_SCHEMA: dict[str, pl.DataType] = {
    "bucket_start_us": pl.Int64(),
    "window_s": pl.Int32(),
    "series_id": pl.Int64(),
    "count_n": pl.Int64(),
    "avg_val": pl.Float64(),
    "m2": pl.Float64(),
    "min_val": pl.Float64(),
    "max_val": pl.Float64(),
    "first_val": pl.Float64(),
    "first_time_us": pl.Int64(),
    "last_val": pl.Float64(),
    "last_time_us": pl.Int64(),
    "p50": pl.Float64(),
    "p95": pl.Float64(),
    "p99": pl.Float64(),
    "base_n": pl.Int32(),
    "coverage": pl.Float64(),
    "tw_integral": pl.Float64(),
    "tw_covered_s": pl.Float64(),
    "bad_n": pl.Int32(),
    "uncertain_n": pl.Int32(),
    "censored_n": pl.Int32(),
    "late_n": pl.Int32(),
    "ends_bad": pl.Boolean(),
    "sketch": pl.Binary(),
}


class EveryWindow(NamedTuple):
    """Columns of all windows: those that do not need a good sample."""

    size_s: int
    start_us: Ints
    series_id: Ints
    weighted: tuple[Floats, Floats]
    counts: Counts
    ends_bad: npt.NDArray[np.bool_]


class Figures(NamedTuple):
    """Columns of the windows that hold a good sample."""

    moment: moments.Moments
    ends: tuple[Floats, Floats]
    first: tuple[Floats, Ints]
    last: tuple[Floats, Ints]
    base_n: Ints
    base_fits: int
    sketches: rank_sketch.Sketches


def window_frame(windows: EveryWindow, figures: Figures, filled: Some | None) -> pl.DataFrame:
    """The rows of all windows. ``filled``: which of them hold a good sample; None: all do."""
    groups = len(windows.start_us)
    n, mean, m2 = figures.moment
    percentiles = rank_sketch.quantiles(figures.sketches, PERCENTILES)
    values = [*figures.ends, figures.first[0], figures.last[0], *percentiles.T]
    times = [figures.first[1], figures.last[1]]
    base_n, sketch = figures.base_n, rank_sketch.encode(figures.sketches)
    if filled is not None and len(filled.groups) < groups:
        at = filled.groups
        n, m2, base_n = (_spread(column, at, np.zeros(groups)) for column in (n, m2, base_n))
        mean, *values = (_spread(column, at, np.full(groups, np.nan)) for column in (mean, *values))
        times = [_spread(column, at, windows.start_us) for column in times]
        sketch = _spread(np.array(sketch, object), at, np.full(groups, b"", object)).tolist()
    minimum, maximum, first, last, *percentile = values
    columns = (
        windows.start_us,
        np.full(groups, windows.size_s, np.int32),
        windows.series_id,
        *(n, mean, m2, minimum, maximum, first, times[0], last, times[1]),
        *(np.ascontiguousarray(column) for column in percentile),
        base_n.astype(np.int32),
        base_n / figures.base_fits,
        *windows.weighted,
        *(column.astype(np.int32) for column in windows.counts),
        windows.ends_bad,
        sketch,
    )
    return pl.DataFrame(dict(zip(WINDOW_SCHEMA, columns, strict=True)), schema=WINDOW_SCHEMA)


def _spread(some: npt.NDArray[Any], at: Ints, blank: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The figures of some windows as a column of all; the others have what stands in ``blank``."""
    column = blank.astype(some.dtype)
    column[at] = some
    return column
