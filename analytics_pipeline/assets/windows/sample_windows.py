"""The windows of samples, as one of the tables of the asset: computed from measurements; what a change makes stale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Key, Parts, Work
from analytics_pipeline.assets.windows.base_level import (
    base_level,
    first_windows,
    hours_reached,
    stale_in_other_hours,
    with_domain,
)
from analytics_pipeline.assets.windows.levels import Sizes
from analytics_pipeline.assets.windows.spec import TABLE
from analytics_pipeline.assets.windows.transform import merge_windows
from analytics_pipeline.assets.windows.window_table import Rows, WindowTable, Write, longer_windows, part_of
from analytics_pipeline.records import HOUR, HOUR_S, DerivedName
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope


class SampleWindows(WindowTable):
    """Figures per series and window."""

    kind = "samples"

    def compute(self, context: Context, works: Sequence[Work]) -> list[Rows]:
        fed = self.fed(works)
        base = base_level(context, fed, context.settings.base_window_s)
        return [Rows(TABLE, *Sizes(TABLE, _merged).levels(context, fed, base))]

    def stale(self, context: Context, write: Write) -> list[Invalidation]:
        (done,) = write.of(TABLE)
        fed = self.fed(write.works)
        base_s = context.settings.base_window_s
        before, after = (rows.filter(pl.col("window_s") == base_s) for rows in (done.stored, done.wanted))
        return [
            *stale_after(context, fed, Parts(fed), done.replaced.changed),
            *_stale_beside_withheld(context, write.works, write.withheld),
            *stale_in_other_hours(context, fed, before, after, base_s),
        ]


def _merged(children: pl.DataFrame, size_s: int, base_s: int) -> pl.DataFrame:
    return with_domain(merge_windows(children.drop("domain_id"), size_s, finest_s=base_s), children)


# ---------------------------------------------------------------------- what becomes stale


def stale_after(
    context: Context, works: Sequence[Work], parts: Parts, changed: pl.DataFrame
) -> list[Invalidation]:
    """What changed windows make stale: anomalies and KPIs of their hour, anomalies of later hours within the
    look-back."""
    base_s = context.settings.base_window_s
    base = changed.filter(pl.col("window_s") == base_s)
    part = part_of(parts, base)
    found: list[Invalidation] = []
    later: list[tuple[Key, timedelta, Scope]] = []
    for at in np.unique(part).tolist():
        work, mine = works[at], base.filter(pl.Series(part == at))
        series = _series_scope(mine, context.series.count(work.domain_id))
        first_s = int(mine["bucket_start_us"].min() - work.hour_us) // 1_000_000
        found.append(_invalid("anomalies", work, Scope(series=series, spans=((first_s, HOUR_S),))))
        found.append(_invalid("kpis", work, Scope(series=series, spans=((0, HOUR_S),))))
        reach = max((one.look_back for one in work.domain.detectors), default=timedelta())
        if reach:
            later.append((work.key, reach, Scope(series=series, spans=((0, HOUR_S),))))
    found += _later_hours(context, later)
    return found


def _stale_beside_withheld(
    context: Context, works: Sequence[Work], withheld: Mapping[int, tuple[int, ...]]
) -> list[Invalidation]:
    """What this slice computed from windows that it then withheld: it is computed again, from those that are stored."""
    by_key = {work.key: work for work in works}
    found: list[Invalidation] = []
    for at, series in withheld.items():
        work = works[at]
        for step in range(1, hours_reached(work) + 1):
            later = (work.domain_id, work.hour + HOUR * step)
            if later in by_key:
                found.append(first_windows(later, work, series, context.settings.base_window_s))
        found += longer_windows(context, work)
    return found


def _invalid(asset: DerivedName, work: Work, scope: Scope) -> Invalidation:
    return Invalidation(
        asset=asset,
        domain_id=work.domain_id,
        hour=work.hour,
        scope=scope,
        reason="windows",
    )


def _series_scope(frame: pl.DataFrame, known: int) -> tuple[int, ...] | None:
    series = frame["series_id"].unique().sort()
    return None if len(series) > min(MAX_SERIES, 0.1 * known) else tuple(series.to_list())


def _later_hours(context: Context, reaches: Sequence[tuple[Key, timedelta, Scope]]) -> list[Invalidation]:
    """The later hours that hold windows, within each look-back; an hour once for each scope that reaches it."""
    wanted = {
        (key[0], key[1] + HOUR * step) for key, reach, _ in reaches for step in range(1, -(-reach // HOUR) + 1)
    }
    holding = context.holding_rows(sorted(wanted))
    found: dict[tuple[Key, Scope], Invalidation] = {}
    for key, reach, scope in reaches:
        for step in range(1, -(-reach // HOUR) + 1):
            later = (key[0], key[1] + HOUR * step)
            if later in holding:
                found[later, scope] = Invalidation(
                    asset="anomalies", domain_id=later[0], hour=later[1], scope=scope, reason="look-back"
                )
    return list(found.values())


