"""The drain: from Kafka to raw events, dead letters, batch record, pending work and offsets; a transaction per batch.

Reading and classifying one batch overlaps with writing the one before. A crash anywhere leaves either the whole
batch or nothing of it; a second drain at the same time loses the compare-and-set and rolls back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import structlog
from sqlalchemy import Engine

from analytics_pipeline.assets.raw_events.classify import Arrival, ClassifiedSlice, Classifier, bounds_at
from analytics_pipeline.assets.raw_events.offset_tracker import OffsetTracker, told
from analytics_pipeline.assets.raw_events.watermarks import Watermarks
from analytics_pipeline.domains import Registry
from analytics_pipeline.gc_pause import cycle_collection_paused
from analytics_pipeline.messages import LogPartition, MessageSlice, OffsetRange
from analytics_pipeline.records import DrainOutcome, to_us
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import LogReader
from analytics_pipeline.storage import (
    batches,
    dead_letters,
    offset_ranges,
    offsets,
    partition_state,
    pending_work,
    raw_events,
)
from analytics_pipeline.storage.domain_numbers import UNKNOWN_DOMAIN, DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.live_signal import notify
from analytics_pipeline.storage.locks import lock_raw_commits
from analytics_pipeline.storage.offsets import StoredOffset
from analytics_pipeline.storage.pending_work import Invalidation, Scope
from analytics_pipeline.storage.raw_events import EncodedRows

log = structlog.get_logger(__name__)

#: Topics that Kafka does not have, named by an idle tick; 'doctor' names all of them.
MISSING_SHOWN = 3
#: A hole of one offset is the control record that ends a transaction; its batch counts it. A wider one is a gap.
CONTROL_RECORD_OFFSETS = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one transaction writes. ``began``: ``time.monotonic`` when it was begun to be read."""

    arrived_at: datetime
    classified: Sequence[ClassifiedSlice]
    log_ids: Mapping[LogPartition, int]
    encoded: EncodedRows
    ranges: bytes
    began: float


@dataclass
class _Tick:
    """What one tick did so far."""

    logs: Mapping[LogPartition, StoredOffset]
    watermarks: Watermarks
    batches: int = 0
    messages: int = 0
    raw_rows: int = 0
    dead_letters: int = 0
    held_back: dict[str, str] = field(default_factory=dict)

    def add(self, classified: Sequence[ClassifiedSlice]) -> None:
        self.batches += 1
        self.messages += sum(len(part.messages) for part in classified)
        self.raw_rows += sum(len(part.accepted) for part in classified)
        self.dead_letters += sum(len(part.dead_letters) for part in classified)
        self.watermarks.advance((part.messages.log, part.watermark_us, part.last_kafka_us) for part in classified)


class Drain:
    """Drains topics into the database. One per process: it keeps the Kafka assignment between ticks.

    Args:
        clock: seconds that pass, from any beginning; tests set it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        domains: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._domains = domains
        self._clock = clock
        self._reader = LogReader(settings)
        self._logs = OffsetTracker(settings, engine, self._reader)
        self._numbers = DomainNumbers(engine)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="drain-writer")
        self._writing: Future[None] | None = None
        self._topics_told = False

    def tick(self, now: datetime) -> DrainOutcome:
        """Drain to the end of the logs, or to the bounds of one tick.

        What is wrong with one domain, topic or partition is in the outcome; the others are drained.

        Args:
            now: when the tick begins. Each batch arrives as much later as the clock has moved on by then;
                plausibility is classified against its arrival.

        Raises:
            BrokerUnreachableError: nothing was moved; the next tick continues.
            OffsetConflictError: another drain was first; nothing was written twice.
        """
        began, started = self._clock(), time.monotonic()
        try:
            logs = self._logs.prepare(self._domains.topics)
            done = _Tick(logs, Watermarks(logs, self._settings.idle_partition_s))
            with cycle_collection_paused():
                self._drain(
                    done,
                    lambda: now + timedelta(seconds=self._clock() - began),
                    started + self._settings.drain_max_seconds,
                )
            if done.messages:
                self._reader.commit()
            lag = self._logs.record_ends(self._reader.ends())
            resolved = self._logs.resolve(self._reader.moved)
        except BaseException:
            self._reader.forget()
            raise
        return self._outcome(done, resolved, lag, time.monotonic() - started)

    def look(self) -> int:
        """Drain nothing, but see how much waits; returns the lag in messages.

        Raises:
            BrokerUnreachableError: no answer.
        """
        self._logs.prepare(self._domains.topics)
        return self._logs.record_ends(self._reader.ask_ends())

    def close(self) -> None:
        """Let go of Kafka."""
        try:
            self._writer.shutdown(wait=True)
        finally:
            self._reader.close()

    def _outcome(self, done: _Tick, resolved: Sequence[str], lag: int, duration_s: float) -> DrainOutcome:
        held = [f"domain {name} is held back: {what}" for name, what in sorted(done.held_back.items())]
        troubles = (*held, *resolved, *told(self._logs.troubles | self._reader.troubles))
        return DrainOutcome(
            batches=done.batches,
            messages=done.messages,
            raw_rows=done.raw_rows,
            dead_letters=done.dead_letters,
            lag_messages=lag,
            skip_reason=None if done.messages else "; ".join(troubles) or self._idle(),
            duration_s=duration_s,
            held_back=done.held_back,
            troubles=troubles,
        )

    def _idle(self) -> str:
        """In one calm line: domains that are enabled and whose topics nobody made are nothing to worry about."""
        missing = self._logs.missing
        if not missing:
            return "no new messages"
        some = ", ".join(missing[:MISSING_SHOWN])
        more = f" and {len(missing) - MISSING_SHOWN} more" if len(missing) > MISSING_SHOWN else ""
        nothing = "" if len(missing) == len(self._domains.topics) else "no new messages; "
        return f"{nothing}Kafka has no topic {some}{more}"

    def _drain(self, done: _Tick, arrival: Callable[[], datetime], deadline: float) -> None:
        self._numbers.numbers([UNKNOWN_DOMAIN, *self._domains.by_name])
        self._tell_topics()
        try:
            while self._next_batch(done, arrival, deadline):
                pass
        finally:
            # Also when reading failed: nobody looks at the offsets before the batch in flight is in or out.
            self._wait_for_write()

    def _tell_topics(self) -> None:
        """Once per process: the views find a domain's watermark by its topics, also of one that came since the last
        migration."""
        if not self._topics_told:
            with connection(self._engine) as conn:
                offsets.add_domain_topics(conn, self._domains.domain_topics)
                conn.commit()
            self._topics_told = True

    def _next_batch(self, done: _Tick, arrival: Callable[[], datetime], deadline: float) -> bool:
        """Read and classify a batch while the one before is written; returns whether to go on."""
        began = time.monotonic()
        settings = self._settings
        slices = self._reader.read(settings.drain_batch_messages, settings.drain_batch_bytes, deadline)
        arrived_at = arrival()
        classified = self._classify(done, slices, arrived_at)
        encoded = raw_events.encode([part.accepted for part in classified], to_us(arrived_at))
        log_ids = {part.messages.log: done.logs[part.messages.log].log_id for part in classified}
        ranges = offset_ranges.encode(self._ranges(classified, log_ids))
        self._wait_for_write()
        if classified:
            done.add(classified)
            batch = Batch(
                arrived_at=arrived_at,
                classified=classified,
                log_ids=log_ids,
                encoded=encoded,
                ranges=ranges,
                began=began,
            )
            self._writing = self._writer.submit(self._write, batch)
        return not self._reader.at_end and bool(slices) and time.monotonic() < deadline

    def _wait_for_write(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    # ------------------------------------------------------------------ classifying

    def _classify(self, done: _Tick, slices: Sequence[MessageSlice], arrived_at: datetime) -> list[ClassifiedSlice]:
        """What becomes of the slices; a domain that cannot be classified is held back until the next tick."""
        classifier = Classifier(bounds_at(self._settings, arrived_at), self._settings)
        watermarks = done.watermarks.by_topic({part.topic for part in slices})
        numbers = self._numbers.numbers([UNKNOWN_DOMAIN, *self._domains.by_name])
        arrivals = []
        for part in slices:
            domain = self._domains.by_topic.get(part.topic)
            arrivals.append(
                Arrival(
                    messages=part,
                    domain=domain,
                    domain_id=numbers[domain.name if domain else UNKNOWN_DOMAIN],
                    arrived_at_us=np.full(len(part), to_us(arrived_at), np.int64),
                    topic_watermark_us=watermarks[part.topic],
                )
            )
        classified, failed = classifier.classify(arrivals)
        if failed:
            done.held_back |= failed
            self._reader.set_aside(
                {part.log: part.from_offset for part, result in zip(slices, classified, strict=True) if result is None}
            )
        return [one for one in classified if one is not None]

    def _ranges(
        self, classified: Sequence[ClassifiedSlice], log_ids: Mapping[LogPartition, int]
    ) -> offset_ranges.OffsetRanges:
        rows = []
        for part in classified:
            m = part.messages
            domain = self._domains.by_topic.get(m.topic)
            splits = domain is not None and domain.split is not None
            checksum = offset_ranges.checksum(m.values, m.offsets) if splits else 0
            rows.append((log_ids[m.log], m.from_offset, m.next_offset, len(m), checksum))
        return offset_ranges.of_rows(rows)

    # ------------------------------------------------------------------ writing

    def _write(self, batch: Batch) -> None:
        with connection(self._engine) as conn:
            self._write_rows(conn, batch)
            self._commit(conn)

    def _commit(self, conn: Connection) -> None:
        conn.commit()

    def _write_rows(self, conn: Connection, batch: Batch) -> None:
        classified = batch.classified
        lock_raw_commits(conn)
        offsets.move(conn, [_move(part, batch.log_ids[part.messages.log]) for part in classified])
        hours = batches.merge_hours(one for part in classified for one in part.hours())
        record = batches.BatchRecord(
            arrived_at=batch.arrived_at,
            duration_s=time.monotonic() - batch.began,
            messages=sum(len(part.messages) for part in classified),
            ranges=batch.ranges,
            hours=hours,
        )
        batch_id = batches.open_batch(conn, record)
        offsets.record_gaps(conn, _gaps(classified))
        written = raw_events.copy_raw(conn, batch.encoded, batch_id)
        rejected = [one for part in classified for one in part.dead_letters]
        dead_letters.write(conn, rejected, batch_id)
        _assert_nothing_vanished(classified, written, len(rejected))
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
        notify(conn, "work")


def _move(part: ClassifiedSlice, log_id: int) -> offsets.OffsetMove:
    m = part.messages
    return offsets.OffsetMove(
        range=OffsetRange(m.log, m.from_offset, m.next_offset),
        log_id=log_id,
        watermark_us=part.watermark_us,
        last_kafka_us=part.last_kafka_us,
        leader_epoch=m.leader_epoch,
    )


def _gaps(classified: Sequence[ClassifiedSlice]) -> list[offsets.Gap]:
    """Holes that are more than control records, which come with every transaction and would drown them."""
    return [
        offsets.Gap(part.messages.log, start, end, "no message: compacted or aborted transaction")
        for part in classified
        for start, end in part.messages.gaps
        if end - start > CONTROL_RECORD_OFFSETS
    ]


def _assert_nothing_vanished(classified: Sequence[ClassifiedSlice], written: int, rejected: int) -> None:
    """Every message is covered: by one row, or, where it was split, by one for each element."""
    rows = sum(part.rows for part in classified)
    covered = all(part.covers_every_message for part in classified)
    if written + rejected != rows or not covered:
        messages = sum(len(part.messages) for part in classified)
        raise AssertionError(
            f"batch of {messages} messages, {rows} rows of them, would become {written} raw rows and {rejected} "
            "dead letters; rolled back, please report this as a bug"
        )
