"""The drain: from Kafka to raw events, dead letters, batch record, marks and offsets, in one transaction a batch.

Reading and judging one batch overlaps with writing the one before. A crash anywhere leaves either the whole
batch or nothing of it; a second drain at the same time loses the compare-and-set and rolls back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import structlog
from sqlalchemy import Engine

from analytics_pipeline.domains import Registry
from analytics_pipeline.flow.judge import Arrival, Judge, JudgedSlice, bounds_at
from analytics_pipeline.flow.logs import LogKeeper
from analytics_pipeline.garbage import cycle_collection_paused
from analytics_pipeline.records import BatchHour, DrainOutcome, OffsetRange, to_us
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import LogReader, OffsetOutOfRangeError
from analytics_pipeline.stages.raw import MessageSlice
from analytics_pipeline.storage import batches, dead_letters, offsets, partition_state, pending_work, raw_events
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.locks import lock_raw_commits
from analytics_pipeline.storage.offsets import StoredOffset
from analytics_pipeline.storage.pending_work import Invalidation, Scope
from analytics_pipeline.storage.raw_events import EncodedRows

log = structlog.get_logger(__name__)

OffsetsByPartition = dict[tuple[str, int], StoredOffset]


@dataclass(frozen=True)
class Batch:
    """What one transaction writes. ``began``: ``time.monotonic`` when it was begun to be read."""

    arrived_at: datetime
    judged: Sequence[JudgedSlice]
    encoded: EncodedRows
    began: float


class Drain:
    """Drains topics into the database. One per process: it keeps the Kafka assignment between ticks."""

    def __init__(self, settings: Settings, engine: Engine, domains: Registry) -> None:
        self._settings = settings
        self._engine = engine
        self._domains = domains
        self._numbers = DomainNumbers(engine)
        self._reader = LogReader(settings)
        self._logs = LogKeeper(settings, engine, self._reader)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="drain-writer")

    def tick(self, now: datetime) -> DrainOutcome:
        """Drain to the end of the logs, or to the bounds of one tick.

        Args:
            now: arrival time of what is drained; plausibility is judged against it.

        Raises:
            BrokerUnreachableError: nothing was moved; the next tick goes on.
            OffsetConflictError: another drain was first; nothing was written twice.
        """
        started = time.monotonic()
        try:
            stored = self._logs.prepare(self._domains.topics)
            with cycle_collection_paused():
                total = self._drain(now, stored, started + self._settings.drain_max_seconds)
        except OffsetOutOfRangeError as error:
            self._logs.resolve(error)
            self._reader.forget()
            return DrainOutcome(0, 0, 0, 0, 0, str(error), time.monotonic() - started)
        except BaseException:
            self._reader.forget()
            raise
        lag = self._logs.record_ends(self._reader.ends())
        return DrainOutcome(*total, lag, None if total[1] else self._idle(), time.monotonic() - started)

    def look(self) -> int:
        """Drain nothing, but see how much waits; returns the lag in messages.

        Raises:
            BrokerUnreachableError: no answer.
        """
        self._logs.prepare(self._domains.topics)
        return self._logs.record_ends(self._reader.ask_ends())

    def _idle(self) -> str:
        missing = self._logs.missing
        return f"Kafka has no topic {', '.join(missing)}" if missing else "no new messages"

    def close(self) -> None:
        """Let go of Kafka."""
        self._writer.shutdown(wait=True)
        self._reader.close()

    def _drain(self, now: datetime, stored: OffsetsByPartition, deadline: float) -> tuple[int, int, int, int]:
        counts = [0, 0, 0, 0]
        judge = Judge(bounds_at(self._settings, now), self._settings)
        writing: Future[None] | None = None
        while True:
            began = time.monotonic()
            slices = self._reader.read(
                self._settings.drain_batch_messages, self._settings.drain_batch_bytes, deadline
            )
            judged = judge.judge([self._arrival(part, now, stored) for part in slices])
            encoded = raw_events.encode([part.accepted for part in judged], to_us(now))
            if writing is not None:
                writing.result()
                writing = None
            if judged:
                for column, value in enumerate(_counts(judged)):
                    counts[column] += value
                writing = self._writer.submit(self._write, Batch(now, judged, encoded, began))
            if self._reader.at_end or not judged or time.monotonic() >= deadline:
                break
        if writing is not None:
            writing.result()
        if counts[1]:
            self._reader.commit()
        return counts[0], counts[1], counts[2], counts[3]

    # ------------------------------------------------------------------ judging

    def _arrival(self, part: MessageSlice, now: datetime, stored: OffsetsByPartition) -> Arrival:
        return Arrival(
            part,
            self._domains.by_topic.get(part.topic),
            np.full(len(part), to_us(now), np.int64),
            self._topic_watermark_us(part.topic, stored),
        )

    def _topic_watermark_us(self, topic: str, stored: OffsetsByPartition) -> int | None:
        """The least watermark over the topic's partitions that are not idle, as of the start of the tick."""
        known = [
            (to_us(row.last_kafka_time), to_us(row.watermark_time))
            for row in stored.values()
            if row.topic == topic and row.watermark_time and row.last_kafka_time
        ]
        if not known:
            return None
        active_since = max(kafka for kafka, _ in known) - self._settings.idle_partition_s * 1_000_000
        return min(watermark for kafka, watermark in known if kafka >= active_since)

    # ------------------------------------------------------------------ writing

    def _write(self, batch: Batch) -> None:
        with connection(self._engine) as conn:
            self._write_rows(conn, batch)
            self._commit(conn)

    def _commit(self, conn: Connection) -> None:
        conn.commit()

    def _write_rows(self, conn: Connection, batch: Batch) -> None:
        judged = batch.judged
        lock_raw_commits(conn)
        offsets.move(conn, [_move(part) for part in judged])
        hours = _merge_hours(judged)
        record = batches.BatchRecord(
            batch.arrived_at,
            time.monotonic() - batch.began,
            [(_range(part), len(part.messages)) for part in judged],
            hours,
        )
        batch_id = batches.open_batch(conn, record)
        offsets.record_gaps(
            conn,
            [
                offsets.Gap(m.topic, m.epoch, m.partition, start, end, "no message: compacted or transaction")
                for m in (part.messages for part in judged)
                for start, end in m.gaps
            ],
        )
        written = raw_events.copy_raw(conn, batch.encoded, batch_id)
        letters = [letter for part in judged for letter in part.letters]
        dead_letters.write(conn, letters, batch_id)
        _assert_nothing_vanished(judged, written, len(letters))
        numbers = self._numbers.numbers(h.domain for h in hours)
        partition_state.add_raw_counts(
            conn, [(numbers[h.domain], h.hour, h.raw_rows, h.dead_letters) for h in hours]
        )
        pending_work.add(
            conn,
            [
                Invalidation(
                    asset="normalized_measurements",
                    domain_id=numbers[h.domain],
                    hour=h.hour,
                    scope=Scope(batches=(batch_id,)),
                    reason="batch",
                )
                for h in hours
                if h.raw_rows
            ],
        )


def _range(part: JudgedSlice) -> OffsetRange:
    m = part.messages
    return OffsetRange(m.topic, m.epoch, m.partition, m.from_offset, m.next_offset)


def _move(part: JudgedSlice) -> offsets.OffsetMove:
    return offsets.OffsetMove(_range(part), part.watermark_us, part.last_kafka_us)


def _counts(judged: Sequence[JudgedSlice]) -> tuple[int, int, int, int]:
    return (
        1,
        sum(len(part.messages) for part in judged),
        sum(len(part.accepted) for part in judged),
        sum(len(part.letters) for part in judged),
    )


def _merge_hours(judged: Sequence[JudgedSlice]) -> list[BatchHour]:
    """One entry per (hour, domain) of a batch, over all of its slices."""
    merged: dict[tuple[int, str], BatchHour] = {}
    for part in judged:
        for start, share in part.hours().items():
            key = (start, part.domain)
            known = merged.get(key)
            merged[key] = share if known is None else _add(known, share)
    return [merged[key] for key in sorted(merged)]


def _add(one: BatchHour, other: BatchHour) -> BatchHour:
    reasons = {
        reason: one.reasons.get(reason, 0) + other.reasons.get(reason, 0)
        for reason in one.reasons.keys() | other.reasons.keys()
    }
    return BatchHour(
        one.hour,
        one.domain,
        one.raw_rows + other.raw_rows,
        one.dead_letters + other.dead_letters,
        one.late_rows + other.late_rows,
        reasons,
        (one.samples + other.samples)[: max(len(one.samples), len(other.samples))],
    )


def _assert_nothing_vanished(judged: Sequence[JudgedSlice], written: int, letters: int) -> None:
    messages = sum(len(part.messages) for part in judged)
    if written + letters != messages:
        raise AssertionError(
            f"batch of {messages} messages would become {written} raw rows and {letters} dead letters; "
            "rolled back, please report this as a bug"
        )
