"""Offsets, epochs and gaps: where each partition stands, moved by compare-and-set. No Kafka here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extras import execute_values

from analytics_pipeline.errors import OffsetConflictError
from analytics_pipeline.records import OffsetRange, from_us
from analytics_pipeline.storage.engine import Connection


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """One row of ``kafka_offset`` with the id that its topic had when the epoch began."""

    topic: str
    partition: int
    epoch: int
    next_offset: int
    watermark_time: datetime | None
    last_kafka_time: datetime | None
    kafka_topic_id: str | None


@dataclass(frozen=True, slots=True)
class OffsetMove:
    """A step of one partition, with what its messages say about time (None: it brought none)."""

    range: OffsetRange
    watermark_us: int | None
    last_kafka_us: int | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets that no row stands for, with the reason. ``to_offset`` None: the log ended somewhere unknown."""

    topic: str
    epoch: int
    partition: int
    from_offset: int
    to_offset: int | None
    reason: str


def read_offsets(connection: Connection, topics: Sequence[str]) -> dict[tuple[str, int], StoredOffset]:
    """What is stored, by (topic, partition)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT o.topic, o.partition, o.epoch, o.next_offset, o.watermark_time, o.last_kafka_time, "
            "l.kafka_topic_id FROM kafka_offset o JOIN kafka_log l USING (topic, epoch) "
            "WHERE o.topic = ANY(%s)",
            (list(topics),),
        )
        return {(row[0], row[1]): StoredOffset(*row) for row in cursor.fetchall()}


def begin_log(connection: Connection, topic: str, epoch: int, kafka_topic_id: str | None, reason: str) -> None:
    """Record that a life of a topic begins. The same twice is once."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO kafka_log (topic, epoch, kafka_topic_id, reason) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (topic, epoch) DO NOTHING",
            (topic, epoch, kafka_topic_id, reason),
        )


def place(connection: Connection, topic: str, partition: int, epoch: int, next_offset: int) -> None:
    """Start a partition, or put it into a later epoch. Never moves it within an epoch."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO kafka_offset (topic, partition, epoch, next_offset) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (topic, partition) DO UPDATE SET epoch = EXCLUDED.epoch, "
            "next_offset = EXCLUDED.next_offset, high_offset = NULL, updated_at = now() "
            "WHERE kafka_offset.epoch < EXCLUDED.epoch",
            (topic, partition, epoch, next_offset),
        )


def move(connection: Connection, moves: Iterable[OffsetMove]) -> None:
    """Compare-and-set every partition of a batch, in one order, so that two drains cannot deadlock.

    Raises:
        OffsetConflictError: another drain was first, or the epoch changed; names the partition.
    """
    ordered = sorted(moves, key=lambda step: (step.range.topic, step.range.partition))
    with connection.cursor() as cursor:
        for step in ordered:
            where = step.range
            cursor.execute(
                "UPDATE kafka_offset SET next_offset = %s, updated_at = now(), "
                "watermark_time = greatest(watermark_time, %s), "
                "last_kafka_time = greatest(last_kafka_time, %s) "
                "WHERE topic = %s AND partition = %s AND epoch = %s AND next_offset = %s",
                (
                    where.to_offset,
                    None if step.watermark_us is None else from_us(step.watermark_us),
                    None if step.last_kafka_us is None else from_us(step.last_kafka_us),
                    where.topic,
                    where.partition,
                    where.epoch,
                    where.from_offset,
                ),
            )
            if cursor.rowcount != 1:
                raise OffsetConflictError(
                    f"{where.topic}[{where.partition}] epoch {where.epoch}: offset {where.from_offset} is no "
                    "longer the next one, another drain was first; this batch is rolled back and read again"
                )


def record_high_offsets(connection: Connection, ends: Iterable[tuple[str, int, int, int]]) -> None:
    """The ends of the logs as last seen, for lag: topic, partition, epoch, end."""
    rows = list(ends)
    if not rows:
        return
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "UPDATE kafka_offset o SET high_offset = v.high FROM (VALUES %s) v (topic, partition, epoch, high) "
            "WHERE o.topic = v.topic AND o.partition = v.partition AND o.epoch = v.epoch "
            "AND o.high_offset IS DISTINCT FROM v.high",
            rows,
            template="(%s::text, %s::int, %s::int, %s::bigint)",
        )


def record_gaps(connection: Connection, gaps: Sequence[Gap]) -> None:
    """Write gaps down. The same twice is once."""
    if not gaps:
        return
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO offset_gap (topic, epoch, partition, from_offset, to_offset, reason) VALUES %s "
            "ON CONFLICT DO NOTHING",
            [(g.topic, g.epoch, g.partition, g.from_offset, g.to_offset, g.reason) for g in gaps],
        )


def skip(connection: Connection, row: StoredOffset, to_offset: int) -> None:
    """Go past offsets that no longer exist; the caller records the gap in the same transaction."""
    move(
        connection,
        [OffsetMove(OffsetRange(row.topic, row.epoch, row.partition, row.next_offset, to_offset), None, None)],
    )
