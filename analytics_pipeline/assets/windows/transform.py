"""Tumbling windows: measurements to base windows, those to larger ones. Pure: no Kafka, SQL or Dagster.

Windows are half-open ``[start, end)`` and aligned to the UTC epoch: with 60 s, 12:00:59.999999 is in the
window of 12:00 and 12:01:00 in the next. A window has a row only if it holds a sample. A row depends on its own
window's measurements and on the last sample before the window, and on nothing else: not on what else is in the
frame, nor on the order of its rows. Live reads two windows, a rebuild sixty, and both store the same bits.

Time-weighted mean: each value holds until the next one of its series, but never longer than the domain's
longest gap nor beyond the window's end (last observation carried forward)::

    start                                     end       longest gap: 10 -
    c---------|        a-----b----------|      |        c carried in from before the window
    |<- held ->| none  |held |<- held ->| none |

``tw_integral`` is the integral of the value over the time that is covered so, value times seconds;
``tw_covered_s`` is that time. The value that is carried in is the last earlier sample, in whichever window. Of
several samples at one time the last by sample key counts. Larger windows sum those of their children, so that
their mean is one over the base windows that hold a sample. Percentiles, moments and plain means weigh samples
alike, however long they hold.

A bad sample is in no figure, and ends how long the value before it holds: from it to the next good one nothing is
covered. A window with only bad samples has a row, too: it says that something came, and that no value is carried
further. Its ``count_n`` is 0 and its figures are NaN. ``sample_quality.py`` says what is counted.

Which rows are read and where windows are stored is not decided here. There is no clock: whether a window is
final is a view's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.windows.sample_quality import Counts, choose, count_samples, find_late, sum_flags
from analytics_pipeline.assets.windows.window_columns import WINDOW_SCHEMA, EveryWindow, Figures, window_frame
from analytics_pipeline.domains.base import BAD
from analytics_pipeline.formulas import moments, rank_sketch
from analytics_pipeline.formulas.as_of import last_at, order_by

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MICROS = 1_000_000
#: The columns that merging windows needs in order.
_MERGED: tuple[str, ...] = ("bucket_start_us", "series_id", "count_n", "avg_val", "m2", "min_val", "max_val", "base_n")
_MERGED += ("first_val", "first_time_us", "last_val", "last_time_us", "tw_integral", "tw_covered_s")


@dataclass(frozen=True, slots=True)
class EarlierSamples:
    """Samples that may be carried into a window: columns of one length, in any order.

    For each series and each contiguous stretch of computed windows, the last sample before the stretch, if it
    is not older than the longest gap; more samples do no harm, as the last one before a window is found here.
    Stored windows tell them: (series_id, last_time_us, last_val, ends_bad). Never of a window that the same call
    computes: that row may be out of date. NaN: a bad sample, after which nothing is carried.
    """

    series_id: Ints
    time_us: Ints
    value: Floats

    @classmethod
    def of_windows(cls, windows: pl.DataFrame) -> EarlierSamples:
        """The last samples of stored windows: series_id, last_time_us, last_val, ends_bad."""
        series, time_us, value = (windows[name].to_numpy() for name in ("series_id", "last_time_us", "last_val"))
        return cls(series.astype(np.int64), time_us, np.where(windows["ends_bad"].to_numpy(), np.nan, value))

    @classmethod
    def none(cls) -> EarlierSamples:
        """Nothing is carried in from before the measurements given."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def base_windows(
    series_id: npt.NDArray[np.signedinteger],
    time_us: Ints,
    sample_key: Ints,
    value: Floats,
    base_s: int,
    *,
    longest_gap_us: int | Ints,
    earlier: EarlierSamples,
    quality: npt.NDArray[np.signedinteger] | None = None,
    kafka_time_us: Ints | None = None,
    allowed_lateness_us: int = 0,
) -> pl.DataFrame:
    """The base windows of measurements in any order, of any hours.

    Args:
        series_id, time_us, sample_key, value: columns of one length; together the first three are unique.
            Values that are not bad are finite; up to `moments.LARGEST_VALUE` every figure is. Each window that has
            a measurement here has all its measurements here.
        base_s: window size, seconds.
        longest_gap_us: how long a value holds, microseconds; one for all, or for each measurement that of its
            series. With 0 nothing is covered.
        earlier: what may be carried in, beyond the measurements given.
        quality: of each measurement, as `domains.base` numbers it; None: all are good.
        kafka_time_us, allowed_lateness_us: tell what is late; None: nothing is.

    Returns:
        `WINDOW_SCHEMA`, one row for each window with a sample, sorted by (bucket_start_us, series_id).

    Raises:
        ValueError: NaN or infinity among the values that are not bad.
    """
    if not len(value):
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    size_us = base_s * MICROS
    order, bucket, series, time, value, gap = _in_order(
        series_id, time_us, sample_key, value, longest_gap_us, size_us
    )
    starts = _group_starts(bucket, series)
    start_us = bucket[starts] * size_us
    late = None if kafka_time_us is None else find_late(time_us, kafka_time_us, size_us, allowed_lateness_us)
    quality = quality[order] if quality is not None and quality.any() else None
    bad = quality == BAD if quality is not None and BAD in quality else None
    windows = EveryWindow(
        size_s=base_s,
        start_us=start_us,
        series_id=series[starts],
        weighted=_time_weighted(value, time, gap, bad, series, starts, start_us, size_us, earlier),
        counts=count_samples(quality, None if late is None else late[order], starts),
        ends_bad=np.zeros(len(starts), np.bool_) if bad is None else bad[_ends(starts, len(bad))],
    )
    if bad is None:
        return window_frame(windows, _of_samples(value, time, starts), None)
    good = choose(starts, ~bad)
    return window_frame(windows, _of_samples(value[good.rows], time[good.rows], good.starts), good)


def _of_samples(value: Floats, time: Ints, starts: Ints) -> Figures:
    """The figures of slices of good samples, in order of time."""
    ends = _ends(starts, len(value))
    minimum, maximum = np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)
    return Figures(
        moment=moments.from_values(value, starts, minimum, maximum),
        ends=(minimum, maximum),
        first=(value[starts], time[starts]),
        last=(value[ends], time[ends]),
        base_n=np.ones(len(starts), np.int64),
        base_fits=1,
        sketches=rank_sketch.from_values(value, starts),
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
    rows = {name: frame[name].to_numpy()[order] for name in _MERGED}
    bucket = bucket_all[order]
    starts = _group_starts(bucket, rows["series_id"])
    # Whole microseconds are summed exactly; the integral in the order of time.
    covered_us = np.add.reduceat(np.rint(rows["tw_covered_s"] * MICROS).astype(np.int64), starts)
    windows = EveryWindow(
        size_s=size_s,
        start_us=bucket[starts] * size_us,
        series_id=rows["series_id"][starts],
        weighted=(np.add.reduceat(rows["tw_integral"], starts), covered_us / MICROS),
        counts=Counts(*(sum_flags(frame[name].to_numpy(), starts, order) for name in Counts._fields)),
        ends_bad=frame["ends_bad"].to_numpy()[order[_ends(starts, len(bucket))]],
    )
    sketches = frame["sketch"].gather(order)
    if rows["count_n"].all():
        return window_frame(windows, _of_windows(rows, sketches, starts, size_s // finest_s), None)
    good = choose(starts, rows["count_n"] > 0)
    rows = {name: column[good.rows] for name, column in rows.items()}
    return window_frame(windows, _of_windows(rows, sketches.gather(good.rows), good.starts, size_s // finest_s), good)


def _of_windows(
    rows: dict[str, npt.NDArray[Any]], encoded: pl.Series, starts: Ints, base_fits: int
) -> Figures:
    """The figures of slices of windows that hold good samples, in order of time."""
    sketches = rank_sketch.decode(encoded.to_list())
    ends = _ends(starts, len(encoded))
    minimum = np.minimum.reduceat(rows["min_val"], starts)
    maximum = np.maximum.reduceat(rows["max_val"], starts)
    parts = moments.Moments(rows["count_n"], rows["avg_val"], rows["m2"])
    return Figures(
        moment=moments.from_parts(parts, starts, minimum, maximum),
        ends=(minimum, maximum),
        first=(rows["first_val"][starts], rows["first_time_us"][starts]),
        last=(rows["last_val"][ends], rows["last_time_us"][ends]),
        base_n=np.add.reduceat(rows["base_n"].astype(np.int64), starts),
        base_fits=base_fits,
        sketches=rank_sketch.merge(sketches, starts),
    )


def time_weighted_mean(tw_integral: Floats, tw_covered_s: Floats) -> Floats:
    """Integral over covered time; NaN, that is unknown, where nothing is covered."""
    known = tw_covered_s > 0
    return np.where(known, tw_integral / np.where(known, tw_covered_s, 1.0), np.nan)


def carried_into(
    changed_series: Ints,
    changed_start_us: Ints,
    series: Ints,
    start_us: Ints,
    *,
    base_s: int,
    longest_gap_us: int | Ints,
) -> npt.NDArray[np.bool_]:
    """Which base windows may be out of date because an earlier window's last sample changed.

    That is, of each changed window the series' next window that holds a sample, if it begins within the longest
    gap after the changed one's end: its carried-in value comes, or came, from there. It matters nothing whether
    the changed window was added, removed or replaced. If no last sample changed (its time and value), no
    window is reached; a window that is recomputed by this keeps its last sample, so that it reaches no further.

    Args:
        changed_series, changed_start_us: the windows whose last sample changed.
        series, start_us: the windows that hold a sample and may follow: those within a gap and one window after
            any changed one suffice, also of series that did not change. Unique, in any order.
        longest_gap_us: one for all, or for each of ``series`` its own.

    Returns:
        for each of ``series`` whether it is reached. Windows that the caller has just computed may be among them.
    """
    order = order_by(changed_series, changed_start_us)
    changed_series, changed_start_us = changed_series[order], changed_start_us[order]
    changed = last_at(series, start_us - 1, changed_series, changed_start_us)
    within = order_by(series, start_us)
    before = last_at(series, start_us - 1, series[within], start_us[within])
    if not len(changed_series) or not len(series):
        return np.zeros(len(series), np.bool_)
    changed_us = changed_start_us[changed]
    is_next = (before < 0) | (start_us[within][before] <= changed_us)
    reaches: npt.NDArray[np.bool_] = start_us - (changed_us + base_s * MICROS) < longest_gap_us
    return (changed >= 0) & is_next & reaches


def _carried_in(
    series: Ints, start_us: Ints, last: tuple[Floats, Ints], earlier: EarlierSamples
) -> tuple[Floats, Ints, npt.NDArray[np.bool_]]:
    """For each window the value and time of the last sample before it, and whether there is one that is not bad."""
    known_series = np.concatenate([np.asarray(earlier.series_id, np.int64), series])
    known_time = np.concatenate([np.asarray(earlier.time_us, np.int64), last[1]])
    known_value = np.concatenate([np.asarray(earlier.value, np.float64) + 0.0, last[0]])
    order = order_by(known_series, known_time)
    at = last_at(series, start_us - 1, known_series[order], known_time[order])
    value = known_value[order][at]
    return value, known_time[order][at], (at >= 0) & ~np.isnan(value)


def _time_weighted(
    value: Floats,
    time: Ints,
    gap: Ints,
    bad: npt.NDArray[np.bool_] | None,
    series: Ints,
    starts: Ints,
    start_us: Ints,
    size_us: int,
    earlier: EarlierSamples,
) -> tuple[Floats, Floats]:
    """``tw_integral`` and ``tw_covered_s`` of each window, from samples in order of time within each."""
    ends = _ends(starts, len(time))
    until = np.append(time[1:], 0)
    until[ends] = start_us + size_us
    held_us = np.minimum(until - time, gap)
    last = value[ends]
    if bad is not None:
        held_us[bad], value, last = 0, np.where(bad, 0.0, value), np.where(bad[ends], np.nan, last)
    carried_value, carried_time, known = _carried_in(series[starts], start_us, (last, time[ends]), earlier)
    carried_until = np.minimum(time[starts], carried_time + gap[starts])
    carried_us = np.where(known, np.maximum(carried_until - start_us, 0), 0)
    covered_us = np.add.reduceat(held_us, starts) + carried_us
    integral = np.add.reduceat(value * held_us, starts) + np.where(known, carried_value, 0.0) * carried_us
    # Minus zero, from a negative value that holds no time, would tell of what does not count.
    return integral / MICROS + 0.0, covered_us / MICROS


def _check_sizes(frame: pl.DataFrame, size_s: int, finest_s: int) -> None:
    sizes = frame["window_s"].unique().to_list()
    if len(sizes) != 1 or size_s % sizes[0] or size_s % finest_s:
        raise ValueError(
            f"windows of {size_s} s merge rows of one size that divides it and a base window that does; "
            f"got rows of {sorted(sizes)} s and a base window of {finest_s} s"
        )


def _group_starts(bucket: Ints, series: npt.NDArray[np.signedinteger]) -> Ints:
    """Where each (bucket, series) begins in sorted columns."""
    new = (bucket[1:] != bucket[:-1]) | (series[1:] != series[:-1])
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(new) + 1])


def _ends(starts: Ints, rows: int) -> Ints:
    """Where each group ends: its last row. None where there is no row."""
    return np.append(starts[1:], rows)[: len(starts)] - 1


def _in_order(
    series_id: npt.NDArray[np.signedinteger],
    time_us: Ints,
    sample_key: Ints,
    value: Floats,
    longest_gap_us: int | Ints,
    size_us: int,
) -> tuple[Ints, Ints, Ints, Ints, Floats, Ints]:
    """The order by (bucket, series, time, sample key); bucket, series, time, value and gap of each in it."""
    # Minus zero would make a minimum depend on which of two equal zeros came first.
    value = np.asarray(value, np.float64) + 0.0
    series, bucket = np.asarray(series_id, np.int64), np.floor_divide(time_us, size_us)
    order = _time_order(bucket, series, time_us - bucket * size_us, sample_key, value)
    gap = np.broadcast_to(np.asarray(longest_gap_us, np.int64), len(value))
    return order, bucket[order], series[order], time_us[order], value[order], gap[order]


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
