"""What is known of counters at the retention floor: the last reading of each series below it, which stays for good.

A counter counts on from its last reading, however long ago that was. So before anything below a floor is deleted, that
reading is written to ``carried_readings``, one row per series, where whoever computes the first hours that are kept
looks. Not here: what is deleted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from analytics_pipeline.assets.windows.spec import SPEC
from analytics_pipeline.records import HOUR_S, DerivedName
from analytics_pipeline.storage import pending_work, window_sizes
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_domain_commits
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope

WINDOWS: DerivedName = SPEC.name  # type: ignore[assignment]

_DOMAINS = (
    "SELECT domain_id FROM counter_readings WHERE event_time >= '-infinity' AND event_time < %(floor)s "
    "UNION SELECT domain_id FROM counter_increments WHERE bucket_start >= '-infinity' AND bucket_start < %(floor)s "
    "ORDER BY 1"
)
#: Of readings that are stored below the floor, all are later than what was carried before: that was below an older one.
_CARRY = (
    "INSERT INTO carried_readings AS kept (domain_id, series_id, event_time, reading) "
    "SELECT DISTINCT ON (series_id) domain_id, series_id, event_time, reading FROM counter_readings "
    "WHERE domain_id = %(domain_id)s AND event_time < %(floor)s ORDER BY series_id, event_time DESC "
    "ON CONFLICT (domain_id, series_id) DO UPDATE SET event_time = EXCLUDED.event_time, reading = EXCLUDED.reading "
    "WHERE (kept.event_time, kept.reading) <> (EXCLUDED.event_time, EXCLUDED.reading) RETURNING series_id"
)
_RAISE = (
    "INSERT INTO counter_floor AS f (domain_id, floor_hour) VALUES (%(domain_id)s, %(floor)s) "
    "ON CONFLICT (domain_id) DO UPDATE SET floor_hour = EXCLUDED.floor_hour WHERE f.floor_hour < EXCLUDED.floor_hour"
)
#: Windows below the floor are as the readings say, but for those that were still to be computed.
_IS_PENDING = (
    "SELECT EXISTS (SELECT FROM pending_work WHERE hour < %(floor)s AND asset = %(asset)s "
    "AND domain_id = %(domain_id)s)"
)
#: Then whoever counted on from one of them did so from what is out of date, and nothing else will say so.
_FOLLOWING = (
    "SELECT date_trunc('hour', next.bucket_start, 'UTC'), array_agg(series_id ORDER BY series_id) FROM ("
    "SELECT DISTINCT series_id FROM counter_increments WHERE domain_id = %(domain_id)s AND window_s = %(base_s)s "
    "AND bucket_start >= '-infinity' AND bucket_start < %(floor)s UNION SELECT unnest(%(series)s::bigint[])) below "
    "CROSS JOIN LATERAL (SELECT bucket_start FROM counter_increments c WHERE c.domain_id = %(domain_id)s "
    "AND c.window_s = %(base_s)s AND c.series_id = below.series_id AND c.bucket_start >= %(floor)s "
    "AND c.bucket_start < 'infinity' ORDER BY c.series_id, c.bucket_start LIMIT 1) next GROUP BY 1 ORDER BY 1"
)


def carry(conn: Connection, floor: datetime) -> None:
    """Write the last reading of each series below the floor to where it stays.

    Called when no slice can commit below the floor any more, and before anything below it is deleted. Commits after
    each domain. Whoever repeats it finds the same.
    """
    with conn.cursor() as cursor:
        cursor.execute(_DOMAINS, {"floor": floor})
        domain_ids = [row[0] for row in cursor.fetchall()]
    conn.commit()
    for domain_id in domain_ids:
        # A slice that commits before this is found here; one that does so after it finds what is written here.
        lock_domain_commits(conn, [domain_id])
        with conn.cursor() as cursor:
            stale = _carry(cursor, {"domain_id": domain_id, "floor": floor, "asset": WINDOWS})
        pending_work.add(conn, stale)
        conn.commit()


def _carry(cursor: Any, of: dict[str, Any]) -> list[Invalidation]:
    cursor.execute(_CARRY, of)
    of = of | {"series": [row[0] for row in cursor.fetchall()]}
    cursor.execute(_RAISE, of)
    cursor.execute(_IS_PENDING, of)
    if not cursor.fetchone()[0]:
        return []
    cursor.execute(_FOLLOWING, of | {"base_s": min(window_sizes.stored(cursor.connection) or (0,))})
    return [
        Invalidation(
            asset=WINDOWS,
            domain_id=of["domain_id"],
            hour=hour,
            scope=Scope(series=tuple(series) if len(series) <= MAX_SERIES else None, spans=((0, HOUR_S),)),
            reason="next reading",
        )
        for hour, series in cursor.fetchall()
    ]
