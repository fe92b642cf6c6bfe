"""The roll-ups of events, as one of the tables of the asset: computed from events."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import Context, Work
from analytics_pipeline.assets.measurements.spec import EVENTS
from analytics_pipeline.assets.windows import table
from analytics_pipeline.assets.windows.event_rollups import GROUP, base_rollups, merge_rollups
from analytics_pipeline.assets.windows.levels import Sizes
from analytics_pipeline.assets.windows.spec import ROLLUPS
from analytics_pipeline.assets.windows.window_table import Rows, WindowTable, Write
from analytics_pipeline.records import Region
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import Invalidation

#: Events that are read at once: bounds a worker's memory.
CHUNK_ROWS = 300_000
_READ = ("domain_id", "event_time", "identity", *GROUP, "value")


class RollupWindows(WindowTable):
    """Counts and sums per kind of event and window."""

    kind = "events"

    def compute(self, context: Context, works: Sequence[Work]) -> list[Rows]:
        fed = self.fed(works)
        if not fed:
            return []
        sizes = Sizes(ROLLUPS, lambda children, size_s, _: _typed(merge_rollups(children, size_s)))
        return [Rows(ROLLUPS, *sizes.levels(context, fed, _base(context, fed)))]

    def stale(self, context: Context, write: Write) -> list[Invalidation]:
        return []


def _base(context: Context, works: Sequence[Work]) -> tuple[pl.DataFrame, list[Region]] | None:
    """The base windows that are stale. A scope that names series is about samples and states: events have none."""
    base_s = context.settings.base_window_s
    stale = [region for work in works for region in work.regions() if region.series is None]
    regions = area.disjoint(area.widened(stale, base_s * 1_000_000))
    if not regions:
        return None
    found = [ROLLUPS.empty()]
    for group in table.chunks(context.connection, works, regions, base_s, CHUNK_ROWS):
        events = table_io.read_regions(context.connection, EVENTS, group, names=_READ)
        found.append(_typed(base_rollups(events, base_s)))
    return pl.concat(found), regions


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(list(ROLLUPS.schema())).cast(ROLLUPS.schema())  # type: ignore[arg-type]
