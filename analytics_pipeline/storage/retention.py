"""Retention: whole hours that are too old are deleted, above a floor that is written down first.

The same on every server, by this project's rule and never by a policy of the database: below the floor nothing
is recomputed, and a message of such an hour is a dead letter ``after_retention``. Offsets, gaps and batch records
stay: they say that what is gone was once there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from analytics_pipeline.errors import BelowRetentionError
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, AssetName, hour_of
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.input_versions import raise_version

#: Tables by event time; every row belongs to the hour that holds its time.
_BY_TIME = {"raw_events": "event_time", "events": "event_time", "normalized_measurements": "event_time"}
#: Tables by window, and below what their rows go; a window that reaches beyond it stays whole.
_BY_WINDOW = {"window_aggregates": "history", "anomalies": "floor", "kpis": "floor", "event_rollups": "floor"}
#: By arrival: a letter with an old time came just now, and somebody wants to see it.
_BY_ARRIVAL = ("dead_letters",)
#: Tables by hour.
_BY_HOUR = (
    "ingest_batch_hour",
    "pending_work",
    "run_request",
    "partition_state",
    "partition_failure",
)


@dataclass
class Expired:
    """What one call deleted. ``floor`` None: everything is kept."""

    floor: datetime | None = None
    hours: int = 0
    rows: dict[str, int] = field(default_factory=dict)


def floor_hour(now: datetime, retention_days: int) -> datetime | None:
    """The first hour that is kept; None keeps all."""
    return hour_of(now - timedelta(days=retention_days)) if retention_days else None


def kept_keys(
    conn: Connection, asset: AssetName, keys: Sequence[tuple[str, datetime]]
) -> set[tuple[str, datetime]]:
    """Of some (domain, hour), those that retention has not taken."""
    floors = _floors(conn, asset)
    return {key for key in keys if key[0] not in floors or key[1] >= floors[key[0]]}


def refuse_below_floor(conn: Connection, asset: AssetName, hour: datetime) -> None:
    """For a person who asks for an hour that retention has taken from each domain.

    Raises:
        BelowRetentionError: says which hour is the first that is kept.
    """
    floors = _floors(conn, asset)
    if floors and max(floors.values()) > hour:
        raise BelowRetentionError(
            f"{asset} {hour:%Y-%m-%d %H:%M}: retention has taken this hour, the first that is kept is "
            f"{max(floors.values()):%Y-%m-%d %H:%M}; it can be computed again once its raw events are restored"
        )


def _floors(conn: Connection, asset: AssetName) -> dict[str, datetime]:
    with conn.cursor() as cursor:
        cursor.execute("SELECT domain, floor_hour FROM retention_floor WHERE asset = %s", (asset,))
        return dict(cursor.fetchall())


def expire(
    conn: Connection,
    domains: Iterable[str],
    now: datetime,
    retention_days: int,
    *,
    look_back: timedelta = timedelta(),
) -> Expired:
    """Delete hours below the floor, each in a transaction of its own, the oldest first. Commits.

    Args:
        look_back: windows stay for so long below the floor: the first hours that are kept are computed from them, and
            a rebuild must find the history that live had.
    """
    floor = floor_hour(now, retention_days)
    if floor is None:
        return Expired()
    _raise_floor(conn, domains, floor)
    expired = Expired(floor)
    for hour in _hours_below(conn, floor):
        _delete_below(conn, hour + HOUR, expired.rows, look_back)
        expired.hours += 1
    # What no record of an hour names, as after a restore; nothing, nearly always.
    _delete_below(conn, floor, expired.rows, look_back)
    return expired


def _raise_floor(conn: Connection, domains: Iterable[str], floor: datetime) -> None:
    """Written before anything is deleted, so that no hour is ever half there without a word. Never lowered.

    A slice that is being computed meanwhile sees at its commit that the version is another, and begins anew.
    """
    raise_version(conn, "retention")
    with conn.cursor() as cursor:
        for domain in domains:
            for asset in (RAW_EVENTS, *DERIVED):
                cursor.execute(
                    "INSERT INTO retention_floor AS f (domain, asset, floor_hour) VALUES (%s, %s, %s) "
                    "ON CONFLICT (domain, asset) DO UPDATE SET floor_hour = EXCLUDED.floor_hour, "
                    "updated_at = now() WHERE f.floor_hour < EXCLUDED.floor_hour",
                    (domain, asset, floor),
                )
    conn.commit()


def _hours_below(conn: Connection, floor: datetime) -> list[datetime]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT hour FROM partition_state WHERE hour < %(floor)s ORDER BY 1",
            {"floor": floor},
        )
        return [row[0] for row in cursor.fetchall()]


def _delete_below(conn: Connection, floor: datetime, rows: dict[str, int], look_back: timedelta) -> None:
    statements = {
        **{table: f"DELETE FROM {table} WHERE {column} < %(floor)s" for table, column in _BY_TIME.items()},
        **{
            table: f"DELETE FROM {table} WHERE bucket_start < %({edge})s "
            f"AND bucket_start + make_interval(secs => window_s) <= %({edge})s"
            for table, edge in _BY_WINDOW.items()
        },
        **{table: f"DELETE FROM {table} WHERE arrived_at < %(floor)s" for table in _BY_ARRIVAL},
        **{table: f"DELETE FROM {table} WHERE hour < %(floor)s" for table in _BY_HOUR},
    }
    with conn.cursor() as cursor:
        for table, statement in statements.items():
            cursor.execute(statement, {"floor": floor, "history": floor - look_back})
            rows[table] = rows.get(table, 0) + cursor.rowcount
    conn.commit()
