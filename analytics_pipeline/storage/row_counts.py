"""Counts that are shown to people beside an hour: rows per minute, totals. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_pipeline.assets.catalog import BY_NAME
from analytics_pipeline.records import HOUR, AssetName, hour_of
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


def rows_per_minute(conn: Connection, asset: AssetName, hours: Sequence[datetime]) -> dict[datetime, list[int]]:
    """Sixty counts for each hour; nothing for an asset that has nothing to plot."""
    spec = BY_NAME[asset]
    if spec.plot is None:
        return {}
    counts = {hour: [0] * MINUTES_PER_HOUR for hour in hours}
    with conn.cursor() as cursor:
        for begin, end in _stretches(hours):
            cursor.execute(
                f"SELECT date_trunc('minute', {spec.table.time_column}, 'UTC') AS minute, count(*) "
                f"FROM {spec.table.name} WHERE {spec.table.time_column} >= %s AND {spec.table.time_column} < %s "
                f"AND {spec.plot} GROUP BY 1",
                (begin, end),
            )
            for minute, rows in cursor.fetchall():
                counts[hour_of(minute)][minute.minute] = rows
    return counts


def _stretches(hours: Sequence[datetime]) -> list[tuple[datetime, datetime]]:
    """Hours in a row as one span, so that each is read once."""
    spans: list[tuple[datetime, datetime]] = []
    for hour in sorted(hours):
        if spans and spans[-1][1] == hour:
            spans[-1] = (spans[-1][0], hour + HOUR)
        else:
            spans.append((hour, hour + HOUR))
    return spans
