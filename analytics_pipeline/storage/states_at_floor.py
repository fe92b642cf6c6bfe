"""What is known of states at the retention floor: kept as the carried states of the hour before it.

A state lasts until the next change, however long ago it was told, and both its change and the hours through which it
was carried go with time. So before anything below a floor is deleted, the last that is known of each series is written
to where the first kept hour looks. Not here: what is deleted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg2

from analytics_pipeline.assets.windows.spec import SPEC
from analytics_pipeline.records import HOUR, DerivedName
from analytics_pipeline.storage import pending_work
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_domain_commits
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope

WINDOWS: DerivedName = SPEC.name  # type: ignore[assignment]

#: How often a domain is tried whose slices are in the way: each of them is begun anew at most once for it.
MAX_TRIES = 5

_DOMAINS = (
    "SELECT domain_id FROM state_changes WHERE event_time >= '-infinity' AND event_time < %(floor)s "
    "UNION SELECT domain_id FROM carried_states WHERE bucket_start >= '-infinity' AND bucket_start < %(floor)s "
    "ORDER BY 1"
)
#: A change that is stored was told after whatever was carried: what is carried may wait for windows that are pending.
_HAND_ON = (
    "INSERT INTO carried_states AS kept (domain_id, bucket_start, series_id, state) "
    "SELECT DISTINCT ON (series_id) domain_id, %(hour)s, series_id, state FROM ("
    "SELECT domain_id, series_id, state, event_time AS since, true AS told FROM state_changes "
    "WHERE domain_id = %(domain_id)s AND event_time < %(floor)s UNION ALL "
    "SELECT domain_id, series_id, state, bucket_start, false FROM carried_states "
    "WHERE domain_id = %(domain_id)s AND bucket_start < %(floor)s) known "
    "ORDER BY series_id, told DESC, since DESC "
    "ON CONFLICT (domain_id, bucket_start, series_id) DO UPDATE SET state = EXCLUDED.state "
    "WHERE kept.state <> EXCLUDED.state RETURNING series_id"
)

#: What later hours carry was carried from another state. It may not be taken for known by the next retention, should
#: that come before the hours are computed again.
_FORGET = (
    "WITH gone AS (DELETE FROM carried_states WHERE domain_id = %(domain_id)s AND bucket_start >= %(floor)s "
    "AND bucket_start < 'infinity' AND series_id = ANY(%(series)s) RETURNING bucket_start) "
    "UPDATE partition_state SET rows = rows - lost FROM (SELECT bucket_start, count(*) AS lost FROM gone GROUP BY 1) g "
    "WHERE asset = %(asset)s AND domain_id = %(domain_id)s AND hour = bucket_start"
)


def hand_on(conn: Connection, floor: datetime) -> None:
    """Write the last known state of each series to the hour before the floor, where another one or none is written.

    Called when no slice can commit below the floor any more, and before anything below it is deleted. Commits after
    each domain. Whoever repeats it finds the same.
    """
    with conn.cursor() as cursor:
        cursor.execute(_DOMAINS, {"floor": floor})
        domain_ids = [row[0] for row in cursor.fetchall()]
    conn.commit()
    for domain_id in domain_ids:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                _hand_on_domain(conn, domain_id, floor)
                break
            except psycopg2.errors.DeadlockDetected:
                # A slice that began before the floor was raised: it begins anew, and finds the floor.
                conn.rollback()
                if not tries_left:
                    raise


def _hand_on_domain(conn: Connection, domain_id: int, floor: datetime) -> None:
    # A clock that passes the floor before this finds nothing there, and is found; one that does so after it finds
    # what is written here.
    lock_domain_commits(conn, [domain_id])
    with conn.cursor() as cursor:
        cursor.execute(_HAND_ON, {"domain_id": domain_id, "floor": floor, "hour": floor - HOUR})
        series = sorted(row[0] for row in cursor.fetchall())
        passed = bool(series) and _is_passed(cursor, domain_id, floor)
        if passed:
            cursor.execute(_FORGET, {"asset": WINDOWS, "domain_id": domain_id, "floor": floor, "series": series})
    if passed:
        scope = Scope(series=tuple(series) if len(series) <= MAX_SERIES else None, states=True)
        stale = Invalidation(asset=WINDOWS, domain_id=domain_id, hour=floor, scope=scope, reason="carried state")
        pending_work.add(conn, [stale])
    conn.commit()


def _is_passed(cursor: Any, domain_id: int, moment: datetime) -> bool:
    """Whether the domain's clock of states is beyond a moment: what comes after it was computed from what was carried
    then."""
    cursor.execute("SELECT until > %s FROM state_clock WHERE domain_id = %s", (moment, domain_id))
    found = cursor.fetchone()
    return found is not None and bool(found[0])
