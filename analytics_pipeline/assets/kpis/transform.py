"""KPIs of machines by the hour, of many domains and hours at once. Pure: no SQL, Dagster or clock.

Base windows, anomalies and limits in, one row per domain, hour, machine and KPI out.

=================  ==================================================  ==================================
kpi                numerator                                           denominator
=================  ==================================================  ==================================
``messages``       measurements that are not bad                       none: the value is the count
``coverage``       base windows in which the machine has such a one    base windows in an hour
``anomalies``      anomalies of all its series                         none: the value is the count
``share_in_spec``  windows of a series wholly inside their limits      windows of a series with limits
=================  ==================================================  ==================================

Numerator and denominator are stored, so that a shift's or a day's KPI sums them and never averages ratios.
Unknown is not zero: without limits there is no share in specification, but NULL and the reason. Windows with only
bad samples count nowhere: a machine that has no others in the hour has no row. KPIs that need states, counts or
shifts will have files of their own.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics_pipeline.formulas.limits import in_force
from analytics_pipeline.records import HOUR_S, HOUR_US

KPI_SCHEMA: dict[str, pl.DataType] = {
    "bucket_start_us": pl.Int64(),
    "window_s": pl.Int32(),
    "domain_id": pl.Int32(),
    "tenant_id": pl.String(),
    "factory_id": pl.String(),
    "machine_id": pl.String(),
    "kpi": pl.String(),
    "value": pl.Float64(),
    "numerator": pl.Float64(),
    "denominator": pl.Float64(),
    "unit": pl.String(),
    "reason": pl.String(),
}

NO_SPEC_LIMITS = "no_spec_limits"
_MACHINE = ("tenant_id", "factory_id", "machine_id")
_GROUP = ("domain_id", "hour_us", *_MACHINE)
_COUNTS = {"messages": "count_n", "anomalies": "anomalies"}
_RATIOS = {"coverage": ("covered", "fits", None), "share_in_spec": ("inside", "limited", NO_SPEC_LIMITS)}


def machine_kpis(
    windows: pl.DataFrame,
    series: pl.DataFrame,
    anomalies: pl.DataFrame,
    limits: pl.DataFrame,
    *,
    base_s: int,
) -> pl.DataFrame:
    """The KPIs of every machine in every hour in which it has a window.

    Args:
        windows: all base windows of whole hours: bucket_start_us, series_id, count_n, min_val, max_val.
        series: series_id, domain_id, tenant_id, factory_id, machine_id; each series once. Series without a
            machine form one group of their factory.
        anomalies: of the same hours: bucket_start_us, series_id, one row each. Those of hours and machines
            without a window do not count.
        limits: as `formulas.limits.in_force` takes them.
        base_s: size of a base window, seconds; divides an hour.

    More columns are welcome in each frame, and rows may come in any order.

    Returns:
        `KPI_SCHEMA`, sorted by domain_id, bucket_start_us, machine and kpi. A row depends on the rows of its
        domain, hour and machine alone.

    Raises:
        ValueError: windows of a series that is not given.
    """
    windows = windows.filter(pl.col("count_n") > 0)
    if windows.is_empty():
        return pl.DataFrame(schema=KPI_SCHEMA)
    _check(windows, series)
    sums = _sums(windows, series, anomalies, limits, HOUR_S // base_s)
    return (
        pl.concat([*_counts(sums), *_ratios(sums)])
        .with_columns(pl.lit(HOUR_S).alias("window_s"), pl.lit("1").alias("unit"))
        .rename({"hour_us": "bucket_start_us"})
        .select(pl.col(name).cast(kind) for name, kind in KPI_SCHEMA.items())
        .sort("domain_id", "bucket_start_us", *_MACHINE, "kpi")
    )


def _sums(
    windows: pl.DataFrame, series: pl.DataFrame, anomalies: pl.DataFrame, limits: pl.DataFrame, fits: int
) -> pl.DataFrame:
    """One row per domain, hour and machine, with the columns that `_COUNTS` and `_RATIOS` name."""
    machine_of = series.select("series_id", "domain_id", *_MACHINE)
    hour = (pl.col("bucket_start_us") // HOUR_US * HOUR_US).alias("hour_us")
    sums = (
        windows.select("series_id", "bucket_start_us", "count_n", hour)
        .with_columns(_spec_columns(windows, limits))
        .join(machine_of, on="series_id")
        .group_by(_GROUP)
        .agg(
            pl.col("count_n").sum(),
            pl.col("bucket_start_us").n_unique().alias("covered"),
            pl.col("inside").sum(),
            pl.col("limited").sum(),
        )
    )
    flagged = (
        anomalies.select("series_id", hour)
        .join(machine_of, on="series_id")
        .group_by(_GROUP)
        .agg(pl.len().alias("anomalies"))
    )
    return sums.join(flagged, on=_GROUP, how="left", nulls_equal=True).with_columns(
        pl.col("anomalies").fill_null(0), pl.lit(fits).alias("fits")
    )


def _check(windows: pl.DataFrame, series: pl.DataFrame) -> None:
    unknown = windows.join(series, on="series_id", how="anti")
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} windows of series that are not given, the first of series "
            f"{unknown['series_id'][0]}: read the dimension after the windows"
        )


def _spec_columns(windows: pl.DataFrame, limits: pl.DataFrame) -> list[pl.Series]:
    """Whether each window has limits, and whether it lies wholly inside them."""
    lsl, usl = in_force(
        windows["series_id"].to_numpy().astype(np.int64), windows["bucket_start_us"].to_numpy(), limits
    )
    limited = ~(np.isnan(lsl) & np.isnan(usl))
    outside = (windows["min_val"].to_numpy() < lsl) | (windows["max_val"].to_numpy() > usl)
    return [pl.Series("limited", limited), pl.Series("inside", limited & ~outside)]


def _counts(sums: pl.DataFrame) -> list[pl.DataFrame]:
    return [
        sums.select(
            *_GROUP,
            pl.lit(kpi).alias("kpi"),
            pl.col(column).cast(pl.Float64).alias("value"),
            pl.col(column).cast(pl.Float64).alias("numerator"),
            pl.lit(None, pl.Float64).alias("denominator"),
            pl.lit(None, pl.String).alias("reason"),
        )
        for kpi, column in _COUNTS.items()
    ]


def _ratios(sums: pl.DataFrame) -> list[pl.DataFrame]:
    return [
        sums.select(
            *_GROUP,
            pl.lit(kpi).alias("kpi"),
            _quotient(sums, over, under),
            pl.col(over).cast(pl.Float64).alias("numerator"),
            pl.col(under).cast(pl.Float64).alias("denominator"),
            pl.when(pl.col(under) == 0).then(pl.lit(reason, pl.String)).alias("reason"),
        )
        for kpi, (over, under, reason) in _RATIOS.items()
    ]


def _quotient(sums: pl.DataFrame, over: str, under: str) -> pl.Series:
    """NULL where there is nothing to divide by. By numpy: Polars divides by a column of equal values through its
    reciprocal, so that the last bit would depend on which other machines are computed with this one."""
    numerator, denominator = sums[over].to_numpy().astype(np.float64), sums[under].to_numpy().astype(np.float64)
    known = denominator > 0
    value = np.divide(numerator, denominator, out=np.zeros(len(sums)), where=known)
    return pl.Series("value", value).set(pl.Series(~known), None)
