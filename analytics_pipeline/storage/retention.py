"""Retention: whole hours that are too old are deleted, above a floor that is written down first.

The same on every server, by this project's rule and never by a policy of the database: below the floor nothing
is recomputed, and a message of such an hour is a dead letter ``after_retention``. Offsets, gaps and batch records
stay: they say that what is gone was once there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.assets.measurements.spec import EVENT_IDENTITIES as IDENTITIES
from analytics_pipeline.assets.windows.spec import CARRIED
from analytics_pipeline.errors import BelowRetentionError
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, AssetName, hour_of
from analytics_pipeline.storage import chunks, readings_at_floor, states_at_floor, window_sizes
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.input_versions import raise_version
from analytics_pipeline.storage.locks import EVENT_IDENTITIES, lock_domain_commits


@dataclass(frozen=True, slots=True)
class _Expiring:
    """A table that goes by its time. A window that reaches beyond the edge stays whole."""

    table: str
    time_column: str
    is_windowed: bool = False
    #: Later hours look back at its rows: they stay for so long below the floor.
    is_history: bool = False
    #: Its rows stay for at least so long below the floor.
    kept_below: timedelta = timedelta()

    def edge(self, floor: datetime, look_back: timedelta) -> datetime:
        """Below what its rows go."""
        return floor - max(look_back if self.is_history else timedelta(), self.kept_below)

    @property
    def condition(self) -> str:
        """For rows below the parameter ``edge``; with two bounds, because of one a plan without statistics expects a
        third of the table."""
        reach = f" AND {self.time_column} + make_interval(secs => window_s) <= %(edge)s" if self.is_windowed else ""
        return f"{self.time_column} >= '-infinity' AND {self.time_column} < %(edge)s{reach}"


_EXPIRING = (
    *(
        _Expiring(
            table.name,
            table.time_column,
            is_windowed="window_s" in table.by_name,
            is_history=any(edge.reach == "look-back" for edge in spec.edges),
            # The first hour that is kept begins with the states at the end of the hour before.
            kept_below=HOUR if table is CARRIED else timedelta(),
        )
        for spec in ASSETS
        for table in spec.tables
        if table is not IDENTITIES  # see _restore_events
    ),
)
#: The domains stand in the statement: the key of what has no chunks begins with them.
_IDENTITIES_BELOW = "domain_id = ANY(%(domain_ids)s) AND event_time >= '-infinity' AND event_time < %(floor)s"
#: Events that lost to one of the same id in an hour that goes now: they are the event from here on.
_RESTORED = (
    "INSERT INTO pending_work (asset, domain_id, hour, reason) "
    "SELECT DISTINCT 'normalized_measurements', gone.domain_id, date_trunc('hour', kept.event_time, 'UTC'), "
    f"'event id expired' FROM (SELECT domain_id, identity FROM event_identities WHERE {_IDENTITIES_BELOW}) gone "
    "CROSS JOIN LATERAL (SELECT event_time FROM event_identities other WHERE other.domain_id = gone.domain_id "
    "AND other.identity = gone.identity AND event_time >= %(floor)s OFFSET 0) kept"
)
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
    announce: Callable[[Sequence[tuple[str, datetime]]], None] = lambda _: None,
) -> Expired:
    """Delete hours below the floor, each in a transaction of its own, the oldest first. Commits.

    On TimescaleDB chunks that lie below it go as a whole; of one that is compressed and lies below it in part nothing
    is deleted until all of it does, because that would decompress it. The floor hides it.

    Args:
        announce: told before anything is deleted which (asset, hour) go, so that nobody is left unreported.
        look_back: windows stay for so long below the floor: the first hours that are kept are computed from them, and
            a rebuild must find the history that live had.
    """
    floor = floor_hour(now, retention_days)
    if floor is None:
        return Expired()
    _raise_floor(conn, domains, floor)
    states_at_floor.hand_on(conn, floor)
    readings_at_floor.carry(conn, floor)
    expired = Expired(floor)
    hours = _hours_below(conn, floor)
    announce(hours)
    edges = {one.table: one.edge(floor, look_back) for one in _EXPIRING}
    stops = _drop_chunks(conn, edges, expired.rows) if chunks.has_chunks(conn) else {}
    for hour in sorted({hour for _, hour in hours}):
        _delete_below(conn, hour + HOUR, expired.rows, look_back, stops)
        expired.hours += 1
    # What no record of an hour names, as after a restore; nothing, nearly always.
    _delete_below(conn, floor, expired.rows, look_back, stops)
    return expired


def _drop_chunks(conn: Connection, edges: Mapping[str, datetime], rows: dict[str, int]) -> dict[str, datetime]:
    """Drop whole chunks; returns up to where a table's rows may be deleted, where that is not up to its edge."""
    longest = timedelta(seconds=max(window_sizes.stored(conn) or (0,)))
    stops = {}
    for one in _EXPIRING:
        edge = edges[one.table]
        reach = longest if one.is_windowed else timedelta()
        rows[one.table] = chunks.drop_before(conn, one.table, one.time_column, edge - reach)
        begin = chunks.compressed_chunk_begin(conn, one.table, edge)
        if begin is not None:
            stops[one.table] = begin
        conn.commit()  # a dropped chunk is locked against everybody until then
    return stops


def _raise_floor(conn: Connection, domains: Iterable[str], floor: datetime) -> None:
    """Written before anything is deleted, so that no hour is ever half there without a word. Never lowered.

    Also of domains that are not enabled: their rows go as well.

    A slice that is being computed meanwhile sees at its commit that the version is another, and begins anew.
    """
    raise_version(conn, "retention")
    with conn.cursor() as cursor:
        cursor.execute("SELECT domain FROM domain_number")
        for domain in sorted({*domains, *(row[0] for row in cursor.fetchall())}):
            for asset in (RAW_EVENTS, *DERIVED):
                cursor.execute(
                    "INSERT INTO retention_floor AS f (domain, asset, floor_hour) VALUES (%s, %s, %s) "
                    "ON CONFLICT (domain, asset) DO UPDATE SET floor_hour = EXCLUDED.floor_hour, "
                    "updated_at = now() WHERE f.floor_hour < EXCLUDED.floor_hour",
                    (domain, asset, floor),
                )
    conn.commit()


def _hours_below(conn: Connection, floor: datetime) -> list[tuple[str, datetime]]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT asset, hour FROM partition_state WHERE hour < %(floor)s ORDER BY 2, 1",
            {"floor": floor},
        )
        return list(cursor.fetchall())


def _restore_events(conn: Connection, floor: datetime, rows: dict[str, int]) -> None:
    """Deletes identities below the floor, and asks for the hours whose events lost to one of them. Commits: whoever
    decides meanwhile which event an id is waits, and holds rows that are deleted next."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT domain_id FROM domain_number")
        domain_ids = [row[0] for row in cursor.fetchall()]
        below: dict[str, Any] = {"floor": floor, "domain_ids": domain_ids}
        cursor.execute(f"SELECT DISTINCT domain_id FROM event_identities WHERE {_IDENTITIES_BELOW}", below)
        lock_domain_commits(conn, [row[0] for row in cursor.fetchall()], EVENT_IDENTITIES)
        cursor.execute(_RESTORED, below)
        cursor.execute(f"DELETE FROM event_identities WHERE {_IDENTITIES_BELOW}", below)
        rows["event_identities"] = rows.get("event_identities", 0) + cursor.rowcount
    conn.commit()


def _delete_below(
    conn: Connection, floor: datetime, rows: dict[str, int], look_back: timedelta, stops: Mapping[str, datetime]
) -> None:
    _restore_events(conn, floor, rows)
    with conn.cursor() as cursor:
        for one in _EXPIRING:
            edge = one.edge(floor, look_back)
            cursor.execute(
                f"DELETE FROM {one.table} WHERE {one.condition}", {"edge": min(edge, stops.get(one.table, edge))}
            )
            rows[one.table] = rows.get(one.table, 0) + cursor.rowcount
        for table, column in (*((name, "arrived_at") for name in _BY_ARRIVAL), *((name, "hour") for name in _BY_HOUR)):
            cursor.execute(f"DELETE FROM {table} WHERE {column} < %s", (floor,))
            rows[table] = rows.get(table, 0) + cursor.rowcount
    conn.commit()
