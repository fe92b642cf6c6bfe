"""Durations of states, and the state at each hour's end, as tables of the asset.

The hours of one domain are computed in ascending order, and each hands the state at its end on to the next. A state
that changed at the end of an hour makes the next hour stale, and so on, until it is as it was: within the slice at
once, beyond it by pending work. Nothing looks further back than one hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import Context, Key, Work
from analytics_pipeline.assets.measurements.spec import STATES
from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.assets.windows.durations import carried_on, hour_durations, merge_durations
from analytics_pipeline.assets.windows.levels import Level, Sizes
from analytics_pipeline.assets.windows.spec import CARRIED, DURATIONS
from analytics_pipeline.assets.windows.window_table import Rows, WindowTable, Write
from analytics_pipeline.records import HOUR, HOUR_US, Region, to_us
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope
from analytics_pipeline.tables import TableSpec

#: Hours that are asked for at once when a state reaches beyond the slice: a change of months ago continues a day at a
#: time, and one that ends sooner costs a day's hours of its series.
HOURS_AHEAD = 24

#: Series that are computed; None: all.
Series = frozenset[int] | None


@dataclass
class _Found:
    """What was computed, over all domains and hours of a slice."""

    durations: list[pl.DataFrame] = field(default_factory=lambda: [DURATIONS.empty()])
    carried: list[pl.DataFrame] = field(default_factory=lambda: [CARRIED.empty()])
    regions: list[Region] = field(default_factory=list)


class StateWindows(WindowTable):
    """How long each series was in which state."""

    kind = "states"

    def compute(self, context: Context, works: Sequence[Work]) -> list[Rows]:
        fed = self.fed([work.of_states() for work in works])
        if not fed:
            return []
        clocks = _clocks(context.connection, fed)
        found = _Found()
        for domain_id in sorted({work.domain_id for work in fed}):
            its = sorted((work for work in fed if work.domain_id == domain_id), key=lambda work: work.hour)
            _compute_domain(context, its, clocks.get(domain_id, 0), found)
        durations, carried = pl.concat(found.durations), pl.concat(found.carried)
        base = (durations, area.disjoint(found.regions)) if found.regions else None
        return [
            Rows(DURATIONS, *Sizes(DURATIONS, _merged).levels(context, fed, base)),
            Rows(CARRIED, [Level(None, carried, area.disjoint(found.regions))]),
        ]

    def stale(self, context: Context, write: Write) -> list[Invalidation]:
        changed = [one.replaced.changed for one in write.of(CARRIED)]
        if not changed:
            return []
        fed = self.fed([work.of_states() for work in write.works])
        seen = _clocks(context.connection, fed)
        with context.committed() as conn:
            clocks = _clocks(conn, fed)
        last = changed[0].group_by("domain_id", "bucket_start_us").agg(pl.col("series_id").sort())
        series = {(domain_id, hour_us): tuple(its) for domain_id, hour_us, its in last.rows()}
        found = []
        for at, work in enumerate(write.works):
            if work.domain.states:
                its = series.get((work.domain_id, work.hour_us), ())
                found += _later_hours(write, at, its, clocks.get(work.domain_id, 0))
        return [*found, *_passed_meanwhile(fed, series, seen, clocks)]


def _clocks(conn: Connection, works: Sequence[Work]) -> dict[int, int]:
    """Up to when the states of each domain have lasted; one that yields none any more has no clock."""
    return state_clock.read(conn, [work.domain_id for work in works if work.domain.states])


def _merged(children: pl.DataFrame, size_s: int, _base_s: int) -> pl.DataFrame:
    return _typed(DURATIONS, merge_durations(children, size_s).with_columns(window_s=pl.lit(size_s)))


def _typed(spec: TableSpec, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(list(spec.schema())).cast(spec.schema())  # type: ignore[arg-type]


# ---------------------------------------------------------------------- one domain, hour by hour


def _compute_domain(context: Context, works: Sequence[Work], until_us: int, found: _Found) -> None:
    """The hours of one domain, ascending; adds to ``found``."""
    asked = {work.hour_us: _asked(work) for work in works}
    every = _united(asked.values())
    if every == frozenset():
        return
    domain_id, base_s = works[0].domain_id, context.settings.base_window_s
    hours = {at for hour_us in asked for at in (hour_us - HOUR_US, hour_us)}
    changes = _by_hour(context, STATES, domain_id, asked, every)
    stored = _by_hour(context, CARRIED, domain_id, hours, every)
    carried: dict[int, pl.DataFrame] = {}  # at the end of each computed hour, all series of ``every``
    for hour_us, own in asked.items():
        before = carried.get(hour_us - HOUR_US, stored.get(hour_us - HOUR_US, _NO_STATES))
        wanted = _united([own, _changed(before, stored.get(hour_us - HOUR_US, _NO_STATES))])
        begins, its = _of(before, wanted), _of(changes.get(hour_us, _NO_CHANGES), wanted)
        if hour_us >= until_us:  # what the clock has not reached has not happened yet
            begins, its = _NO_STATES, _NO_CHANGES
        ends = carried_on(its, begins)
        untouched = _NO_STATES if wanted is None else _without(stored.get(hour_us, _NO_STATES), wanted)
        carried[hour_us] = pl.concat([ends, untouched])
        if wanted == frozenset():
            continue
        named = None if wanted is None else tuple(sorted(wanted))
        found.regions.append(Region(domain_id, hour_us, hour_us + HOUR_US, named))
        number = pl.lit(domain_id).alias("domain_id")
        lasted = hour_durations(its, begins, hour_us, until_us, base_s)
        found.durations.append(_typed(DURATIONS, lasted.with_columns(number, window_s=pl.lit(base_s))))
        found.carried.append(_typed(CARRIED, ends.with_columns(number, bucket_start_us=pl.lit(hour_us))))


_NO_CHANGES = STATES.empty(("series_id", "event_time", "state"))
_NO_STATES = CARRIED.empty(("series_id", "state"))


def _asked(work: Work) -> Series:
    """The series whose states are stale: any part of the hour stands for all of it."""
    regions = work.regions()
    if any(region.series is None for region in regions):
        return None
    return frozenset(number for region in regions for number in region.series or ())


def _united(parts: Iterable[Series]) -> Series:
    united: frozenset[int] = frozenset()
    for part in parts:
        if part is None:
            return None
        united |= part
    return united


def _by_hour(
    context: Context, spec: TableSpec, domain_id: int, hours: Iterable[int], series: Series
) -> dict[int, pl.DataFrame]:
    """Rows of some hours and series, by the begin of their hour."""
    named = None if series is None else tuple(sorted(series))
    regions = area.joined(Region(domain_id, hour_us, hour_us + HOUR_US, named) for hour_us in hours)
    names = ("series_id", spec.time_column, "state")
    rows = table_io.read_regions(context.connection, spec, regions, names=names)
    hour = pl.col(spec.frame_time) // HOUR_US * HOUR_US
    columns = ["series_id", "event_time_us", "state"] if spec is STATES else ["series_id", "state"]
    grouped = rows.with_columns(hour.alias("hour_us")).partition_by("hour_us", as_dict=True)
    return {int(hour_us): its.select(columns) for (hour_us,), its in grouped.items()}


def _of(frame: pl.DataFrame, series: Series) -> pl.DataFrame:
    return frame if series is None else frame.filter(pl.col("series_id").is_in(list(series)))


def _without(frame: pl.DataFrame, series: frozenset[int]) -> pl.DataFrame:
    return frame.filter(~pl.col("series_id").is_in(list(series)))


def _changed(after: pl.DataFrame, before: pl.DataFrame) -> frozenset[int]:
    """The series whose state is new, another one or gone."""
    if after is before:
        return frozenset()
    both = [after.join(before, on=["series_id", "state"], how="anti"), before.join(after, on="series_id", how="anti")]
    return frozenset(number for frame in both for number in frame["series_id"].to_list())


# ---------------------------------------------------------------------- what becomes stale


def _later_hours(write: Write, at: int, changed: tuple[int, ...], until_us: int) -> list[Invalidation]:
    """The hours after one of the slice, as far as its last states are not yet handed on to them."""
    work = write.works[at]
    inside = {one.key for one in write.works}
    following: Key = (work.domain_id, work.hour + HOUR)
    if following in inside:
        # It was computed with what this hour handed on; unless that, or what came of it, was not written.
        unwritten = work.key not in write.accepted or at in write.withheld
        if unwritten or (changed and following not in write.accepted):
            return [_stale(following, None)]
        return []
    found = []
    for step in range(1, HOURS_AHEAD + 1):
        later: Key = (work.domain_id, work.hour + HOUR * step)
        if not changed or to_us(later[1]) >= until_us or later in inside:
            break
        found.append(_stale(later, changed if len(changed) <= MAX_SERIES else None))
    return found


def _passed_meanwhile(
    works: Sequence[Work],
    changed: Mapping[tuple[int, int], tuple[int, ...]],
    seen: Mapping[int, int],
    clocks: Mapping[int, int],
) -> list[Invalidation]:
    """The slice's own hours that the clock passed after the snapshot: they were computed up to the clock of before, and
    who advanced it asked for the series that it saw, not for those that this slice brings.

    Args:
        changed: by domain and hour, the series whose state at the end of that hour is another one now.
        seen, clocks: as the snapshot saw them, and as they are committed now.
    """
    found = []
    for work in works:
        before, now = (its.get(work.domain_id, 0) for its in (seen, clocks))
        if now > before and before - HOUR_US < work.hour_us < now:
            handed_on = [its for (domain_id, _), its in changed.items() if domain_id == work.domain_id]
            series = _united([_asked(work), *map(frozenset, handed_on)])
            if series is None or len(series) > MAX_SERIES:
                found.append(_stale(work.key, None))
            elif series:
                found.append(_stale(work.key, tuple(sorted(series))))
    return found


def _stale(key: Key, series: tuple[int, ...] | None) -> Invalidation:
    return Invalidation(
        asset="window_aggregates",
        domain_id=key[0],
        hour=key[1],
        scope=Scope(series=series, states=True),
        reason="carried state",
    )
