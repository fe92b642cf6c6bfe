"""normalized_measurements to window_aggregates: base windows from measurements, each larger size from a smaller.

A change goes up the sizes: the windows that hold a changed window are merged again, from stored windows and the new
ones. Which size a size is merged from is fixed by the settings, so that live and rebuild give one figure, to the
last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import (
    LONGER_WINDOWS,
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
from analytics_pipeline.assets.windows import table
from analytics_pipeline.assets.windows.base_level import (
    base_level,
    first_windows,
    hours_reached,
    stale_in_other_hours,
    with_domain,
)
from analytics_pipeline.assets.windows.spec import SPEC, TABLE
from analytics_pipeline.assets.windows.transform import merge_windows
from analytics_pipeline.records import HOUR, HOUR_S, HOUR_US, DerivedName, Region, from_us
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope, merged_spans

#: Base windows of one live slice above which the larger windows lag: merging those costs more than all else then.
LAG_ABOVE_WINDOWS = 2_000


@dataclass(frozen=True)
class _Level:
    """Windows of one size, and the regions that they stand for: what is not there has no sample."""

    size_s: int
    frame: pl.DataFrame
    regions: list[Region]


class WindowCalculation:
    """Computes the windows that a scope names, and those above them."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        levels, lagging = self._levels(context, works)
        frame = pl.concat([level.frame for level in levels]) if levels else TABLE.empty()
        parts = Parts(works)
        part = parts.of(frame["domain_id"].to_numpy(), frame["bucket_start_us"].to_numpy())
        domains = [work.domain for work in works]
        gate = context.gate(frame, domains)
        withheld = _withheld(frame, part, gate.reasons)
        validated = {
            work.key: Validated(
                gate=result,
                rows_seen=result.rows,
                rows_failed=len(result.reasons),
                withheld_series=withheld.get(at, ()),
            )
            for at, (work, result) in enumerate(zip(works, split_gate(gate, part, works), strict=True))
        }
        return Computed(
            validated=validated, write=partial(self._write, context, works, levels, lagging, frame, part, withheld)
        )

    # ------------------------------------------------------------------ computing

    def _levels(self, context: Context, works: Sequence[Work]) -> tuple[list[_Level], list[Region]]:
        """What is computed, by size; and the regions whose windows above the base are left for later."""
        base_s = context.settings.base_window_s
        computed = base_level(context, works, base_s)
        base = _Level(base_s, *computed) if computed else _Level(base_s, TABLE.empty(), [])
        lagged = [region for work in works for region in work.above_base]
        if context.lag_until and not lagged and base.frame.height > LAG_ABOVE_WINDOWS:
            asked = [work for work in works if work.pending and LONGER_WINDOWS in work.pending.spans]
            return [base, *self._longer(context, asked, [])], base.regions
        levels = self._above(context, base, lagged)
        return levels + self._longer(context, works, levels), []

    def _above(self, context: Context, base: _Level, lagged: Sequence[Region]) -> list[_Level]:
        """The base windows and the larger ones up to an hour; ``lagged``: base windows that are up to date already,
        though the windows above them are not."""
        sizes, levels = context.settings.window_sizes_s, [base]
        if not base.regions and not lagged:
            return []
        for size_s in sizes[1:]:
            if size_s > HOUR_S:
                break
            child_s = max(one for one in sizes if one < size_s and size_s % one == 0)
            below = next(level for level in levels if level.size_s == child_s)
            stale = area.disjoint([*below.regions, *(lagged if below is base else ())])
            parents = area.disjoint(area.widened(stale, size_s * 1_000_000))
            levels.append(self._merged(context, size_s, below, parents))
        return [level for level in levels if level.regions]

    def _merged(self, context: Context, size_s: int, below: _Level, parents: list[Region]) -> _Level:
        """The windows of one size that hold those of the level below."""
        missing = area.subtracted(parents, below.regions)
        stored = table_io.read_regions(context.connection, TABLE, missing, window_s=below.size_s)
        if stored.height:
            stored = stored.filter(~area.inside(stored, "bucket_start_us", below.regions))
        children = pl.concat([stored, below.frame])
        merged = merge_windows(children.drop("domain_id"), size_s, finest_s=context.settings.base_window_s)
        return _Level(size_s, with_domain(merged, children), parents)

    def _longer(self, context: Context, works: Sequence[Work], levels: Sequence[_Level]) -> list[_Level]:
        """Windows longer than an hour that begin in an hour of the slice, from hourly windows."""
        hourly = next((level for level in levels if level.size_s == HOUR_S), _Level(HOUR_S, TABLE.empty(), []))
        found = []
        for size_s in context.settings.window_sizes_s:
            if size_s <= HOUR_S:
                continue
            size_us = size_s * 1_000_000
            parents = area.joined(
                Region(work.domain_id, work.hour_us, work.hour_us + size_us)
                for work in works
                if not work.hour_us % size_us and _asks_for_longer(work)
            )
            if parents:
                within = hourly.frame.filter(area.inside(hourly.frame, "bucket_start_us", parents))
                level = self._merged(context, size_s, _Level(HOUR_S, within, hourly.regions), parents)
                found.append(level)
        return found

    # ------------------------------------------------------------------ writing

    def _write(
        self,
        context: Context,
        works: Sequence[Work],
        levels: Sequence[_Level],
        lagging: Sequence[Region],
        frame: pl.DataFrame,
        part: Ints,
        withheld: Mapping[int, tuple[int, ...]],
        accepted: frozenset[Key],
    ) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
        parts = Parts(works)
        wanted = frame.filter(_allowed(frame, part, works, withheld, accepted))
        stored = table.read_stored(context.connection, works, [(one.size_s, one.regions) for one in levels])
        its = parts.of(stored["domain_id"].to_numpy(), stored["bucket_start_us"].to_numpy())
        stored = stored.filter(_allowed(stored, its, works, withheld, accepted))
        done = table.replace(context.connection, stored, wanted, works)
        added = parts.counts(_part_of(parts, done.added))
        removed = parts.counts(_part_of(parts, done.removed))
        computed = parts.counts(_part_of(parts, wanted))
        results = {
            work.key: Written(rows=work.state.rows + added[at] - removed[at], written=computed[at])
            for at, work in enumerate(works)
            if work.key in accepted
        }
        context.serialize_commits([work.domain_id for work in works])
        stale = stale_after(context, works, parts, done.changed)
        base_s = context.settings.base_window_s
        base = wanted.filter(pl.col("window_s") == base_s)
        before = stored.filter(pl.col("window_s") == base_s)
        unwritten = _stale_beside_withheld(context, works, withheld)
        later = _left_for_later(context, [work for work in works if work.key in accepted], lagging)
        return results, [*stale, *unwritten, *later, *stale_in_other_hours(context, works, before, base, base_s)]


def _asks_for_longer(work: Work) -> bool:
    its = work.pending
    return work.whole or its is None or bool(its.spans or its.series or its.above_base)


def _left_for_later(context: Context, works: Sequence[Work], lagging: Sequence[Region]) -> list[Invalidation]:
    """The windows above the base of some regions, as pending work that waits a while."""
    found = []
    for work in works:
        spans = [
            ((one.begins_us - work.hour_us) // 1_000_000, (one.ends_us - work.hour_us) // 1_000_000)
            for one in lagging
            if one.domain_id == work.domain_id and work.hour_us <= one.begins_us < work.hour_us + HOUR_US
        ]
        if spans:
            scope = Scope(spans=merged_spans(spans), above_base=True)
            found.append(replace(_invalid("window_aggregates", work, scope), not_before=context.lag_until))
    return found


def _part_of(parts: Parts, frame: pl.DataFrame) -> Ints:
    return parts.of(frame["domain_id"].to_numpy(), frame["bucket_start_us"].to_numpy())


def _withheld(frame: pl.DataFrame, part: Ints, reasons: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """The series of failing windows, by the index of their domain partition."""
    series = frame["series_id"].to_numpy()
    found: dict[int, set[int]] = {}
    for row in reasons:
        found.setdefault(int(part[row]), set()).add(int(series[row]))
    return {index: tuple(sorted(its)) for index, its in found.items()}


def _allowed(
    frame: pl.DataFrame,
    part: Ints,
    works: Sequence[Work],
    withheld: Mapping[int, tuple[int, ...]],
    accepted: frozenset[Key],
) -> pl.Series:
    """Rows of accepted domain partitions, but for the series that are withheld."""
    may = np.array([work.key in accepted for work in works] + [False])
    allowed = may[part]
    for index, series in withheld.items():
        allowed &= ~((part == index) & frame["series_id"].is_in(list(series)).to_numpy())
    return pl.Series(allowed, dtype=pl.Boolean)


# ---------------------------------------------------------------------- what becomes stale


def stale_after(
    context: Context, works: Sequence[Work], parts: Parts, changed: pl.DataFrame
) -> list[Invalidation]:
    """What changed windows make stale: anomalies and KPIs of their hour, anomalies of later hours within the
    look-back, longer windows that hold them."""
    base_s = context.settings.base_window_s
    base = changed.filter(pl.col("window_s") == base_s)
    part = _part_of(parts, base)
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
    hourly = changed.filter(pl.col("window_s") == HOUR_S)
    for at in np.unique(_part_of(parts, hourly)).tolist():
        found += _longer_windows(context, works[at])
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
        found += _longer_windows(context, work)
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


def _longer_windows(context: Context, work: Work) -> list[Invalidation]:
    """Longer windows that hold this hour and begin in another one."""
    begins = {
        work.hour_us // (size_s * 1_000_000) * (size_s * 1_000_000)
        for size_s in context.settings.window_sizes_s
        if size_s > HOUR_S
    }
    return [
        Invalidation(
            asset="window_aggregates",
            domain_id=work.domain_id,
            hour=from_us(begin),
            scope=Scope(spans=(LONGER_WINDOWS,)),
            reason="hourly window",
        )
        for begin in sorted(begins - {work.hour_us})
    ]
