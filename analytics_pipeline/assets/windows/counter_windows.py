"""What counters counted, as one of the tables of the asset: from readings, and the last one before each window.

A window depends on the last reading before it, of whatever age. So a window whose last reading changed makes the next
window of its series stale, in this hour or in a later one, and no other: what that one leaves is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import Context, Work
from analytics_pipeline.assets.measurements.spec import READINGS
from analytics_pipeline.assets.windows import counter_lookups, table
from analytics_pipeline.assets.windows.base_level import CHUNK_ROWS
from analytics_pipeline.assets.windows.counter_increments import (
    LAST,
    MICROS,
    base_increments,
    last_readings,
    merge_increments,
)
from analytics_pipeline.assets.windows.counter_limits import limits_of
from analytics_pipeline.assets.windows.levels import Sizes
from analytics_pipeline.assets.windows.spec import INCREMENTS
from analytics_pipeline.assets.windows.window_table import Rows, WindowTable, Write
from analytics_pipeline.records import HOUR_S, HOUR_US, Region, from_us
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope

_READ = ("domain_id", "series_id", "event_time", "reading")
_LAST = ("domain_id", "series_id", "bucket_start", "last_time", "last_reading")
_HOUR_US = (pl.col("bucket_start_us") // HOUR_US * HOUR_US).alias("hour_us")


class CounterWindows(WindowTable):
    """What each counter counted per window."""

    kind = "counters"

    def compute(self, context: Context, works: Sequence[Work]) -> list[Rows]:
        fed = self.fed(works)
        if not fed:
            return []
        base_s = context.settings.base_window_s
        parts = [_Domain(context, its, base_s).computed() for its in _by_domain(fed)]
        frame = pl.concat([INCREMENTS.empty(), *(part for part, _ in parts)])
        regions = [region for _, its in parts for region in its]
        sizes = Sizes(INCREMENTS, lambda children, size_s, _: _typed(merge_increments(children, size_s)))
        return [Rows(INCREMENTS, *sizes.levels(context, fed, (frame, regions) if regions else None))]

    def stale(self, context: Context, write: Write) -> list[Invalidation]:
        written = write.of(INCREMENTS)
        if not written:
            return []
        base = pl.col("window_s") == context.settings.base_window_s
        before, after = (frame.filter(base) for frame in (written[0].stored, written[0].wanted))
        changed = _changed(before, after)
        found = []
        for works in _by_domain([work for work in write.works if work.domain.counters]):
            domain = _Domain(context, works, context.settings.base_window_s)
            its = pl.col("domain_id") == domain.domain_id
            found += domain.next_hours(write, changed.filter(its))
            found += domain.changed_meanwhile(after.filter(its))
        return [*found, *_beside_unwritten(write)]


def _by_domain(works: Iterable[Work]) -> list[list[Work]]:
    found: dict[int, list[Work]] = {}
    for work in works:
        found.setdefault(work.domain_id, []).append(work)
    return [found[domain_id] for domain_id in sorted(found)]


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(list(INCREMENTS.schema())).cast(INCREMENTS.schema())  # type: ignore[arg-type]


def _changed(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Windows whose last reading is another one now, or that are new or gone: ``domain_id, series_id,
    bucket_start_us``."""
    columns, key = list(LAST), list(LAST)[:3]
    before, after = before.select(columns), after.select(columns)
    differs = after.join(before, on=columns, how="anti").select(key)
    return pl.concat([differs, before.join(after, on=key, how="anti").select(key)])


def _asked(frame: pl.DataFrame, moment_us: pl.Expr | pl.Series) -> pl.DataFrame:
    return frame.select("series_id", moment_us.alias("moment_us")).unique().sort("series_id", "moment_us")


class _Domain:
    """The works of one domain in a slice."""

    def __init__(self, context: Context, works: Sequence[Work], base_s: int) -> None:
        self._context, self._works, self._base_s = context, works, base_s
        self._hours_us = {work.hour_us for work in works}
        self.domain_id = works[0].domain_id

    # ------------------------------------------------------------------ base windows

    def computed(self) -> tuple[pl.DataFrame, list[Region]]:
        """The base windows that are stale, and those that a changed last reading reaches; with their regions."""
        stale = area.disjoint(region for work in self._works for region in work.regions())
        regions = area.disjoint(area.widened(stale, self._base_s * MICROS))
        if not regions:
            return INCREMENTS.empty(), []
        frame = self._windows(regions, regions, pl.DataFrame(schema=LAST))
        reached = self._reached(regions, frame)
        if not reached:
            return frame, regions
        every = area.disjoint([*regions, *reached])
        return pl.concat([frame, self._windows(reached, every, frame.select(list(LAST)))]), every

    def _windows(self, regions: Sequence[Region], computed: Sequence[Region], known: pl.DataFrame) -> pl.DataFrame:
        """The base windows of some regions; ``known`` are the last readings of others of those computed."""
        conn, base_s = self._context.connection, self._base_s
        found, before = [INCREMENTS.empty()], [known]
        begins = _begins(regions)
        ordered = sorted(regions, key=lambda one: one.begins_us)
        for group in table.chunks(conn, self._works, ordered, base_s, CHUNK_ROWS):
            rows = table_io.read_regions(conn, READINGS, group, names=_READ).sort("series_id", "event_time_us")
            if rows.is_empty():
                continue
            region = np.searchsorted(begins, rows["event_time_us"].to_numpy(), side="right") - 1
            before.append(self._stored_before(_asked(rows, pl.Series(begins[region])), computed))
            limits = limits_of(self._context, self._works[0], rows)
            found.append(_typed(base_increments(rows, pl.concat(before), limits, base_s)))
            before.append(last_readings(rows, base_s))
        return pl.concat(found)

    def _stored_before(self, asked: pl.DataFrame, computed: Sequence[Region]) -> pl.DataFrame:
        """The last readings before some times in stored windows, but for those that are computed anew."""
        begins = _begins(computed)
        found = [pl.DataFrame(schema=LAST)]
        while asked.height:
            stored = counter_lookups.last_before(self._context.connection, self.domain_id, self._base_s, asked)
            anew = pl.Series(area.inside(stored, "bucket_start_us", computed))
            found.append(stored.filter(~anew))
            hit = stored.filter(anew)
            region = np.searchsorted(begins, hit["bucket_start_us"].to_numpy(), side="right") - 1
            asked = _asked(hit, pl.Series(begins[region], dtype=pl.Int64))
        return pl.concat(found)

    def _reached(self, regions: Sequence[Region], frame: pl.DataFrame) -> list[Region]:
        """The windows of the slice's own hours that are stale because of a changed last reading before them."""
        if not any(work.state.rows for work in self._works):
            return []
        conn = self._context.connection
        stored = table_io.read_regions(conn, INCREMENTS, regions, names=_LAST, window_s=self._base_s)
        changed = _changed(stored, frame)
        begins, ends = _begins(regions), np.array(sorted(one.ends_us for one in regions), np.int64)
        region = np.searchsorted(begins, changed["bucket_start_us"].to_numpy(), side="right") - 1
        asked = _asked(changed, pl.Series(ends[region], dtype=pl.Int64))
        following = counter_lookups.first_after(conn, self.domain_id, self._base_s, asked).with_columns(_HOUR_US)
        anew = pl.Series(area.inside(following, "bucket_start_us", regions))
        following = following.filter(pl.col("hour_us").is_in(list(self._hours_us)) & ~anew)
        return area.disjoint(
            Region(self.domain_id, start, start + self._base_s * MICROS, tuple(series))
            for start, series in following.group_by("bucket_start_us").agg(pl.col("series_id").unique().sort()).rows()
        )

    # ------------------------------------------------------------------ what becomes stale

    def next_hours(self, write: Write, changed: pl.DataFrame) -> list[Invalidation]:
        """The windows of the next readings in other hours; and in those of the slice, where they were not written.

        Looked up in what is committed by now: whoever commits the next window meanwhile comes before, and is found, or
        after, and finds what is written here.
        """
        # Of an hour the last one that changed: what follows it there is as it was, and so is what that leaves.
        last = changed.with_columns(_HOUR_US).group_by("series_id", "hour_us").agg(pl.col("bucket_start_us").max())
        asked = _asked(last, pl.col("bucket_start_us") + self._base_s * MICROS)
        with self._context.committed() as conn:
            following = counter_lookups.first_after(conn, self.domain_id, self._base_s, asked).with_columns(_HOUR_US)
        written = [work.hour_us for work in self._works if work.key in write.accepted]
        return self._stale(following.filter(~pl.col("hour_us").is_in(written)))

    def changed_meanwhile(self, after: pl.DataFrame) -> list[Invalidation]:
        """The first windows of the slice's hours before which another reading is the last by now: another slice was
        committed, or retention carried something, after this one's snapshot."""
        if after.is_empty():
            return []
        conn, latest = self._context.connection, from_us(max(self._hours_us))
        seen = counter_lookups.changes_below(conn, self.domain_id, latest)
        firsts = after.with_columns(_HOUR_US).group_by("series_id", "hour_us").agg(pl.col("bucket_start_us").min())
        asked = _asked(firsts, pl.col("bucket_start_us"))
        with self._context.committed() as committed:
            if counter_lookups.changes_below(committed, self.domain_id, latest) == seen:
                return []
            now = self._each_before(committed, asked)
        used = self._each_before(conn, asked)
        both = used.join(now, on=["series_id", "moment_us"], how="full", coalesce=True, suffix="_now")
        same = pl.col("last_time_us").eq_missing(pl.col("last_time_us_now")) & pl.col("last_reading").eq_missing(
            pl.col("last_reading_now")
        )
        # What this slice wrote itself nobody else sees yet.
        own = (pl.col("last_time_us") // HOUR_US * HOUR_US).is_in(list(self._hours_us))
        own &= pl.col("last_time_us_now").is_null() | (pl.col("last_time_us_now") <= pl.col("last_time_us"))
        other = both.filter(~same & ~own.fill_null(value=False)).rename({"moment_us": "bucket_start_us"})
        return self._stale(other.select("series_id", "bucket_start_us").with_columns(_HOUR_US))

    def _each_before(self, conn: Connection, asked: pl.DataFrame) -> pl.DataFrame:
        """`ASKED` with the last reading before it, of one question per series at a time."""
        found = []
        for (moment_us,), its in asked.group_by("moment_us"):
            last = counter_lookups.last_before(conn, self.domain_id, self._base_s, its)
            found.append(last.with_columns(pl.lit(moment_us, pl.Int64).alias("moment_us")))
        return pl.concat(found).select("series_id", "moment_us", "last_time_us", "last_reading")

    def _stale(self, windows: pl.DataFrame) -> list[Invalidation]:
        """``series_id, bucket_start_us, hour_us`` as pending work."""
        its = (pl.col("series_id").unique().sort(), pl.col("bucket_start_us").unique().sort())
        return [
            Invalidation(
                asset="window_aggregates",
                domain_id=self.domain_id,
                hour=from_us(hour_us),
                scope=Scope(
                    series=tuple(series) if len(series) <= MAX_SERIES else None,
                    spans=tuple(
                        (start, start + self._base_s) for start in ((us - hour_us) // MICROS for us in starts)
                    ),
                ),
                reason="next reading",
            )
            for hour_us, series, starts in windows.group_by("hour_us").agg(its).sort("hour_us").rows()
        ]


def _begins(regions: Sequence[Region]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each region begins. Those of one domain that are disjoint do not overlap in time, whatever their series."""
    return np.array(sorted(one.begins_us for one in regions), np.int64)


def _beside_unwritten(write: Write) -> list[Invalidation]:
    """Later hours of the slice, computed from what was not written in the end: again, from what is stored."""
    found = []
    for at, work in enumerate(write.works):
        if work.key in write.accepted and at not in write.withheld:
            continue
        series = write.withheld.get(at) if work.key in write.accepted else None
        for later in write.works:
            if work.domain.counters and later.domain_id == work.domain_id and later.hour > work.hour:
                found.append(
                    Invalidation(
                        asset="window_aggregates",
                        domain_id=later.domain_id,
                        hour=later.hour,
                        scope=Scope(series=series, spans=((0, HOUR_S),)),
                        reason="next reading",
                    )
                )
    return found
