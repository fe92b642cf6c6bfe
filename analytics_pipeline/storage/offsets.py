"""Logs, offsets and gaps: where each partition stands, moved by compare-and-set. No Kafka here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2 import Binary
from psycopg2.extras import execute_values

from analytics_pipeline.errors import OffsetConflictError
from analytics_pipeline.messages import LogPartition, MessageSlice, OffsetRange
from analytics_pipeline.records import from_us
from analytics_pipeline.storage.binary_copy import POSTGRES_EPOCH_US
from analytics_pipeline.storage.engine import Connection

FIRST_SEEN = "first seen"


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """Where a partition stands, in the log that it is in now.

    Attributes:
        kafka_topic_id: of the log; None where no broker told it yet.
        leader_epoch: of the last message read, where the broker tells it.
        ended: the log ended and the partition is not in the topic any more.
    """

    log: LogPartition
    log_id: int
    next_offset: int
    watermark_time: datetime | None
    last_kafka_time: datetime | None
    leader_epoch: int | None
    kafka_topic_id: str | None
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetMove:
    """A step of one partition, with what its messages say about time (None: it brought none)."""

    range: OffsetRange
    log_id: int
    watermark_us: int | None = None
    last_kafka_us: int | None = None
    leader_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class NewLog:
    """A log that begins. ``kafka_topic_id`` None: the broker tells none."""

    log: LogPartition
    begin_offset: int
    kafka_topic_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets without a stored row, with the reason. ``to_offset`` None: the log ended somewhere unknown."""

    log: LogPartition
    from_offset: int
    to_offset: int | None
    reason: str


def read_offsets(connection: Connection, topics: Sequence[str]) -> dict[tuple[str, int], StoredOffset]:
    """What is stored, by (topic, partition)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT o.topic, o.epoch, o.partition, o.log_id, o.next_offset, o.watermark_time, o.last_kafka_time, "
            "o.leader_epoch, l.kafka_topic_id, l.ended_at IS NOT NULL "
            "FROM kafka_offset o JOIN kafka_log l USING (log_id) WHERE o.topic = ANY(%s)",
            (list(topics),),
        )
        return {(row[0], row[2]): StoredOffset(LogPartition(*row[:3]), *row[3:]) for row in cursor.fetchall()}


def remember_topics(connection: Connection, topics: Sequence[str], existing: Iterable[str]) -> dict[str, bool]:
    """Which of the topics existed when they were first named here; those that are new are written down now."""
    there = set(existing)
    with connection.cursor() as cursor:
        cursor.execute("SELECT topic, existed FROM kafka_topic WHERE topic = ANY(%s)", (list(topics),))
        known: dict[str, bool] = dict(cursor.fetchall())
        new = {topic: topic in there for topic in topics if topic not in known}
        if new:
            execute_values(
                cursor,
                "INSERT INTO kafka_topic (topic, existed) VALUES %s ON CONFLICT DO NOTHING",
                sorted(new.items()),
            )
    return known | new


def begin_logs(connection: Connection, logs: Sequence[NewLog]) -> None:
    """Begin logs and put their partitions at the beginning of them. The same twice is once; never back into an
    earlier epoch."""
    if not logs:
        return
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO kafka_log (topic, epoch, partition, kafka_topic_id, begin_offset, reason) VALUES %s "
            "ON CONFLICT (topic, partition, epoch) DO NOTHING",
            [
                (new.log.topic, new.log.epoch, new.log.partition, new.kafka_topic_id, new.begin_offset, new.reason)
                for new in logs
            ],
        )
        execute_values(
            cursor,
            "INSERT INTO kafka_offset AS o (topic, partition, epoch, log_id, next_offset) "
            "SELECT topic, partition, epoch, log_id, begin_offset FROM kafka_log "
            "JOIN (VALUES %s) v (topic, epoch, partition) USING (topic, epoch, partition) "
            "ON CONFLICT (topic, partition) DO UPDATE SET epoch = EXCLUDED.epoch, log_id = EXCLUDED.log_id, "
            "next_offset = EXCLUDED.next_offset, high_offset = NULL, leader_epoch = NULL, updated_at = now() "
            "WHERE o.epoch < EXCLUDED.epoch",
            [(new.log.topic, new.log.epoch, new.log.partition) for new in logs],
        )


def end_logs(connection: Connection, ended: Sequence[StoredOffset], reason: str) -> None:
    """Write down that logs ended where they were read to; what stood behind that is a gap of unknown length."""
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "UPDATE kafka_log l SET ended_at = now(), end_offset = v.next_offset, leader_epoch = v.leader_epoch "
            "FROM (VALUES %s) v (log_id, next_offset, leader_epoch) WHERE l.log_id = v.log_id",
            [(row.log_id, row.next_offset, row.leader_epoch) for row in ended],
            template="(%s::int, %s::bigint, %s::int)",
        )
    record_gaps(connection, [Gap(row.log, row.next_offset, None, f"log ended: {reason}") for row in ended])


def fill_in_topic_ids(connection: Connection, ids: Sequence[tuple[int, str]]) -> None:
    """Topic ids that brokers tell only now, as after an upgrade; by log_id."""
    if ids:
        with connection.cursor() as cursor:
            execute_values(
                cursor,
                "UPDATE kafka_log l SET kafka_topic_id = v.id FROM (VALUES %s) v (log_id, id) "
                "WHERE l.log_id = v.log_id AND l.kafka_topic_id IS NULL",
                ids,
                template="(%s::int, %s)",
            )


#: Parameters are text of arrays: thousands of values as SQL literals take the server longer to parse than to use.
_MOVE = (
    "UPDATE kafka_offset o SET next_offset = s.to_offset, updated_at = now(), "
    "watermark_time = greatest(o.watermark_time, {watermark}), "
    "last_kafka_time = greatest(o.last_kafka_time, {last_kafka}), "
    "leader_epoch = coalesce(s.leader_epoch, o.leader_epoch) "
    "FROM unnest(%s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::int[]) "
    "s (log_id, from_offset, to_offset, watermark_us, last_kafka_us, leader_epoch) "
    "WHERE o.log_id = s.log_id AND o.next_offset = s.from_offset RETURNING o.log_id"
).format(
    **{
        name: f"'2000-01-01Z'::timestamptz + s.{name}_us * interval '1 microsecond'"
        for name in ("watermark", "last_kafka")
    }
)


def move(connection: Connection, moves: Iterable[OffsetMove]) -> None:
    """Compare-and-set every partition of a batch in one statement.

    The caller holds `locks.lock_raw_commits`, so that two drains do not lock rows in different orders.

    Raises:
        OffsetConflictError: another drain was first, or the epoch changed; names the first partition of them.
    """
    steps = sorted(moves, key=lambda step: step.range.log)
    with connection.cursor() as cursor:
        cursor.execute(
            _MOVE,
            (
                _array(step.log_id for step in steps),
                _array(step.range.from_offset for step in steps),
                _array(step.range.to_offset for step in steps),
                _array(_postgres_us(step.watermark_us) for step in steps),
                _array(_postgres_us(step.last_kafka_us) for step in steps),
                _array(step.leader_epoch for step in steps),
            ),
        )
        if cursor.rowcount != len(steps):
            moved = {row[0] for row in cursor.fetchall()}
            raise _conflict(connection, [step for step in steps if step.log_id not in moved], len(steps))


def _array(values: Iterable[int | None]) -> str:
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def _postgres_us(time_us: int | None) -> int | None:
    return None if time_us is None else time_us - POSTGRES_EPOCH_US


def _conflict(connection: Connection, stuck: Sequence[OffsetMove], steps: int) -> OffsetConflictError:
    """Names the first step that did not find its offset, and where its partition stands instead."""
    log, from_offset = stuck[0].range.log, stuck[0].range.from_offset
    row = read_offsets(connection, [log.topic]).get((log.topic, log.partition))
    where = "it is not there" if row is None else f"epoch {row.log.epoch}, offset {row.next_offset}"
    return OffsetConflictError(
        f"{log}: offset {from_offset} is no longer the next one ({where}), another drain was first, in "
        f"{len(stuck)} of {steps} partitions; this batch is rolled back and read again"
    )


def holds(connection: Connection, message: MessageSlice) -> bool:
    """Whether a slice of one message is what was read at its offset, in this epoch of its log or an earlier one.

    A message that was split counts if its time and key are the same: only its elements are stored.
    """
    log, [payload], [key] = message.log, message.values, message.keys
    kafka_time = from_us(message.kafka_times_ms[0] * 1000)
    at = (
        'topic = %s AND epoch <= %s AND partition = %s AND "offset" = %s '
        "AND kafka_time = %s AND key IS NOT DISTINCT FROM %s"
    )
    values = (log.topic, log.epoch, log.partition, message.from_offset, kafka_time, key and Binary(key))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT EXISTS (SELECT FROM raw_events WHERE {at} "
            "AND (ordinal > 0 OR convert_to(payload, 'UTF8') = %s)) "
            f"OR EXISTS (SELECT FROM dead_letters WHERE {at} AND stage = 'raw_events' "
            "AND (is_element OR payload IS NOT DISTINCT FROM %s))",
            (*values, payload and Binary(payload), *values, payload and Binary(payload)),
        )
        return bool(cursor.fetchone()[0])


def record_high_offsets(connection: Connection, ends: Iterable[tuple[LogPartition, int]]) -> None:
    """The ends of the logs as last seen, for lag. The caller holds `locks.lock_raw_commits`."""
    rows = sorted(ends)
    if not rows:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_offset o SET high_offset = v.high "
            "FROM unnest(%s::text[], %s::int[], %s::int[], %s::bigint[]) v (topic, epoch, partition, high) "
            "WHERE o.topic = v.topic AND o.partition = v.partition AND o.epoch = v.epoch "
            "AND o.high_offset IS DISTINCT FROM v.high",
            (
                [log.topic for log, _ in rows],
                _array(log.epoch for log, _ in rows),
                _array(log.partition for log, _ in rows),
                _array(high for _, high in rows),
            ),
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
            [(g.log.topic, g.log.epoch, g.log.partition, g.from_offset, g.to_offset, g.reason) for g in gaps],
        )


def add_domain_topics(connection: Connection, domain_topics: Mapping[str, Sequence[str]]) -> None:
    """Write down which topics feed a domain. Those of domains that are not named stay as they are."""
    pairs = [(domain, topic) for domain, topics in domain_topics.items() for topic in topics]
    if pairs:
        with connection.cursor() as cursor:
            execute_values(
                cursor, "INSERT INTO domain_topic (domain, topic) VALUES %s ON CONFLICT DO NOTHING", pairs
            )
