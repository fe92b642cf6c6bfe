"""window_aggregates to anomalies: the detectors look at base windows, each against its own stored past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.anomalies.spec import SPEC, TABLE
from analytics_pipeline.assets.anomalies.transform import detect
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
from analytics_pipeline.assets.windows import table as windows
from analytics_pipeline.assets.windows.spec import TABLE as WINDOWS
from analytics_pipeline.detectors.base import Detector
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.formulas.limits import spans
from analytics_pipeline.records import Region, from_us
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import Invalidation, Scope

_TARGET_COLUMNS = ("domain_id", "bucket_start", "window_s", "series_id", "count_n", "avg_val", "min_val", "max_val")


class AnomalyCalculation:
    """Asks each domain's detectors about its windows."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        regions = area.disjoint(region for work in works for region in work.regions())
        domains = {work.domain_id: work.domain for work in works}
        found = [_detect(context, domains, alike) for alike in _alike(regions, domains)]
        frame = pl.concat(found) if found else TABLE.empty()
        parts = Parts(works)
        part = _part_of(parts, frame)
        gate = context.gate(frame, [work.domain for work in works])
        return Computed(
            validated={
                work.key: Validated(gate=result, rows_seen=result.rows, rows_failed=len(result.reasons))
                for work, result in zip(works, split_gate(gate, part, works), strict=True)
            },
            write=partial(_write, context, works, regions, frame, parts),
        )


def _alike(regions: Sequence[Region], domains: Mapping[int, Domain]) -> list[list[Region]]:
    """The regions that one call can look at: of the same span of time, of domains with the same detectors."""
    groups: dict[tuple[int, int, tuple[Detector, ...]], list[Region]] = {}
    for region in regions:
        detectors = domains[region.domain_id].detectors
        if detectors:
            groups.setdefault((region.begins_us, region.ends_us, detectors), []).append(region)
    return list(groups.values())


def _detect(context: Context, domains: Mapping[int, Domain], regions: Sequence[Region]) -> pl.DataFrame:
    """The anomalies among the windows of some regions that are alike."""
    base_s, detectors = context.settings.base_window_s, domains[regions[0].domain_id].detectors
    targets = table_io.read_regions(context.connection, WINDOWS, regions, names=_TARGET_COLUMNS, window_s=base_s)
    targets = targets.filter(pl.col("count_n") > 0)  # windows with only bad samples have nothing to evaluate
    if targets.is_empty():
        return TABLE.empty()
    series = targets.select("domain_id", "series_id").unique().sort("domain_id", "series_id")
    history = windows.read_history(
        context.connection,
        series["series_id"].to_list(),
        base_s,
        from_us(regions[0].begins_us),
        max(one.look_back for one in detectors),
        max(one.baseline_windows for one in detectors),
    )
    given = pl.concat(
        [
            targets.drop("domain_id").with_columns(pl.lit(value=True).alias("is_target")),
            history.with_columns(pl.lit(value=False).alias("is_target")),
        ],
        how="diagonal",
    )
    found = detect(given, spans(context.named(series), context.limits()), detectors)
    return (
        found.join(series, on="series_id", how="left", maintain_order="left")
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
