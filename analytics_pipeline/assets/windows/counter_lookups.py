"""The windows of counters beside a time: SQL only.

However long ago a counter was read, its next reading counts from there. So windows are looked up by series and time,
over an index of their own, one descent per series, and the hours between are never looked through. Nothing is carried
from hour to hour: an hour without a reading has no rows. What retention takes is kept in carried_readings, one row per
series.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

import polars as pl

from analytics_pipeline.assets.windows.counter_increments import LAST, MICROS
from analytics_pipeline.assets.windows.spec import INCREMENTS, SPEC
from analytics_pipeline.records import from_us, to_us
from analytics_pipeline.storage import table_io
from analytics_pipeline.storage.engine import Connection

#: Series and a time, at which a base window begins.
ASKED = {"series_id": pl.Int64(), "moment_us": pl.Int64()}

_COLUMNS = INCREMENTS.subset(("domain_id", "series_id", "bucket_start", "last_time", "last_reading"))
_FOUND = (
    "SELECT w.domain_id, w.series_id, w.bucket_start, w.last_time, w.last_reading "
    "FROM unnest(%s::bigint[], %s::bigint[]) asked (series_id, moment_s) CROSS JOIN LATERAL ("
    "SELECT * FROM counter_increments c WHERE c.domain_id = %s AND c.window_s = %s AND c.series_id = asked.series_id "
)
_BEFORE = (
    f"{_FOUND} AND c.bucket_start < to_timestamp(asked.moment_s) AND c.bucket_start >= %s AND c.bucket_start < %s "
    "ORDER BY c.series_id DESC, c.bucket_start DESC LIMIT 1) w"
)
_AFTER = (
    f"{_FOUND} AND c.bucket_start >= to_timestamp(asked.moment_s) AND c.bucket_start >= %s "
    "AND c.bucket_start < 'infinity' ORDER BY c.series_id, c.bucket_start LIMIT 1) w"
)


def last_before(conn: Connection, domain_id: int, base_s: int, asked: pl.DataFrame) -> pl.DataFrame:
    """`LAST` of each series before a time; nothing where nothing is known of it.

    Args:
        asked: `ASKED`.
    """
    if asked.is_empty():
        return pl.DataFrame(schema=LAST)
    floor = floor_of(conn, domain_id)
    until = from_us(int(asked["moment_us"].max()))  # type: ignore[arg-type]
    found = _find(conn, _BEFORE, domain_id, base_s, asked, floor or "-infinity", until)
    if floor is None:
        return found
    unanswered = asked["series_id"].value_counts().join(found["series_id"].value_counts(), on="series_id", how="left")
    without = unanswered.filter(pl.col("count") > pl.col("count_right").fill_null(0))["series_id"]
    return pl.concat([found, _carried(conn, domain_id, base_s, without.to_list())])


def first_after(conn: Connection, domain_id: int, base_s: int, asked: pl.DataFrame) -> pl.DataFrame:
    """`LAST` of the first window of each series at or after a time."""
    if asked.is_empty():
        return pl.DataFrame(schema=LAST)
    since = from_us(int(asked["moment_us"].min()))  # type: ignore[arg-type]
    return _find(conn, _AFTER, domain_id, base_s, asked, since)


def floor_of(conn: Connection, domain_id: int) -> datetime | None:
    """Below it, what is known of a domain's counters is what retention carried."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT floor_hour FROM counter_floor WHERE domain_id = %s", (domain_id,))
        row = cursor.fetchone()
    return row[0] if row else None


def changes_below(conn: Connection, domain_id: int, hour: datetime) -> set[tuple[datetime, datetime]]:
    """What must be the same for what was looked up before an hour to be the same: the hours of the domain below it,
    each with the time at which it was written last, and the floor."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT hour, updated_at FROM partition_state WHERE asset = %(asset)s AND domain_id = %(domain_id)s "
            "AND hour < %(hour)s UNION ALL "
            "SELECT floor_hour, floor_hour FROM counter_floor WHERE domain_id = %(domain_id)s",
            {"asset": SPEC.name, "domain_id": domain_id, "hour": hour},
        )
        return set(cursor.fetchall())


def _find(
    conn: Connection, query: str, domain_id: int, base_s: int, asked: pl.DataFrame, *bounds: datetime | str
) -> pl.DataFrame:
    series, moments = _array(asked["series_id"].to_list()), _array((asked["moment_us"] // MICROS).to_list())
    return table_io.read_query(conn, query, [series, moments, domain_id, base_s, *bounds], _COLUMNS)


def _carried(conn: Connection, domain_id: int, base_s: int, series: Collection[int]) -> pl.DataFrame:
    """What retention kept of some series, in the base windows where it was."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT domain_id, series_id, event_time, reading FROM carried_readings "
            "WHERE domain_id = %s AND series_id = ANY(%s::bigint[])",
            (domain_id, _array(sorted(series))),
        )
        rows = [(*row[:2], to_us(row[2]), row[3]) for row in cursor.fetchall()]
    size_us = base_s * MICROS
    return pl.DataFrame([(*row[:2], row[2] // size_us * size_us, *row[2:]) for row in rows], schema=LAST, orient="row")


def _array(numbers: Iterable[int]) -> str:
    """An array as text: a hundred thousand numbers as expressions would take longer to parse than to look up."""
    return "{" + ",".join(map(str, numbers)) + "}"
