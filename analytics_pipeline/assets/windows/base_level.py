"""Base windows: from measurements, and from the last sample before each window, which is carried into it.

The time-weighted mean of a window begins with the last earlier sample of its series, up to the domain's longest gap.
So a changed last sample makes the series' next window stale, in the same hour or in the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from analytics_pipeline.assets import regions as area
from analytics_pipeline.assets.calculation import Context, Key, Parts, Work
from analytics_pipeline.assets.measurements.spec import TABLE as MEASUREMENTS
from analytics_pipeline.assets.windows import table
from analytics_pipeline.assets.windows.corrections import corrected
from analytics_pipeline.assets.windows.spec import TABLE
from analytics_pipeline.assets.windows.transform import EarlierSamples, base_windows, carried_into
from analytics_pipeline.records import HOUR, HOUR_S, HOUR_US, Region
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.pending_work import Invalidation, Scope

#: Measurements that are read at once: bounds a worker's memory.
CHUNK_ROWS = 1_000_000

_LAST = ("domain_id", "series_id", "bucket_start", "last_time", "last_val", "ends_bad")
_MEASURED = ("domain_id", "series_id", "event_time", "sample_key", "value", "kafka_time", "quality")
_KEY = ["domain_id", "series_id", "bucket_start_us"]


def base_level(context: Context, works: Sequence[Work], base_s: int) -> tuple[pl.DataFrame, list[Region]] | None:
    """The base windows that are stale, and those that a changed last sample reaches; with the regions that they
    stand for. None where nothing is stale."""
    stale = area.disjoint(region for work in works for region in work.regions())
    if not stale:
        return None
    regions = area.disjoint(area.widened(stale, base_s * 1_000_000))
    frame = _windows(context, works, regions, base_s, known=[], frames=[])
    reached = _reached(context, works, regions, frame, base_s)
    if reached:
        more = _windows(context, works, reached, base_s, known=regions, frames=[frame])
        frame, regions = pl.concat([frame, more]), area.disjoint([*regions, *reached])
    return frame, regions


def _windows(
    context: Context,
    works: Sequence[Work],
    regions: Sequence[Region],
    base_s: int,
    *,
    known: Sequence[Region],
    frames: Sequence[pl.DataFrame],
) -> pl.DataFrame:
    """The base windows of some regions. ``frames`` hold those of the regions ``known``, computed before."""
    gaps = {work.domain_id: work.domain.longest_gap_s * 1_000_000 for work in works}
    earlier = [frame.select(list(TABLE.schema(_LAST))) for frame in frames]
    earlier.append(_stored_before(context, regions, [*known, *regions], gaps, base_s))
    found: list[pl.DataFrame] = []
    ordered = sorted(regions, key=lambda one: (one.begins_us, one.ends_us))
    for group in table.chunks(context.connection, works, ordered, base_s, CHUNK_ROWS):
        rows = table_io.read_regions(context.connection, MEASUREMENTS, group, names=_MEASURED)
        if rows.is_empty():
            continue
        rows = corrected(context, rows)
        windows = base_windows(
            rows["series_id"].to_numpy(),
            rows["event_time_us"].to_numpy(),
            rows["sample_key"].to_numpy(),
            rows["value"].to_numpy(),
            base_s,
            longest_gap_us=_gap_of(rows, gaps),
            earlier=EarlierSamples.of_windows(pl.concat(earlier)),
            quality=rows["quality"].to_numpy(),
            kafka_time_us=rows["kafka_time_us"].to_numpy(),
            allowed_lateness_us=context.settings.allowed_lateness_s * 1_000_000,
        )
        found.append(with_domain(windows, rows))
        earlier.append(found[-1].select(list(TABLE.schema(_LAST))))
    return pl.concat(found) if found else TABLE.empty()


def _gap_of(rows: pl.DataFrame, gaps: Mapping[int, int]) -> int | np.ndarray[tuple[int], np.dtype[np.int64]]:
    if len(set(gaps.values())) == 1:
        return next(iter(gaps.values()))
    return rows["domain_id"].replace_strict(gaps, return_dtype=pl.Int64).to_numpy()


def _stored_before(
    context: Context, regions: Sequence[Region], computed: Sequence[Region], gaps: Mapping[int, int], base_s: int
) -> pl.DataFrame:
    """The last samples of stored windows within the longest gap before each region, but for those computed anew."""
    size_us = base_s * 1_000_000
    before = area.joined(
        Region(
            one.domain_id,
            (one.begins_us - gaps[one.domain_id]) // size_us * size_us,
            one.begins_us,
            one.series,
        )
        for one in regions
    )
    wanted = area.disjoint(area.subtracted(before, computed))
    stored = table_io.read_regions(context.connection, TABLE, wanted, names=_LAST, window_s=base_s)
    return stored.filter(~area.inside(stored, "bucket_start_us", computed)) if stored.height else stored


def with_domain(windows: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Windows with the domain of their series."""
    domains = rows.select("series_id", "domain_id").unique("series_id")
    return (
        windows.join(domains, on="series_id", how="left", maintain_order="left")
        .select(list(TABLE.schema()))
        .cast(TABLE.schema())  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------------- what a changed last sample reaches


def _changed_last(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Windows whose last sample is another one now, or that are new or gone: `_KEY`."""
    columns = list(TABLE.schema(_LAST))
    before, after = before.select(columns), after.select(columns)
    differs = after.join(before, on=columns, how="anti").select(_KEY)
    return pl.concat([differs, before.join(after, on=_KEY, how="anti").select(_KEY)])


def _reached(
    context: Context, works: Sequence[Work], regions: Sequence[Region], frame: pl.DataFrame, base_s: int
) -> list[Region]:
    """The windows of the slice's own hours that are stale because of a changed last sample before them."""
    gaps = {work.domain_id: work.domain.longest_gap_s * 1_000_000 for work in works}
    filled = [work for work in works if work.state.rows]
    if not filled or not any(gaps.values()):
        return []
    hours = area.joined(region for work in filled for region in work.regions(whole=True))
    size_us = base_s * 1_000_000
    after = [
        Region(one.domain_id, one.begins_us, one.ends_us + gaps[one.domain_id] + size_us, one.series) for one in regions
    ]
    wanted = area.disjoint(piece for one in after for piece in area.clipped(one, hours))
    stored = table_io.read_regions(context.connection, TABLE, wanted, names=_LAST, window_s=base_s)
    if stored.is_empty():
        return []
    mine = area.inside(stored, "bucket_start_us", regions)
    changed = _changed_last(stored.filter(mine), frame)
    following = stored.filter(~mine)
    if changed.is_empty() or following.is_empty():
        return []
    everything = pl.concat([frame.select(_KEY), following.select(_KEY)])
    hit = carried_into(
        changed["series_id"].to_numpy(),
        changed["bucket_start_us"].to_numpy(),
        everything["series_id"].to_numpy(),
        everything["bucket_start_us"].to_numpy(),
        base_s=base_s,
        longest_gap_us=_gap_of(everything, gaps),
    )
    hit[: frame.height] = False  # computed already
    found = everything.filter(pl.Series(hit))
    return area.disjoint(
        Region(domain, start, start + size_us, tuple(series))
        for domain, start, series in found.group_by("domain_id", "bucket_start_us")
        .agg(pl.col("series_id").unique().sort())
        .rows()
    )


def stale_in_other_hours(
    context: Context, works: Sequence[Work], before: pl.DataFrame, after: pl.DataFrame, base_s: int
) -> list[Invalidation]:
    """First windows of the next hours that carry in a sample that changed; and, where the hour before was committed
    while this one was computed from what it was, this slice's own.

    Called when commits of the domains wait for each other: whoever commits second sees what the first one wrote.
    """
    parts = Parts(works)
    inside = {work.key for work in works}
    changed = _changed_last(before, after)
    part = parts.of(changed["domain_id"].to_numpy(), changed["bucket_start_us"].to_numpy())
    reach = [(at, work, step) for at, work in enumerate(works) for step in range(1, hours_reached(work) + 1)]
    holding = context.holding_rows(sorted({_later(work, step) for _, work, step in reach} - inside))
    found = []
    for at, work, step in reach:
        if _later(work, step) in holding:
            near = pl.Series(part == at, dtype=pl.Boolean) & _reaches(changed, work, step, base_s)
            series = changed.filter(near)["series_id"].unique().sort()
            if len(series):
                found.append(first_windows(_later(work, step), work, tuple(series.to_list()), base_s))
    return found + _changed_meanwhile(context, works, reach, inside, base_s)


def _changed_meanwhile(
    context: Context,
    works: Sequence[Work],
    reach: Sequence[tuple[int, Work, int]],
    inside: set[Key],
    base_s: int,
) -> list[Invalidation]:
    """The first windows of this slice's hours where an hour before was committed after the snapshot."""
    earlier = {(work.key, _later(work, -step)) for _, work, step in reach}
    changed = context.changed_since_snapshot(sorted({key for _, key in earlier} - inside))
    stale = {key for key, before in earlier if before in changed}
    return [first_windows(work.key, work, None, base_s) for work in works if work.key in stale]


def hours_reached(work: Work) -> int:
    """Into how many later hours a sample may be carried."""
    return -(-work.domain.longest_gap_s // HOUR_S)


def _later(work: Work, step: int) -> Key:
    return work.domain_id, work.hour + HOUR * step


def _reaches(changed: pl.DataFrame, work: Work, step: int, base_s: int) -> pl.Series:
    """Whether a window is so near to the end of its hour that it can reach the hour that many steps later."""
    left_us = HOUR_US * step - changed["bucket_start_us"] % HOUR_US - base_s * 1_000_000
    return left_us < work.domain.longest_gap_s * 1_000_000


def first_windows(key: Key, work: Work, series: tuple[int, ...] | None, base_s: int) -> Invalidation:
    """The windows at the beginning of an hour into which a sample may be carried from one before."""
    until = min(HOUR_S, -(-work.domain.longest_gap_s // base_s) * base_s)
    return Invalidation(
        asset="window_aggregates",
        domain_id=work.domain_id,
        hour=key[1],
        scope=Scope(series=series, spans=((0, until),)),
        reason="carried in",
    )
