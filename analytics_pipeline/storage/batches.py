"""Records of the drain's batches: what each brought, for which hours. Written with the rows, read by reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extras import execute_values

from analytics_pipeline.records import BatchHour, BatchReport, OffsetRange
from analytics_pipeline.storage.engine import Connection


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch before it has an id."""

    arrived_at: datetime
    duration_s: float
    ranges: Sequence[tuple[OffsetRange, int]]  # with the messages that each holds
    hours: Sequence[BatchHour]

    @property
    def messages(self) -> int:
        return sum(count for _, count in self.ranges)


def open_batch(connection: Connection, record: BatchRecord) -> int:
    """Insert the record; returns the id that its rows carry."""
    raw_rows = sum(hour.raw_rows for hour in record.hours)
    dead_letters = sum(hour.dead_letters for hour in record.hours)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ingest_batch (arrived_at, messages, raw_rows, dead_letters, duration_s) "
            "VALUES (%s, %s, %s, %s, %s) RETURNING batch_id",
            (record.arrived_at, record.messages, raw_rows, dead_letters, record.duration_s),
        )
        batch_id = int(cursor.fetchone()[0])
        execute_values(
            cursor,
            "INSERT INTO ingest_batch_range VALUES %s",
            [
                (batch_id, r.topic, r.epoch, r.partition, r.from_offset, r.to_offset, count)
                for r, count in record.ranges
            ],
        )
        if record.hours:
            execute_values(
                cursor,
                "INSERT INTO ingest_batch_hour VALUES %s",
                [
                    (batch_id, h.hour, h.domain, h.raw_rows, h.dead_letters, h.late_rows,
                     json.dumps(h.reasons), json.dumps(h.samples))
                    for h in record.hours
                ],
            )  # fmt: skip
    return batch_id


def batches_after(connection: Connection, batch_id: int, limit: int = 1000) -> list[BatchReport]:
    """Batches committed after one, oldest first, with their share of each hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT batch_id, arrived_at, duration_s FROM ingest_batch WHERE batch_id > %s "
            "ORDER BY batch_id LIMIT %s",
            (batch_id, limit),
        )
        batches = cursor.fetchall()
        cursor.execute(
            "SELECT batch_id, hour, domain, raw_rows, dead_letters, late_rows, reasons, samples "
            "FROM ingest_batch_hour WHERE batch_id = ANY(%s) ORDER BY batch_id, hour, domain",
            ([row[0] for row in batches],),
        )
        hours: dict[int, list[BatchHour]] = {}
        for owner, *rest in cursor.fetchall():
            hours.setdefault(owner, []).append(BatchHour(*rest))
    return [BatchReport(bid, at, took, tuple(hours.get(bid, ()))) for bid, at, took in batches]


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
