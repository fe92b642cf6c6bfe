"""What each domain partition holds, and which of them failed. Reads and writes rows; decides nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extras import execute_values

from analytics_pipeline.records import DomainState
from analytics_pipeline.storage.engine import Connection

Key = tuple[int, datetime]

#: A domain partition that failed rests this long after its first failure, twice as long after each further one …
FIRST_REST = timedelta(seconds=5)
#: … but never longer than this.
LONGEST_REST = timedelta(minutes=10)
#: Of a row of partition_failure. A rest that ends later than any lasts says nothing: the clock was set back.
RESTS = f"f.next_try_at > now() AND f.next_try_at <= now() + interval '{2 * LONGEST_REST.total_seconds():.0f} s'"
ERROR_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionState:
    """What one domain partition holds. ``rows_failed`` counts over its whole content; ``rows_superseded`` are those
    that passed the gate and lost to a later one of the same identity."""

    rows: int = 0
    rows_failed: int = 0
    rows_superseded: int = 0
    status: str = "open"
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failures of one domain partition."""

    attempts: int
    next_try_at: datetime
    code_version: str
    error: str
    rests: bool


def read_states(connection: Connection, asset: str, hours: Sequence[datetime]) -> dict[Key, PartitionState]:
    """What an asset holds in some hours, by (domain number, hour)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT domain_id, hour, rows, rows_failed, rows_superseded, status, detail FROM partition_state "
            "WHERE hour = ANY(%s::timestamptz[]) AND asset = %s",
            (list(hours), asset),
        )
        return {
            (domain_id, hour): PartitionState(
                rows=rows, rows_failed=failed, rows_superseded=superseded, status=status, detail=detail
            )
            for domain_id, hour, rows, failed, superseded, status, detail in cursor.fetchall()
        }


def write_states(connection: Connection, asset: str, states: Mapping[Key, PartitionState], run_id: str) -> None:
    """Replace what is known of some domain partitions."""
    if not states:
        return
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO partition_state (asset, domain_id, hour, rows, rows_failed, rows_superseded, status, detail, "
            "run_id, updated_at) VALUES %s ON CONFLICT (asset, domain_id, hour) DO UPDATE SET rows = EXCLUDED.rows, "
            "rows_failed = EXCLUDED.rows_failed, rows_superseded = EXCLUDED.rows_superseded, "
            "status = EXCLUDED.status, detail = EXCLUDED.detail, run_id = EXCLUDED.run_id, "
            "updated_at = EXCLUDED.updated_at",
            [
                (
                    asset,
                    domain_id,
                    hour,
                    one.rows,
                    one.rows_failed,
                    one.rows_superseded,
                    one.status,
                    json.dumps(dict(one.detail)),
                    run_id,
                )
                for (domain_id, hour), one in sorted(states.items())
            ],
            template="(%s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())",
            page_size=1000,
        )


def add_raw_counts(connection: Connection, counts: Iterable[tuple[int, datetime, int, int]]) -> None:
    """Add (domain number, hour, raw rows, dead letters) to what raw_events holds."""
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO partition_state AS s (asset, domain_id, hour, rows, rows_failed, status) "
            "VALUES %s ON CONFLICT (asset, domain_id, hour) DO UPDATE SET rows = s.rows + EXCLUDED.rows, "
            "rows_failed = s.rows_failed + EXCLUDED.rows_failed, updated_at = clock_timestamp()",
            sorted(counts),
            template="('raw_events', %s, %s, %s, %s, 'open')",
            page_size=1000,
        )


def hours_with_rows(connection: Connection, asset: str, wanted: Sequence[Key]) -> set[Key]:
    """Of some (domain number, hour), those in which an asset holds rows."""
    if not wanted:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.domain_id, s.hour FROM unnest(%s::int[], %s::timestamptz[]) w (domain_id, hour) "
            "JOIN partition_state s ON s.asset = %s AND s.domain_id = w.domain_id AND s.hour = w.hour "
            "WHERE s.rows > 0",
            ([key[0] for key in wanted], [key[1] for key in wanted], asset),
        )
        return set(cursor.fetchall())


def used_domains(connection: Connection, assets: Sequence[str], domain_ids: Sequence[int]) -> set[int]:
    """Of some domains, those of which an asset ever held anything. A look into the key for each: no scan."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT d.domain_id FROM unnest(%s::text[]) a (asset) CROSS JOIN unnest(%s::int[]) d (domain_id) "
            "WHERE EXISTS (SELECT FROM partition_state s WHERE s.asset = a.asset AND s.domain_id = d.domain_id)",
            (list(assets), list(domain_ids)),
        )
        return {row[0] for row in cursor.fetchall()}


def updated_at(connection: Connection, asset: str, wanted: Sequence[Key]) -> dict[Key, datetime]:
    """When some domain partitions were written last, as this transaction sees them."""
    if not wanted:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.domain_id, s.hour, s.updated_at "
            "FROM unnest(%s::int[], %s::timestamptz[]) w (domain_id, hour) "
            "JOIN partition_state s ON s.asset = %s AND s.domain_id = w.domain_id AND s.hour = w.hour",
            ([key[0] for key in wanted], [key[1] for key in wanted], asset),
        )
        return {(row[0], row[1]): row[2] for row in cursor.fetchall()}


def domain_states(
    connection: Connection, asset: str, hours: Sequence[datetime]
) -> dict[datetime, list[DomainState]]:
    """What an asset holds in some hours, by domain, with the error of the last computation where it failed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(s.hour, f.hour), d.domain, coalesce(s.rows, 0), coalesce(s.rows_failed, 0), "
            "coalesce(s.status, 'open'), f.error, coalesce(s.run_id, '') "
            "FROM (SELECT * FROM partition_state WHERE asset = %(asset)s AND hour = ANY(%(hours)s::timestamptz[])) s "
            "FULL JOIN (SELECT * FROM partition_failure WHERE asset = %(asset)s "
            "AND hour = ANY(%(hours)s::timestamptz[])) f USING (domain_id, hour) "
            "JOIN domain_number d USING (domain_id) ORDER BY 1, 2",
            {"asset": asset, "hours": list(hours)},
        )
        found: dict[datetime, list[DomainState]] = {}
        for hour, domain, rows, failed, status, error, run_id in cursor.fetchall():
            state = DomainState(
                domain=domain, rows=rows, rows_failed=failed, status=status, error=error, run_id=run_id
            )
            found.setdefault(hour, []).append(state)
    return found


# ---------------------------------------------------------------------- failures


def read_failures(connection: Connection, asset: str, hours: Sequence[datetime]) -> dict[Key, Failure]:
    """The failures of an asset in some hours, by (domain number, hour)."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT domain_id, hour, attempts, next_try_at, code_version, error, {RESTS} FROM partition_failure f "
            "WHERE asset = %s AND hour = ANY(%s::timestamptz[])",
            (asset, list(hours)),
        )
        return {
            (row[0], row[1]): Failure(
                attempts=row[2], next_try_at=row[3], code_version=row[4], error=row[5], rests=row[6]
            )
            for row in cursor.fetchall()
        }


def record_failure(connection: Connection, asset: str, key: Key, *, code_version: str, error: str) -> None:
    """One more failure of one domain partition; the rest after it doubles. The caller commits."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO partition_failure AS f (asset, domain_id, hour, attempts, next_try_at, code_version, "
            "error, failed_at) VALUES (%(asset)s, %(domain)s, %(hour)s, 1, clock_timestamp() + %(first)s, "
            "%(code)s, %(error)s, clock_timestamp()) ON CONFLICT (asset, domain_id, hour) DO UPDATE SET "
            "attempts = CASE WHEN f.code_version = %(code)s THEN f.attempts + 1 ELSE 1 END, "
            "next_try_at = clock_timestamp() + least(%(longest)s, %(first)s * "
            "CASE WHEN f.code_version = %(code)s THEN 2 ^ least(f.attempts, 20) ELSE 1 END), "
            "code_version = %(code)s, error = EXCLUDED.error, failed_at = EXCLUDED.failed_at",
            {
                "asset": asset,
                "domain": key[0],
                "hour": key[1],
                "first": FIRST_REST,
                "longest": LONGEST_REST,
                "code": code_version,
                "error": error.replace("\x00", "")[:ERROR_CHARACTERS],
            },
        )


def clear_failures(connection: Connection, asset: str, keys: Iterable[Key]) -> None:
    """These domain partitions were computed, or a person wants them tried again at once."""
    known = list(keys)
    if known:
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM partition_failure f USING unnest(%s::int[], %s::timestamptz[]) w (domain_id, hour) "
                "WHERE f.asset = %s AND f.domain_id = w.domain_id AND f.hour = w.hour",
                ([key[0] for key in known], [key[1] for key in known], asset),
            )
