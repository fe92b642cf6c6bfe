"""Which run was asked to do an hour's pending work, and when it may be asked again. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extras import execute_values

from analytics_pipeline.storage.engine import Connection


@dataclass(frozen=True, slots=True)
class HourRequest:
    """The run request of one hour.

    Attributes:
        request_id: names the run: it carries the same word as a tag. All hours of a range run have the same.
        attempt: 1 for the first; grows with each failure and starts over with a success.
        next_try_at: not asked again before; while the run is awaited, when it counts as lost.
        last_error: why the attempt before this one failed, or this one where it is over.
    """

    hour: datetime
    request_id: str
    attempt: int
    requested_at: datetime
    next_try_at: datetime
    last_error: str | None = None


def read_requests(conn: Connection) -> dict[datetime, HourRequest]:
    """Every run request, by hour."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT hour, request_id, attempt, requested_at, next_try_at, last_error FROM run_request")
        return {row[0]: HourRequest(*row) for row in cursor.fetchall()}


def write_requests(conn: Connection, requests: Iterable[HourRequest]) -> None:
    """Insert or replace run requests."""
    rows = [(r.hour, r.request_id, r.attempt, r.requested_at, r.next_try_at, r.last_error) for r in requests]
    if rows:
        with conn.cursor() as cursor:
            execute_values(
                cursor,
                "INSERT INTO run_request (hour, request_id, attempt, requested_at, next_try_at, last_error) "
                "VALUES %s "
                "ON CONFLICT (hour) DO UPDATE SET request_id = EXCLUDED.request_id, attempt = EXCLUDED.attempt, "
                "requested_at = EXCLUDED.requested_at, next_try_at = EXCLUDED.next_try_at, "
                "last_error = EXCLUDED.last_error",
                rows,
            )


def delete_requests(conn: Connection, hours: Sequence[datetime]) -> None:
    """Forget run requests: of hours that are done, or that a person wants tried again at once."""
    if hours:
        with conn.cursor() as cursor:
            cursor.execute("DELETE FROM run_request WHERE hour = ANY(%s)", (list(hours),))
