"""window_aggregates and anomalies to kpis: the hour of each machine, from its base windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.anomalies.spec import TABLE as ANOMALIES
from analytics_pipeline.assets.calculation import (
    Computed,
    Context,
    Ints,
    Key,
    Parts,
    Validated,
    Work,
    Written,
    split_gate,
)
from analytics_pipeline.assets.kpis.spec import SPEC, TABLE
from analytics_pipeline.assets.kpis.transform import machine_kpis
from analytics_pipeline.assets.windows.spec import TABLE as WINDOWS
from analytics_pipeline.formulas.limits import spans
from analytics_pipeline.records import HOUR_S, HOUR_US, Region
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import Invalidation
from analytics_pipeline.storage.series import MACHINE, read_machines

_WINDOWS = ("domain_id", "bucket_start", "series_id", "count_n", "min_val", "max_val")
_ANOMALIES = ("domain_id", "bucket_start", "series_id")
_MACHINE = list(MACHINE)


class KpiCalculation:
    """Sums the hour of each machine that has something new."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        machines = {work.key: _machines(context, work) for work in works}
        frame = _compute(context, works, machines)
        parts = Parts(works)
        part = _part_of(parts, frame)
        gate = context.gate(frame, [work.domain for work in works])
        return Computed(
            validated={
                work.key: Validated(gate=result, rows_seen=result.rows, rows_failed=len(result.reasons))
                for work, result in zip(works, split_gate(gate, part, works), strict=True)
            },
            write=partial(_write, context, works, machines, frame, parts),
        )


def _machines(context: Context, work: Work) -> pl.DataFrame | None:
    """The series of the machines that have something new; None: all of the domain."""
    scoped = None if work.whole or work.pending is None else work.pending
    if scoped is None or scoped.spans:
        return None
    wanted = pl.Series("series_id", [*scoped.series, *scoped.whole_series], pl.Int64)
    names = context.series.frame(work.domain_id, wanted)
    touched = names.filter(pl.col("series_id").is_in(wanted.implode())).select(_MACHINE).unique().rows()
    return read_machines(context.connection, work.domain_id, touched)


def _compute(context: Context, works: Sequence[Work], machines: Mapping[Key, pl.DataFrame | None]) -> pl.DataFrame:
    base_s = context.settings.base_window_s
    regions = area.disjoint(_regions(work, machines[work.key]) for work in works)
    windows = table_io.read_regions(context.connection, WINDOWS, regions, names=_WINDOWS, window_s=base_s)
    if windows.is_empty():
        return TABLE.empty()
    anomalies = table_io.read_regions(context.connection, ANOMALIES, regions, names=_ANOMALIES)
    series = pl.concat(_named(context, domain_id, windows) for domain_id in windows["domain_id"].unique().to_list())
    found = machine_kpis(windows, series, anomalies, spans(series, context.limits()), base_s=base_s)
    return found.select(list(TABLE.schema())).cast(TABLE.schema())  # type: ignore[arg-type]


def _named(context: Context, domain_id: int, windows: pl.DataFrame) -> pl.DataFrame:
    """Names of the series of a domain that have windows."""
    its = windows.filter(pl.col("domain_id") == domain_id)["series_id"].unique()
    names = context.series.frame(domain_id, its).filter(pl.col("series_id").is_in(its.implode()))
    return names.with_columns(pl.lit(domain_id, pl.Int32).alias("domain_id"))


def _regions(work: Work, machines: pl.DataFrame | None) -> Region:
    series = None if machines is None else tuple(machines["series_id"].sort().to_list())
    return Region(work.domain_id, work.hour_us, work.hour_us + HOUR_US, series)


def _part_of(parts: Parts, frame: pl.DataFrame) -> Ints:
    return parts.of(frame["domain_id"].to_numpy(), frame["bucket_start_us"].to_numpy())


def _write(
    context: Context,
    works: Sequence[Work],
    machines: Mapping[Key, pl.DataFrame | None],
    frame: pl.DataFrame,
    parts: Parts,
    accepted: frozenset[Key],
) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
    may = np.array([work.key in accepted for work in works])
    wanted = frame.filter(pl.Series(may[_part_of(parts, frame)], dtype=pl.Boolean))
    stored = _stored(context, [work for work in works if work.key in accepted and work.state.rows], machines)
    done = table_io.replace(context.connection, TABLE, stored, wanted)
    added, removed = (parts.counts(_part_of(parts, rows)) for rows in (done.added, done.removed))
    computed = parts.counts(_part_of(parts, wanted))
    return {
        work.key: Written(rows=work.state.rows + added[at] - removed[at], written=computed[at])
        for at, work in enumerate(works)
        if work.key in accepted
    }, []


def _stored(context: Context, works: Sequence[Work], machines: Mapping[Key, pl.DataFrame | None]) -> pl.DataFrame:
    """The stored KPIs of the hours, of the machines that were computed. Longer periods are not among them."""
    regions = area.joined(_regions(work, None) for work in works)
    stored = table_io.read_regions(context.connection, TABLE, regions, window_s=HOUR_S)
    some = [work for work in works if machines[work.key] is not None]
    if not some or stored.is_empty():
        return stored
    part = _part_of(Parts(works), stored)
    frames = []
    for at, work in enumerate(works):
        its, chosen = stored.filter(pl.Series(part == at, dtype=pl.Boolean)), machines[work.key]
        if chosen is not None:
            its = its.join(chosen.select(_MACHINE).unique(), on=_MACHINE, how="semi", nulls_equal=True)
        frames.append(its)
    return pl.concat(frames)
