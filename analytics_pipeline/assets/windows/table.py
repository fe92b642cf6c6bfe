"""Rows of window_aggregates: SQL only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import polars as pl

from analytics_pipeline.assets.calculation import Work
from analytics_pipeline.assets.windows.levels import Level
from analytics_pipeline.records import HOUR_US, Region, to_us
from analytics_pipeline.storage import partition_state, table_io
from analytics_pipeline.storage.binary_copy import FixedTable, copy_out
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.table_io import Replaced
from analytics_pipeline.tables import TableSpec


def chunks(
    connection: Connection, works: Sequence[Work], regions: Sequence[Region], base_s: int, most_rows: int
) -> Iterator[list[Region]]:
    """The regions in groups that hold about so many measurements, cut between base windows where they must be."""
    states = partition_state.read_states(
        connection, "normalized_measurements", sorted({work.hour for work in works})
    )
    held = {(key[0], to_us(key[1])): state.rows for key, state in states.items()}
    group: list[Region] = []
    rows = 0.0
    for region in _cut(regions, held, base_s, most_rows):
        its = _estimate(region, held)
        if group and rows + its > most_rows:
            yield group
            group, rows = [], 0.0
        group.append(region)
        rows += its
    if group:
        yield group


def _cut(
    regions: Sequence[Region], held: dict[tuple[int, int], int], base_s: int, most_rows: int
) -> Iterator[Region]:
    base_us = base_s * 1_000_000
    for region in regions:
        pieces = int(_estimate(region, held) // most_rows) + 1
        windows = (region.ends_us - region.begins_us) // base_us
        step = max(1, -(-windows // pieces)) * base_us
        for begins in range(region.begins_us, region.ends_us, step):
            yield Region(region.domain_id, begins, min(begins + step, region.ends_us), region.series)


def _estimate(region: Region, held: dict[tuple[int, int], int]) -> float:
    first = region.begins_us // HOUR_US * HOUR_US
    rows = 0.0
    for hour_us in range(first, region.ends_us, HOUR_US):
        overlap = min(region.ends_us, hour_us + HOUR_US) - max(region.begins_us, hour_us)
        rows += held.get((region.domain_id, hour_us), 0) * overlap / HOUR_US
    return rows


def read_stored(
    connection: Connection, spec: TableSpec, works: Sequence[Work], levels: Sequence[Level]
) -> pl.DataFrame:
    """The stored rows of what was computed, with their revisions where they have any."""
    filled = [Region(work.domain_id, work.hour_us, work.hour_us + HOUR_US) for work in works if work.state.rows]
    revision = ("revision",) if "revision" in spec.by_name else ()
    fixed, wide = ([c.name for c in spec.columns if (c.type == "bytea") == last] for last in (False, True))
    names = (*fixed, *revision, *wide)
    frames = [
        table_io.read_regions(connection, spec, _touching(one.regions, filled), names=names, window_s=one.size_s)
        for one in levels
    ]
    return pl.concat(frames) if frames else spec.empty(names)


def _touching(regions: Sequence[Region], filled: Sequence[Region]) -> list[Region]:
    """Those that can hold rows at all."""
    return [
        one
        for one in regions
        if any(
            f.domain_id == one.domain_id and f.begins_us < one.ends_us and one.begins_us < f.ends_us
            for f in filled
        )
    ]


def replace(
    connection: Connection, spec: TableSpec, stored: pl.DataFrame, wanted: pl.DataFrame, works: Sequence[Work]
) -> Replaced:
    """The stored rows become those wanted. One that differs counts a revision if its window was final."""
    key, compared = list(spec.frame_key), list(spec.schema())
    if not stored.height or "revision" not in spec.by_name:
        return table_io.replace(connection, spec, stored.select(compared), wanted)
    final = final_until(connection, works)
    revised = (
        pl.col("bucket_start_us") + pl.col("window_s").cast(pl.Int64) * 1_000_000
        <= pl.col("domain_id").replace_strict(final, default=None, return_dtype=pl.Int64)
    ).fill_null(value=False)
    before = stored.select(*key, (pl.col("revision") + revised.cast(pl.Int32)).alias("revision"))
    wanted = wanted.join(before, on=key, how="left", nulls_equal=True, maintain_order="left").with_columns(
        pl.col("revision").fill_null(0)
    )
    return table_io.replace(connection, spec, stored.select(compared), wanted)


def final_until(connection: Connection, works: Sequence[Work]) -> dict[int, int]:
    """Windows of each domain that end until then, in microseconds, are final."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain, final_until FROM domain_watermark WHERE domain = ANY(%s) AND final_until IS NOT NULL",
            (sorted({work.domain.name for work in works}),),
        )
        found = dict(cursor.fetchall())
    numbers = {work.domain.name: work.domain_id for work in works}
    return {numbers[name]: to_us(moment) for name, moment in found.items()}


_HISTORY = FixedTable((("bucket_start", "timestamptz"), ("series_id", "int8"), ("avg_val", "float8")))


def read_history(
    connection: Connection,
    series_ids: Sequence[int],
    window_s: int,
    before: datetime,
    look_back: timedelta,
    windows: int,
) -> pl.DataFrame:
    """The last windows of each series before a time, at most so many and not older than the look-back; those with only
    bad samples are none."""
    query = (
        "SELECT w.bucket_start, w.series_id, w.avg_val FROM unnest(%s::bigint[]) wanted (series_id) "
        "CROSS JOIN LATERAL (SELECT * FROM window_aggregates a WHERE a.series_id = wanted.series_id "
        "AND a.window_s = %s AND a.bucket_start < %s AND a.bucket_start >= %s AND a.count_n > 0 "
        "ORDER BY a.bucket_start DESC LIMIT %s) w"
    )
    parameters = (list(series_ids), window_s, before, before - look_back, windows)
    found = copy_out(connection, query, parameters, _HISTORY)
    return pl.DataFrame(
        {"bucket_start_us": found["bucket_start"], "series_id": found["series_id"], "avg_val": found["avg_val"]}
    )
