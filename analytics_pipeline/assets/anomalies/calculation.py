"""window_aggregates to anomalies: the detectors look at base windows, each against its own stored past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.anomalies.spec import SPEC, TABLE
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
from analytics_pipeline.assets.windows import rows as windows
from analytics_pipeline.assets.windows.spec import TABLE as WINDOWS
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.formulas.limits import spans
from analytics_pipeline.records import Region, from_us
from analytics_pipeline.stages.anomalies import detect
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import Invalidation, Scope

_JUDGED = ("bucket_start", "window_s", "series_id", "count_n", "avg_val", "min_val", "max_val")


class AnomalyCalculation:
    """Asks each domain's detectors about its windows."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        regions = area.disjoint(region for work in works for region in work.regions())
        domains = {work.domain_id: work.domain for work in works}
        found = [_detect(context, domains[region.domain_id], region) for region in regions]
        frame = pl.concat(found) if found else TABLE.empty()
        parts = Parts(works)
        part = _part_of(parts, frame)
        gate = context.gate(frame, [work.domain for work in works])
        return Computed(
            validated={
                work.key: Validated(gate=verdict, rows_seen=verdict.rows, rows_failed=len(verdict.reasons))
                for work, verdict in zip(works, split_gate(gate, part, works), strict=True)
            },
            write=partial(_write, context, works, regions, frame, parts),
        )


def _detect(context: Context, domain: Domain, region: Region) -> pl.DataFrame:
    """The anomalies among the windows of one region."""
    if not domain.detectors:
        return TABLE.empty()
    base_s = context.settings.base_window_s
    targets = table_io.read_regions(context.connection, WINDOWS, [region], names=_JUDGED, window_s=base_s)
    if targets.is_empty():
        return TABLE.empty()
    series = targets["series_id"].unique().sort()
    history = windows.read_history(
        context.connection,
        series.to_list(),
        base_s,
        from_us(region.begins_us),
        max(one.look_back for one in domain.detectors),
        max(one.baseline_windows for one in domain.detectors),
    )
    names = context.series.frame(region.domain_id, series)
    limits = spans(names.filter(pl.col("series_id").is_in(series.implode())), context.limits())
    given = pl.concat(
        [
            targets.with_columns(pl.lit(value=True).alias("is_target")),
            history.with_columns(pl.lit(value=False).alias("is_target")),
        ],
        how="diagonal",
    )
    found = detect(given, limits, domain.detectors)
    return (
        found.with_columns(pl.lit(region.domain_id, pl.Int32).alias("domain_id"))
        .select(list(TABLE.schema()))
        .cast(TABLE.schema())  # type: ignore[arg-type]
    )


def _part_of(parts: Parts, frame: pl.DataFrame) -> Ints:
    return parts.of(frame["domain_id"].to_numpy(), frame["bucket_start_us"].to_numpy())


def _write(
    context: Context,
    works: Sequence[Work],
    regions: Sequence[Region],
    frame: pl.DataFrame,
    parts: Parts,
    accepted: frozenset[Key],
) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
    may = np.array([work.key in accepted for work in works])
    stored = table_io.read_regions(context.connection, TABLE, regions)
    stored = stored.filter(pl.Series(may[_part_of(parts, stored)], dtype=pl.Boolean))
    wanted = frame.filter(pl.Series(may[_part_of(parts, frame)], dtype=pl.Boolean))
    done = table_io.replace(context.connection, TABLE, stored, wanted)
    added, removed = (parts.counts(_part_of(parts, rows)) for rows in (done.added, done.removed))
    computed = parts.counts(_part_of(parts, wanted))
    results = {
        work.key: Written(rows=work.state.rows + added[at] - removed[at], written=computed[at])
        for at, work in enumerate(works)
        if work.key in accepted
    }
    return results, list(_stale(works, done.changed, _part_of(parts, done.changed)))


def _stale(works: Sequence[Work], changed: pl.DataFrame, part: Ints) -> Iterator[Invalidation]:
    for at in np.unique(part).tolist():
        series = changed.filter(pl.Series(part == at))["series_id"].unique().sort().to_list()
        yield Invalidation(
            asset="kpis",
            domain_id=works[at].domain_id,
            hour=works[at].hour,
            scope=Scope(series=tuple(series), spans=((0, 3600),)),
            reason="anomalies",
        )
