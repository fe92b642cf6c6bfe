"""Tumbling windows: measurements to base windows, those to larger ones. Pure: no Kafka, SQL or Dagster.

Windows are half-open ``[start, end)`` and aligned to the UTC epoch: with 60 s, 12:00:59.999999 is in the
window of 12:00 and 12:01:00 in the next. A row depends on its own window's measurements and on nothing else:
not on what else is in the frame, nor on the order of its rows. Live reads two windows, a rebuild sixty, and
both store the same bits.

Which rows are read and where windows are stored is not decided here. There is no clock: whether a window is
final is a view's business.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.formulas import ddsketch, moments

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MICROS = 1_000_000
PERCENTILES = (0.50, 0.95, 0.99)

#: The columns of every window row. Times in microseconds since the Unix epoch.
WINDOW_SCHEMA: dict[str, pl.DataType] = {
    "bucket_start_us": pl.Int64(),
    "window_s": pl.Int32(),
    "series_id": pl.Int32(),
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
    "sketch": pl.Binary(),
}


def base_windows(
    series_id: npt.NDArray[np.int32], time_us: Ints, sample_key: Ints, value: Floats, base_s: int
) -> pl.DataFrame:
    """The base windows of measurements in any order.

    Args:
        series_id, time_us, sample_key, value: columns of one length; together the first three are unique.
            Values are finite.
        base_s: window size, seconds.

    Returns:
        `WINDOW_SCHEMA`, one row for each window with a sample, sorted by (bucket_start_us, series_id).

    Raises:
        ValueError: NaN or infinity among the values.
    """
    if not len(value):
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    # Minus zero would make a minimum depend on which of two equal zeros came first.
    value = np.asarray(value, np.float64) + 0.0
    size_us = base_s * MICROS
    bucket = np.floor_divide(time_us, size_us)
    series = np.asarray(series_id, np.int64)
    order = _time_order(bucket, series, time_us - bucket * size_us, sample_key, value)
    bucket, series, time, value = bucket[order], series[order], time_us[order], value[order]
    starts = _group_starts(bucket, series)
    ends = np.append(starts[1:], len(value)) - 1
    minimum, maximum = np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)
    moment = moments.from_values(value, starts, minimum, maximum)
    buckets = ddsketch.histogram(np.repeat(np.arange(len(starts)), moment.n), value)
    return _frame(
        size_s=base_s,
        bucket_start_us=bucket[starts] * size_us,
        series_id=series[starts].astype(np.int32),
        moment=moment,
        ends=(minimum, maximum),
        first=(value[starts], time[starts]),
        last=(value[ends], time[ends]),
        base_n=np.ones(len(starts), np.int64),
        base_fits=1,
        buckets=buckets,
    )


def merge_windows(frame: pl.DataFrame, size_s: int, *, finest_s: int) -> pl.DataFrame:
    """Larger windows from all rows of one smaller size, in any order.

    Args:
        frame: `WINDOW_SCHEMA`, one ``window_s`` that divides ``size_s``; (bucket_start_us, series_id) unique.
        size_s: size of the windows to build, seconds.
        finest_s: size of the base window, seconds: coverage is how many of those hold a sample, over how many
            fit.

    Returns:
        as `base_windows`.

    Raises:
        ValueError: rows of several sizes, or of one that does not divide ``size_s``.
    """
    if frame.is_empty():
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    _check_sizes(frame, size_s, finest_s)
    size_us = size_s * MICROS
    bucket_all = np.floor_divide(frame["bucket_start_us"].to_numpy(), size_us)
    order = np.lexsort((frame["bucket_start_us"].to_numpy(), frame["series_id"].to_numpy(), bucket_all))
    rows = {name: frame[name].to_numpy()[order] for name in WINDOW_SCHEMA if name != "sketch"}
    bucket = bucket_all[order]
    starts = _group_starts(bucket, rows["series_id"])
    ends = np.append(starts[1:], len(bucket)) - 1
    minimum = np.minimum.reduceat(rows["min_val"], starts)
    maximum = np.maximum.reduceat(rows["max_val"], starts)
    parts = moments.Moments(rows["count_n"], rows["avg_val"], rows["m2"])
    new_group = np.empty(len(order), np.int64)
    new_group[order] = np.repeat(np.arange(len(starts)), ends - starts + 1)
    return _frame(
        size_s=size_s,
        bucket_start_us=bucket[starts] * size_us,
        series_id=rows["series_id"][starts],
        moment=moments.from_parts(parts, starts, minimum, maximum),
        ends=(minimum, maximum),
        first=(rows["first_val"][starts], rows["first_time_us"][starts]),
        last=(rows["last_val"][ends], rows["last_time_us"][ends]),
        base_n=np.add.reduceat(rows["base_n"].astype(np.int64), starts),
        base_fits=size_s // finest_s,
        buckets=ddsketch.merge(ddsketch.decode(frame["sketch"].to_list()), new_group),
    )


def _check_sizes(frame: pl.DataFrame, size_s: int, finest_s: int) -> None:
    sizes = frame["window_s"].unique().to_list()
    if len(sizes) != 1 or size_s % sizes[0] or size_s % finest_s:
        raise ValueError(
            f"windows of {size_s} s merge rows of one size that divides it and a base window that does; "
            f"got rows of {sorted(sizes)} s and a base window of {finest_s} s"
        )


def _frame(
    *,
    size_s: int,
    bucket_start_us: Ints,
    series_id: npt.NDArray[np.int32],
    moment: moments.Moments,
    ends: tuple[Floats, Floats],
    first: tuple[Floats, Ints],
    last: tuple[Floats, Ints],
    base_n: Ints,
    base_fits: int,
    buckets: ddsketch.Buckets,
) -> pl.DataFrame:
    groups = len(bucket_start_us)
    percentiles = ddsketch.quantiles(buckets, PERCENTILES, *ends)
    columns = (
        bucket_start_us,
        np.full(groups, size_s, np.int32),
        series_id,
        *moment,
        *ends,
        *first,
        *last,
        *(np.ascontiguousarray(column) for column in percentiles.T),
        base_n.astype(np.int32),
        base_n / base_fits,
        ddsketch.encode(buckets, groups),
    )
    return pl.DataFrame(dict(zip(WINDOW_SCHEMA, columns, strict=True)), schema=WINDOW_SCHEMA)


def _group_starts(bucket: Ints, series: npt.NDArray[np.signedinteger]) -> Ints:
    """Where each (bucket, series) begins in sorted columns."""
    new = (bucket[1:] != bucket[:-1]) | (series[1:] != series[:-1])
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(new) + 1])


def _time_order(bucket: Ints, series: Ints, within_us: Ints, sample_key: Ints, value: Floats) -> Ints:
    """The order by (bucket, series, time, sample key), total and so the same for every order of arrival."""
    parts = [(column - column.min(), int(column.max() - column.min()) + 1) for column in (bucket, series)]
    (buckets, bucket_span), (serial, series_span) = parts
    window_us = int(within_us.max()) + 1
    if bucket_span * series_span * window_us >= 1 << 63:
        return np.lexsort((value, sample_key, within_us, series, bucket))
    key = (buckets * series_span + serial) * window_us + within_us
    order: Ints = np.argsort(key)
    key = key[order]
    same = np.flatnonzero(key[1:] == key[:-1])
    if len(same):  # several samples of one series at one time: the sample key decides
        tied = np.union1d(same, same + 1)
        rows = order[tied]
        order[tied] = rows[np.lexsort((value[rows], sample_key[rows], key[tied]))]
    return order
