"""Counts that are shown to people beside an hour: rows per minute, totals. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_pipeline.assets.catalog import BY_NAME
from analytics_pipeline.records import HOUR, AssetName
from analytics_pipeline.storage.engine import Connection

MINUTES_PER_HOUR = 60


@dataclass(frozen=True, slots=True)
class RawTotals:
    """What an hour of raw events holds over all domains, and how many of its messages are dead letters."""

    rows: int = 0
    dead_letters: int = 0


def raw_totals(conn: Connection, hours: Sequence[datetime]) -> dict[datetime, RawTotals]:
    """Totals of the hours that hold anything."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT hour, sum(rows)::bigint, sum(rows_failed)::bigint FROM partition_state "
            "WHERE asset = 'raw_events' AND hour = ANY(%s) GROUP BY hour",
            (list(hours),),
        )
        return {hour: RawTotals(rows, failed) for hour, rows, failed in cursor.fetchall()}


def rows_per_minute(conn: Connection, asset: AssetName, hour: datetime) -> list[int]:
    """Sixty counts, or none for an asset that has nothing to plot."""
    spec = BY_NAME[asset]
    if spec.plot is None:
        return []
    time_column, condition = spec.table.time_column, spec.plot
    counts = [0] * MINUTES_PER_HOUR
    with conn.cursor() as cursor:
        cursor.execute(
            f"SELECT extract(minute FROM {time_column})::int, count(*) FROM {spec.table.name} "
            f"WHERE {time_column} >= %s AND {time_column} < %s AND {condition} GROUP BY 1",
            (hour, hour + HOUR),
        )
        for minute, rows in cursor.fetchall():
            counts[minute] = rows
    return counts
