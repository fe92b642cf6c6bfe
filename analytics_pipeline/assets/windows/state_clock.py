"""Up to when the states of a domain have lasted: its watermark, written down.

The watermark moves with every message, of whatever series, and what it passes is time in some state. So it is not read
where durations are computed, but advanced here, together with the pending work for the hours that it passes: when
nothing is pending, all durations go up to the same moment, and a rebuild finds it again. Never put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import psycopg2

from analytics_pipeline.records import HOUR, hour_of, to_us
from analytics_pipeline.storage import pending_work
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_domain_commits
from analytics_pipeline.storage.pending_work import Invalidation, Scope

#: Hours in a row that one advance asks for. After a longer silence the states go on from these by themselves, as those
#: of a late change do, and the hours of months are not all pending at once.
HOURS_AT_ONCE = 24


def read(conn: Connection, domain_ids: Iterable[int]) -> dict[int, int]:
    """The clock of each domain that has one, in microseconds, as this transaction sees it."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT domain_id, until FROM state_clock WHERE domain_id = ANY(%s)", (sorted(set(domain_ids)),))
        return {domain_id: to_us(until) for domain_id, until in cursor.fetchall()}


def advance(conn: Connection, domains: Mapping[str, int], lock_wait_ms: int = 0) -> int:
    """Advances the clocks of some domains, by name and number, to their watermarks; returns how many hours were asked
    for. Commits after each domain.

    Whoever changes the windows of a domain commits before or after this, never beside it: it either finds the new
    clock when it asks for the hours that its last states reach, or is found here.

    Args:
        lock_wait_ms: for those who commit, at most so long for each domain; 0: as long as a statement may take.

    Raises:
        psycopg2.Error: of the first domain whose clock could not be advanced, once those of the others are.
    """
    hours, failed = 0, None
    for name, domain_id in sorted(domains.items()):
        try:
            with conn.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {lock_wait_ms}")
            lock_domain_commits(conn, [domain_id])
            hours += _advance_one(conn, name, domain_id)
            conn.commit()
        except psycopg2.Error as error:
            failed = failed or error
            conn.rollback()
    if failed is not None:
        raise failed
    return hours


def _advance_one(conn: Connection, name: str, domain_id: int) -> int:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT w.watermark, c.until, f.floor_hour "
            "FROM domain_watermark w LEFT JOIN state_clock c ON c.domain_id = %(domain_id)s "
            "LEFT JOIN retention_floor f ON f.domain = w.domain AND f.asset = 'window_aggregates' "
            "WHERE w.domain = %(name)s",
            {"name": name, "domain_id": domain_id},
        )
        watermark, until, floor = cursor.fetchone() or (None, None, None)
        if watermark is None or (until is not None and watermark <= until):
            return 0
        cursor.execute(
            "INSERT INTO state_clock (domain_id, until) VALUES (%s, %s) "
            "ON CONFLICT (domain_id) DO UPDATE SET until = EXCLUDED.until",
            (domain_id, watermark),
        )
        since = until or _first_known(cursor, domain_id)
        if since is None:
            return 0
        begins = max(hour_of(since), floor or hour_of(since))
        passed = _passed(_first_hours(cursor, domain_id, begins, watermark), begins, watermark)
    pending_work.add(
        conn,
        [
            Invalidation(
                asset="window_aggregates",
                domain_id=domain_id,
                hour=hour,
                scope=Scope(series=series, states=True),
                reason="state clock",
            )
            for hour, series in passed.items()
        ],
    )
    return len(passed)


def _first_known(cursor: Any, domain_id: int) -> datetime | None:
    """The first moment at which something is in a known state; None: nothing ever was."""
    cursor.execute(
        "SELECT least((SELECT min(event_time) FROM state_changes WHERE domain_id = %(domain_id)s), "
        "(SELECT min(bucket_start) + interval '1 hour' FROM carried_states WHERE domain_id = %(domain_id)s))",
        {"domain_id": domain_id},
    )
    first: datetime | None = cursor.fetchone()[0]
    return first


def _first_hours(cursor: Any, domain_id: int, begins: datetime, until: datetime) -> dict[int, datetime]:
    """The first hour that has begun by the second moment in which each series is in some state: carried in, or changed
    since the first, be it ahead of the second, because that is what the hour ends with."""
    cursor.execute(
        "SELECT series_id, min(hour) FROM ("
        "SELECT series_id, %(begins)s AS hour FROM carried_states "
        "WHERE domain_id = %(domain_id)s AND bucket_start = %(before)s UNION ALL "
        "SELECT series_id, date_trunc('hour', event_time, 'UTC') FROM state_changes "
        "WHERE domain_id = %(domain_id)s AND event_time >= %(begins)s AND event_time < %(until)s"
        ") known GROUP BY series_id ORDER BY series_id",
        {"domain_id": domain_id, "begins": begins, "before": begins - HOUR, "until": _end_of_hour(until)},
    )
    return dict(cursor.fetchall())


def _end_of_hour(moment: datetime) -> datetime:
    """The end of the last hour that has begun before a moment."""
    begun = hour_of(moment)
    return begun if begun == moment else begun + HOUR


def _passed(first: Mapping[int, datetime], begins: datetime, until: datetime) -> dict[datetime, tuple[int, ...]]:
    """The series to compute in each hour to ask for.

    From the first hour of a series on its states go from hour to hour, as far as the clock. The hours at the beginning
    are asked for at once: the state at the end of the very first is as it was, however much longer it lasted.
    """
    ahead = min(until, begins + HOUR * HOURS_AT_ONCE)
    day = [begins + HOUR * step for step in range(-((begins - ahead) // HOUR))]
    found: dict[datetime, list[int]] = {}
    for one, since in first.items():
        for hour in (since, *(hour for hour in day if hour > since)):
            found.setdefault(hour, []).append(one)
    return {hour: tuple(found[hour]) for hour in sorted(found)}
