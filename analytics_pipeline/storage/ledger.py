"""The ledger of pending work, and what each (asset, hour, domain) holds. Marks are inserted and deleted only.

A mark says: this (asset, hour, domain) must be computed again, within this scope. A run deletes exactly the
marks that its snapshot saw, in the transaction that writes what they asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2.extras import execute_values

from analytics_pipeline.records import DERIVED, HOUR, DerivedName, PendingHour
from analytics_pipeline.storage.engine import Connection


@dataclass(frozen=True, slots=True)
class Mark:
    """Work to do. ``scope``: see sql/02_derived.sql; None is the whole hour."""

    asset: DerivedName
    hour: datetime
    domain: str
    scope: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True, slots=True)
class ReadMarks:
    """The marks of one (asset, hour, domain) that a snapshot saw."""

    mark_ids: tuple[int, ...]
    #: None: at least one of them asks for the whole hour.
    scope: tuple[int, ...] | None

    @property
    def newest(self) -> int:
        return max(self.mark_ids)


@dataclass(frozen=True, slots=True)
class PairState:
    """What one (asset, hour, domain) holds, counted over its whole content."""

    rows: int = 0
    rows_seen: int = 0
    rows_failed: int = 0
    status: str = "open"
    evaluated_mark_id: int = 0


def add_marks(connection: Connection, marks: Iterable[Mark]) -> None:
    """Ask for work."""
    rows = [(m.asset, m.hour, m.domain, None if m.scope is None else list(m.scope), m.reason) for m in marks]
    if rows:
        with connection.cursor() as cursor:
            execute_values(
                cursor,
                "INSERT INTO pending_mark (asset, hour, domain, scope, reason) VALUES %s",
                rows,
                template="(%s, %s, %s, %s::bigint[], %s)",
            )


def add_mark(connection: Connection, mark: Mark) -> int:
    """Ask for work; returns the mark's id."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO pending_mark (asset, hour, domain, scope, reason) VALUES (%s, %s, %s, %s::bigint[], %s) "
            "RETURNING mark_id",
            (mark.asset, mark.hour, mark.domain, mark.scope and list(mark.scope), mark.reason),
        )
        return int(cursor.fetchone()[0])


def mark_later_hours(
    connection: Connection,
    committed: Connection,
    asset: DerivedName,
    hour: datetime,
    reach_h: int,
    domain: str,
    reason: str,
) -> None:
    """Mark the later hours within a look-back that hold window aggregates of the domain.

    A later hour may be computed at the same time, by a run that sees nothing of this one, and be judged before
    this one commits. So runs that change windows of a domain commit one after the other from here on, and the
    hours are looked up by ``committed``, another connection, which sees what this snapshot does not.
    """
    with connection.cursor() as cursor, committed.cursor() as fresh:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtext(current_schema() || 'later hours'), hashtext(%s))", (domain,)
        )
        fresh.execute(
            "SELECT hour FROM partition_state "
            "WHERE asset = 'window_aggregates' AND domain = %s AND hour > %s AND hour <= %s AND rows > 0",
            (domain, hour, hour + reach_h * HOUR),
        )
        hours = [row[0] for row in fresh.fetchall()]
    add_marks(connection, [Mark(asset, later, domain, None, reason) for later in hours])


def read_marks(connection: Connection, asset: DerivedName, hour: datetime) -> dict[str, ReadMarks]:
    """The marks of one partition, by domain."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain, mark_id, scope FROM pending_mark WHERE asset = %s AND hour = %s", (asset, hour)
        )
        ids: dict[str, list[int]] = {}
        scopes: dict[str, set[int] | None] = {}
        for domain, mark_id, scope in cursor.fetchall():
            ids.setdefault(domain, []).append(mark_id)
            known = scopes.setdefault(domain, set())
            if scope is None or known is None:
                scopes[domain] = None
            else:
                known.update(scope)
    return {
        domain: ReadMarks(tuple(mark_ids), None if (s := scopes[domain]) is None else tuple(sorted(s)))
        for domain, mark_ids in ids.items()
    }


def delete_marks(connection: Connection, mark_ids: Sequence[int]) -> None:
    """The work that these marks asked for is done in this transaction."""
    if mark_ids:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM pending_mark WHERE mark_id = ANY(%s)", (list(mark_ids),))


def read_states(connection: Connection, asset: str, hour: datetime) -> dict[str, PairState]:
    """What the pairs of one partition hold, by domain."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain, rows, rows_seen, rows_failed, status, evaluated_mark_id FROM partition_state "
            "WHERE asset = %s AND hour = %s",
            (asset, hour),
        )
        return {row[0]: PairState(*row[1:]) for row in cursor.fetchall()}


def write_state(
    connection: Connection,
    asset: str,
    hour: datetime,
    domain: str,
    state: PairState,
    detail: dict[str, Any],
    run_id: str,
) -> None:
    """Replace what is known of one pair."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO partition_state (asset, hour, domain, rows, rows_seen, rows_failed, status, "
            "evaluated_mark_id, detail, run_id, updated_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp()) "
            "ON CONFLICT (asset, hour, domain) DO UPDATE SET rows = EXCLUDED.rows, "
            "rows_seen = EXCLUDED.rows_seen, rows_failed = EXCLUDED.rows_failed, status = EXCLUDED.status, "
            "evaluated_mark_id = EXCLUDED.evaluated_mark_id, detail = EXCLUDED.detail, "
            "run_id = EXCLUDED.run_id, updated_at = EXCLUDED.updated_at",
            (asset, hour, domain, state.rows, state.rows_seen, state.rows_failed, state.status,
             state.evaluated_mark_id, json.dumps(detail), run_id),
        )  # fmt: skip


def add_raw_counts(connection: Connection, counts: Iterable[tuple[datetime, str, int, int]]) -> None:
    """Add (hour, domain, raw rows, dead letters) to what raw_events holds."""
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO partition_state AS s (asset, hour, domain, rows, rows_seen, rows_failed, status) "
            "VALUES %s ON CONFLICT (asset, hour, domain) DO UPDATE SET rows = s.rows + EXCLUDED.rows, "
            "rows_seen = s.rows_seen + EXCLUDED.rows_seen, "
            "rows_failed = s.rows_failed + EXCLUDED.rows_failed, updated_at = clock_timestamp()",
            sorted((hour, domain, raw, raw + dead, dead) for hour, domain, raw, dead in counts),
            template="('raw_events', %s, %s, %s, %s, %s, 'open')",
        )


#: Pairs with something to do: marks that no quarantine has judged already.
ACTIONABLE = (
    "FROM (SELECT hour, asset, domain, count(*) AS marks, max(mark_id) AS newest, "
    "min(created_at) AS oldest_at, max(created_at) AS newest_at FROM pending_mark GROUP BY 1, 2, 3) m "
    "LEFT JOIN partition_state s USING (hour, asset, domain) "
    "WHERE s.status IS DISTINCT FROM 'quarantined' OR m.newest > s.evaluated_mark_id"
)


def pending(connection: Connection) -> list[PendingHour]:
    """Hours with work to do, oldest first; pairs in quarantine count only once something new arrived."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT m.hour, array_agg(DISTINCT m.asset), array_agg(DISTINCT m.domain), sum(m.marks)::bigint, "
            f"min(m.oldest_at), max(m.newest_at) {ACTIONABLE} GROUP BY m.hour ORDER BY m.hour"
        )
        return [
            PendingHour(
                hour,
                tuple(name for name in DERIVED if name in assets),
                tuple(sorted(domains)),
                marks,
                old,
                new,
            )
            for hour, assets, domains, marks, old, new in cursor.fetchall()
        ]


def pending_count(connection: Connection) -> int:
    """How many (asset, hour, domain) wait: what backpressure is measured by."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) {ACTIONABLE}")
        return int(cursor.fetchone()[0])
