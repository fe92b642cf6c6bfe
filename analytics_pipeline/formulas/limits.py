"""Which limits hold for a series at a time. Pure: the rows arrive resolved, one series each.

Finding the rows of `analytics_spec_limits` that a series matches is storage's business, judging a window by
them a detector's or a KPI's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_EVER = np.iinfo(np.int64)


def in_force(series_id: Ints, time_us: Ints, limits: pl.DataFrame) -> tuple[Floats, Floats]:
    """The limits of each series at each time; NaN where there is none.

    Args:
        limits: series_id, valid_from_us, valid_to_us (exclusive), lsl, usl; one row holds at a time. A null
            time has no bound on its side, a null limit no limit.

    Returns:
        lower and upper limits, as long as ``series_id``.
    """
    rows = len(limits)
    if not rows or not len(series_id):
        return np.full(len(series_id), np.nan), np.full(len(series_id), np.nan)
    start = limits["valid_from_us"].fill_null(_EVER.min).to_numpy()
    end = limits["valid_to_us"].fill_null(_EVER.max).to_numpy()
    series = np.concatenate([limits["series_id"].to_numpy().astype(np.int64), series_id])
    time = np.concatenate([start, time_us])
    # Limits and questions in one line by series and time: a question takes the last limit before it.
    order = np.lexsort((np.arange(len(series)) >= rows, time, series))
    last = np.maximum.accumulate(np.where(order < rows, np.arange(len(order)), -1))
    asks = order >= rows
    asked, row = order[asks] - rows, order[last[asks]]
    holds = (last[asks] >= 0) & (series[row] == series_id[asked]) & (end[row % rows] > time_us[asked])
    found = np.full(len(series_id), -1)
    found[asked[holds]] = row[holds]
    lsl, usl = (np.append(limits[name].cast(pl.Float64).to_numpy(), np.nan) for name in ("lsl", "usl"))
    return lsl[found], usl[found]
