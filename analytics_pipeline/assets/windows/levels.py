"""Windows of all sizes of one table: base windows, each larger size from a smaller.

A change goes up the sizes: the windows that hold a changed window are merged again, from stored windows and the new
ones. Which size a size is merged from is fixed by the settings, so that live and rebuild give one figure, to the
last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import LONGER_WINDOWS, Context, Work
from analytics_pipeline.records import HOUR_S, Region
from analytics_pipeline.storage import table_io
from analytics_pipeline.tables import TableSpec

#: Base windows of one live slice above which the larger windows lag: merging those costs more than all else then.
LAG_ABOVE_WINDOWS = 2_000
#: Windows that are merged at once, with their sketches: up to 2 kB each on the way.
MERGED_WINDOWS = 300_000
MAX_SERIES_ID = 2**63 - 1


@dataclass(frozen=True)
class Level:
    """Rows of one window size, and the regions that they stand for: a window that is not there has no row.

    ``size_s`` is None for a table that has no window sizes.
    """

    size_s: int | None
    frame: pl.DataFrame
    regions: list[Region]


#: Larger windows from the rows of one smaller size: (frame, size in seconds, base window in seconds).
Merge = Callable[[pl.DataFrame, int, int], pl.DataFrame]


@dataclass(frozen=True)
class Sizes:
    """How the larger windows of one table are made."""

    spec: TableSpec
    merge: Merge

    def levels(
        self, context: Context, works: Sequence[Work], base: tuple[pl.DataFrame, list[Region]] | None
    ) -> tuple[list[Level], list[Region]]:
        """What is computed, by size; and the regions whose windows above the base are left for later.

        Args:
            base: base windows and the regions that they stand for; None: none is stale.
        """
        base_s = context.settings.base_window_s
        first = Level(base_s, *base) if base else Level(base_s, self.spec.empty(), [])
        lagged = [region for work in works for region in work.above_base]
        if context.lag_until and not lagged and first.frame.height > LAG_ABOVE_WINDOWS:
            asked = [work for work in works if work.pending and LONGER_WINDOWS in work.pending.spans]
            return [first, *self._longer(context, asked, [])], first.regions
        found = self._above(context, first, lagged)
        return found + self._longer(context, works, found), []

    def _above(self, context: Context, base: Level, lagged: Sequence[Region]) -> list[Level]:
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

    def _merged(self, context: Context, size_s: int, below: Level, parents: list[Region]) -> Level:
        """The windows of one size that hold those of the level below; merged by ranges of series where they are very
        many, because all that one window is merged from is in memory together."""
        missing = area.subtracted(parents, below.regions)
        found = []
        for series in self._series_ranges(context, parents, below.size_s or size_s):
            stored = table_io.read_regions(
                context.connection, self.spec, missing, window_s=below.size_s, series_range=series
            )
            if stored.height:
                stored = stored.filter(~area.inside(stored, "bucket_start_us", below.regions))
            computed = below.frame
            if series is not None:
                computed = computed.filter(pl.col("series_id") >= series[0], pl.col("series_id") < series[1])
            children = pl.concat([stored, computed])
            found.append(self.merge(children, size_s, context.settings.base_window_s))
        return Level(size_s, pl.concat(found), parents)

    def _series_ranges(
        self, context: Context, parents: Sequence[Region], child_s: int
    ) -> Sequence[tuple[int, int] | None]:
        """Half-open ranges of series, each with about as many windows as may be merged at once; None: all series."""
        if "series_id" not in self.spec.by_name:
            return [None]
        known = {domain_id: context.series.count(domain_id) for domain_id in {one.domain_id for one in parents}}
        children = sum(
            (known[one.domain_id] if one.series is None else len(one.series))
            * ((one.ends_us - one.begins_us) // (child_s * 1_000_000))
            for one in parents
        )
        ranges = -(-children // MERGED_WINDOWS)
        if ranges <= 1:
            return [None]
        none = pl.Series("series_id", [], pl.Int64)
        ids = pl.concat(context.series.frame(domain_id, none)["series_id"] for domain_id in sorted(known)).sort()
        edges = [ids[len(ids) * at // ranges] for at in range(1, ranges)] if len(ids) else []
        return list(pairwise([0, *dict.fromkeys(edges), MAX_SERIES_ID]))

    def _longer(self, context: Context, works: Sequence[Work], levels: Sequence[Level]) -> list[Level]:
        """Windows longer than an hour that begin in an hour of the slice, from hourly windows."""
        hourly = next((level for level in levels if level.size_s == HOUR_S), Level(HOUR_S, self.spec.empty(), []))
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
                found.append(self._merged(context, size_s, Level(HOUR_S, within, hourly.regions), parents))
        return found


def _asks_for_longer(work: Work) -> bool:
    its = work.pending
    return work.whole or its is None or bool(its.spans or its.series or its.whole_series or its.above_base)
