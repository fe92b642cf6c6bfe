"""Which run was asked to do an hour's pending work, and when it may be asked again. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extras import execute_values

from analytics_pipeline.storage.engine import Connection


@dataclass(frozen=True, slots=True)
class HourClaim:
    """One hour's claim.

    Attributes:
        claim: names the run: it carries the same word as a tag. A range run's hours share one.
        attempt: 1 for the first; grows with each failure and starts over with a success.
        next_try_at: not asked again before; while the run is awaited, when it counts as lost.
        last_error: why the attempt before this one failed, or this one where it is over.
    """

    hour: datetime
    claim: str
    attempt: int
    requested_at: datetime
    next_try_at: datetime
    last_error: str | None = None


def read_claims(conn: Connection) -> dict[datetime, HourClaim]:
    """Every claim, by hour."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT hour, claim, attempt, requested_at, next_try_at, last_error FROM hour_claim")
        return {row[0]: HourClaim(*row) for row in cursor.fetchall()}


def write_claims(conn: Connection, claims: Iterable[HourClaim]) -> None:
    """Insert or replace claims."""
    rows = [(c.hour, c.claim, c.attempt, c.requested_at, c.next_try_at, c.last_error) for c in claims]
    if rows:
        with conn.cursor() as cursor:
            execute_values(
                cursor,
                "INSERT INTO hour_claim (hour, claim, attempt, requested_at, next_try_at, last_error) VALUES %s "
                "ON CONFLICT (hour) DO UPDATE SET claim = EXCLUDED.claim, attempt = EXCLUDED.attempt, "
                "requested_at = EXCLUDED.requested_at, next_try_at = EXCLUDED.next_try_at, "
                "last_error = EXCLUDED.last_error",
                rows,
            )


def delete_claims(conn: Connection, hours: Sequence[datetime]) -> None:
    """Forget claims: of hours that are done, or that a person wants tried again at once."""
    if hours:
        with conn.cursor() as cursor:
            cursor.execute("DELETE FROM hour_claim WHERE hour = ANY(%s)", (list(hours),))
