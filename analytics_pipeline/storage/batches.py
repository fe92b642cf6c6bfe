"""Records of the drain's batches: what each brought, for which hours. Written with the rows, read by reports."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

from psycopg2 import Binary
from psycopg2.extras import execute_values

from analytics_pipeline.records import BatchHour, BatchReport
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.offset_ranges import OffsetRanges, decode, encode, join

#: Batches whose ranges are joined at once: 5,000 partitions are 0.2 MB of integers in each.
JOINED_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch before it has an id. ``ranges`` is what `offset_ranges.encode` made, ``messages`` their sum."""

    arrived_at: datetime
    duration_s: float
    messages: int
    ranges: bytes
    hours: Sequence[BatchHour]


def open_batch(connection: Connection, record: BatchRecord) -> int:
    """Insert the record; returns the id that its rows carry."""
    raw_rows = sum(hour.raw_rows for hour in record.hours)
    dead_letters = sum(hour.dead_letters for hour in record.hours)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_batch (arrived_at, messages, raw_rows, dead_letters, duration_s, ranges) "
            "VALUES (%s, %s, %s, %s, %s, %s) RETURNING batch_id",
            (record.arrived_at, record.messages, raw_rows, dead_letters, record.duration_s, Binary(record.ranges)),
        )
        batch_id = int(cursor.fetchone()[0])
        _insert_hours(cursor, batch_id, record.hours)
    return batch_id


def _insert_hours(cursor: Any, batch_id: int, hours: Sequence[BatchHour]) -> None:
    if hours:
        execute_values(
            cursor,
            "INSERT INTO ingest_batch_hour VALUES %s",
            [
                (batch_id, h.hour, h.domain, h.raw_rows, h.dead_letters, h.late_rows,
                 json.dumps(h.reasons), json.dumps(h.samples))
                for h in hours
            ],
        )  # fmt: skip


def merge_hours(batch_hours: Iterable[BatchHour]) -> list[BatchHour]:
    """One entry per (hour, domain), by hour and domain."""
    merged: dict[tuple[datetime, str], BatchHour] = {}
    for one in batch_hours:
        key = (one.hour, one.domain)
        merged[key] = one if key not in merged else _add(merged[key], one)
    return [merged[key] for key in sorted(merged)]


def _add(one: BatchHour, other: BatchHour) -> BatchHour:
    return BatchHour(
        hour=one.hour,
        domain=one.domain,
        raw_rows=one.raw_rows + other.raw_rows,
        dead_letters=one.dead_letters + other.dead_letters,
        late_rows=one.late_rows + other.late_rows,
        reasons={
            reason: one.reasons.get(reason, 0) + other.reasons.get(reason, 0)
            for reason in one.reasons.keys() | other.reasons.keys()
        },
        samples=(one.samples + other.samples)[: max(len(one.samples), len(other.samples))],
    )


def batches_after(connection: Connection, batch_id: int, limit: int = 1000) -> list[BatchReport]:
    """Batches committed after one, oldest first, with what each added to each hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT batch_id, arrived_at, duration_s FROM ingest_batch WHERE batch_id > %s "
            "ORDER BY batch_id LIMIT %s",
            (batch_id, limit),
        )
        batches = cursor.fetchall()
        hours = _hours_of(cursor, [row[0] for row in batches])
    return [BatchReport(bid, at, took, tuple(hours.get(bid, ()))) for bid, at, took in batches]


def live_batches_after(connection: Connection, batch_id: int, live_from: datetime) -> list[BatchReport]:
    """Batches committed after one that brought something for a live hour, oldest first, with these hours only."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT batch_id, arrived_at, duration_s "
            "FROM ingest_batch_hour h JOIN ingest_batch USING (batch_id) "
            "WHERE h.hour >= %s AND batch_id > %s ORDER BY batch_id",
            (live_from, batch_id),
        )
        batches = cursor.fetchall()
        hours = _hours_of(cursor, [row[0] for row in batches])
    return [
        BatchReport(bid, at, took, tuple(one for one in hours.get(bid, ()) if one.hour >= live_from))
        for bid, at, took in batches
    ]


def newest_batch_id(connection: Connection) -> int:
    """Of the batches that are committed; 0 where there is none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(batch_id), 0) FROM ingest_batch")
        return int(cursor.fetchone()[0])


def _hours_of(cursor: Any, batch_ids: Sequence[int]) -> dict[int, list[BatchHour]]:
    cursor.execute(
        "SELECT batch_id, hour, domain, raw_rows, dead_letters, late_rows, reasons, samples "
        "FROM ingest_batch_hour WHERE batch_id = ANY(%s) ORDER BY batch_id, hour, domain",
        (list(batch_ids),),
    )
    hours: dict[int, list[BatchHour]] = {}
    for owner, *rest in cursor.fetchall():
        hours.setdefault(owner, []).append(BatchHour(*rest))
    return hours


def read_ranges(connection: Connection, batch_ids: Sequence[int]) -> list[OffsetRanges]:
    """The offset ranges of some batches."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT ranges FROM ingest_batch WHERE batch_id = ANY(%s)", (list(batch_ids),))
        return [decode(row[0]) for row in cursor.fetchall()]


def late_rows(connection: Connection, hour: datetime, domain: str, batch_ids: Sequence[int] | None) -> int:
    """Rows of an hour that came behind the allowed lateness; of some batches, or of all (None)."""
    wanted = None if batch_ids is None else list(batch_ids)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(sum(late_rows), 0) FROM ingest_batch_hour WHERE hour = %s AND domain = %s "
            "AND (%s::bigint[] IS NULL OR batch_id = ANY(%s))",
            (hour, domain, wanted, wanted),
        )
        return int(cursor.fetchone()[0])


def raw_rows(connection: Connection, hour: datetime, domain: str, batch_ids: Sequence[int]) -> dict[int, int]:
    """How many raw rows each of some batches brought for an hour and domain."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT batch_id, raw_rows FROM ingest_batch_hour WHERE hour = %s AND domain = %s "
            "AND batch_id = ANY(%s)",
            (hour, domain, list(batch_ids)),
        )
        return dict(cursor.fetchall())


# ---------------------------------------------------------------------- upkeep


def coalesce(connection: Connection, reported_batch_id: int, pending_batch_ids: Collection[int]) -> int:
    """Make one record of all that arrived within an hour of the clock; returns how many records went.

    Each hour is a transaction of its own, committed here. The record that stays is the newest of its hour, so
    that the last one reported is always there for the cursor of those who report. Raw rows keep the ids of the
    batches that brought them. A message that vanished from its hour is classified by the arrival of the record.

    Args:
        reported_batch_id: the last one that was reported; later ones stay as they are.
        pending_batch_ids: batches that pending work names; they stay as they are.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT array_agg(batch_id ORDER BY batch_id) FROM ingest_batch "
            "WHERE batch_id <= %s AND NOT batch_id = ANY(%s) "
            "GROUP BY date_trunc('hour', arrived_at, 'UTC') HAVING count(*) > 1 ORDER BY 1",
            (reported_batch_id, list(pending_batch_ids)),
        )
        groups = [row[0] for row in cursor.fetchall()]
    connection.commit()
    return sum(_coalesce(connection, group) for group in groups)


def _coalesce(connection: Connection, batch_ids: Sequence[int]) -> int:
    kept, gone = batch_ids[-1], list(batch_ids[:-1])
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM ingest_batch WHERE batch_id = ANY(%s) FOR UPDATE", (list(batch_ids),))
        if cursor.rowcount != len(batch_ids):
            connection.rollback()  # another one is at it
            return 0
        steps = range(0, len(batch_ids), JOINED_AT_ONCE)
        parts = (join(read_ranges(connection, batch_ids[at : at + JOINED_AT_ONCE])) for at in steps)
        joined = reduce(lambda one, other: join([one, other]), parts)
        hours = merge_hours(hour for of in _hours_of(cursor, batch_ids).values() for hour in of)
        cursor.execute(
            "UPDATE ingest_batch b SET messages = s.messages, raw_rows = s.raw_rows, dead_letters = s.dead_letters, "
            "duration_s = s.duration_s, commits = s.commits, arrived_at = s.arrived_at, ranges = %s FROM ("
            "SELECT sum(messages) messages, sum(raw_rows) raw_rows, sum(dead_letters) dead_letters, "
            "sum(duration_s) duration_s, sum(commits) commits, max(arrived_at) arrived_at "
            "FROM ingest_batch WHERE batch_id = ANY(%s)) s WHERE b.batch_id = %s",
            (Binary(encode(joined)), list(batch_ids), kept),
        )
        cursor.execute("DELETE FROM ingest_batch WHERE batch_id = ANY(%s)", (gone,))
        cursor.execute("DELETE FROM ingest_batch_hour WHERE batch_id = %s", (kept,))
        _insert_hours(cursor, kept, hours)
    connection.commit()
    return len(gone)


def prune(connection: Connection, before: datetime, pending_batch_ids: Collection[int]) -> int:
    """Delete records of what arrived before a moment and whose hours retention has taken; returns how many.

    The newest record stays, for the cursor of those who report. The caller commits.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM ingest_batch b WHERE arrived_at < %s AND NOT batch_id = ANY(%s) "
            "AND batch_id < (SELECT max(batch_id) FROM ingest_batch) "
            "AND NOT EXISTS (SELECT FROM ingest_batch_hour h WHERE h.batch_id = b.batch_id)",
            (before, list(pending_batch_ids)),
        )
        return int(cursor.rowcount)
