"""An hour of raw events, rebuilt by hand: read again what Kafka still has, and decode again what is stored.

Adds what is in neither raw events nor dead letters; moves rows whose event time reads differently now (a fixed
time zone, a fixed domain); lets dead letters in that can be read now. Judged by the arrival that is stored, so
that a replay judges as live did.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from analytics_pipeline.domains import Registry
from analytics_pipeline.flow.judge import UNKNOWN_DOMAIN, Arrival, Judge, JudgedSlice, bounds_at
from analytics_pipeline.records import RAW_EVENTS, DomainOutcome, GateResult, HourOutcome, from_us, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import LogReader, Position
from analytics_pipeline.stages.raw import MessageSlice
from analytics_pipeline.storage import dead_letters, partition_state, pending_work, raw_events, replay, retention
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.locks import hour_lock, lock_raw_commits
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import Invalidation
from analytics_pipeline.storage.replay import BatchRange, Known, KnownSlice

#: One read of a partition that is read again; a broker that is slower than this is not waited for.
READ_SECONDS = 60.0


@dataclass(frozen=True)
class _Change:
    """What judging again changes about one slice: rows to take out of where they are, rows to write."""

    judged: JudgedSlice
    known: KnownSlice
    differs: npt.NDArray[np.bool_]


def rebuild_raw(settings: Settings, engine: Engine, domains: Registry, hour: datetime, run_id: str) -> HourOutcome:
    """Rebuild one hour of raw events.

    Raises:
        BrokerUnreachableError: Kafka cannot be read again; nothing was changed.
        BelowRetentionError: retention has taken the hour; nothing was changed.
    """
    started = time.monotonic()
    judge = Judge(bounds_at(settings, datetime.now(UTC)), settings)
    with connection(engine) as conn, hour_lock(conn, RAW_EVENTS, hour):
        retention.refuse_below_floor(conn, RAW_EVENTS, hour)
        numbers = DomainNumbers(engine)
        slices = replay.read_known(conn, hour)
        slices += _missing(settings, conn, replay.batch_ranges(conn, hour))
        changes = _judge(judge, domains, slices)
        touched = {hour}
        for change in changes:
            touched |= _apply(conn, change, numbers)
        lock_raw_commits(conn)  # only now: the drain goes on while Kafka is read again
        outcomes = [_recount(conn, numbers, domain, hour, touched, run_id) for domain in _names(domains, changes)]
        conn.commit()
    return HourOutcome(RAW_EVENTS, hour, "full", tuple(outcomes), time.monotonic() - started)


def _names(domains: Registry, changes: Iterable[_Change]) -> list[str]:
    return sorted({domain.name for domain in domains} | {change.judged.domain for change in changes})


# ---------------------------------------------------------------------- reading again


def _missing(settings: Settings, conn: Connection, ranges: Sequence[BatchRange]) -> list[KnownSlice]:
    """Messages of recorded offset ranges that are in neither raw events nor dead letters."""
    found: list[KnownSlice] = []
    reader = LogReader(settings)
    try:
        for stretch in _stretches(ranges):
            first, last = stretch[0], stretch[-1]
            low, _ = reader.bounds(first.topic, first.partition)
            begin = max(first.from_offset, low)
            if begin >= last.to_offset:
                continue
            reader.assign({(first.topic, first.partition): Position(first.epoch, begin)})
            found += _read_stretch(settings, reader, conn, stretch)
    finally:
        reader.close()
    return found


def _read_stretch(
    settings: Settings, reader: LogReader, conn: Connection, stretch: Sequence[BatchRange]
) -> list[KnownSlice]:
    found: list[KnownSlice] = []
    end, reached = stretch[-1].to_offset, 0
    while reached < end:
        deadline = time.monotonic() + READ_SECONDS
        parts = reader.read(settings.drain_batch_messages, settings.drain_batch_bytes, deadline)
        for part in parts:
            reached = part.next_offset
            present = replay.positions(conn, part)
            rows = [row for row, offset in enumerate(part.offsets) if offset < end and offset not in present]
            if rows:
                found.append(_arrived(_pick(part, rows), stretch))
        if not parts:
            break
    return found


def _stretches(ranges: Sequence[BatchRange]) -> list[list[BatchRange]]:
    """Ranges of one partition that follow each other, read in one go."""
    stretches: list[list[BatchRange]] = []
    for one in sorted(ranges, key=lambda r: (r.topic, r.partition, r.from_offset)):
        before = stretches[-1][-1] if stretches else None
        same = before and (before.topic, before.partition) == (one.topic, one.partition)
        if before and same and before.to_offset == one.from_offset:
            stretches[-1].append(one)
        else:
            stretches.append([one])
    return stretches


def _pick(part: MessageSlice, rows: Sequence[int]) -> MessageSlice:
    return MessageSlice(
        part.topic,
        part.epoch,
        part.partition,
        part.from_offset,
        part.next_offset,
        [part.offsets[row] for row in rows],
        [part.kafka_times_ms[row] for row in rows],
        [part.values[row] for row in rows],
        [part.keys[row] for row in rows],
        [part.headers[row] for row in rows],
    )


def _arrived(part: MessageSlice, stretch: Sequence[BatchRange]) -> KnownSlice:
    """Messages that are new to us take arrival and batch from the range that they were recorded in."""
    starts = np.array([one.from_offset for one in stretch])
    at = np.clip(np.searchsorted(starts, part.offsets, side="right") - 1, 0, len(stretch) - 1)
    arrived = np.array([one.arrived_at_us for one in stretch], np.int64)[at]
    batch = np.array([one.batch_id for one in stretch], np.int64)[at]
    return KnownSlice(part, arrived, batch, np.zeros(len(part), np.int64), Known.NOWHERE)


# ---------------------------------------------------------------------- judging and writing again


def _judge(judge: Judge, domains: Registry, slices: Sequence[KnownSlice]) -> list[_Change]:
    arrivals = [
        Arrival(one.messages, domains.by_topic.get(one.messages.topic), one.arrived_at_us) for one in slices
    ]
    return [
        _Change(judged, known, _differs(judged, known))
        for judged, known in zip(judge.judge(arrivals), slices, strict=True)
    ]


def _differs(judged: JudgedSlice, known: KnownSlice) -> npt.NDArray[np.bool_]:
    """Rows that are to be written anew. Dead letters always are: their reason may be another."""
    if known.where is not Known.RAW:
        return np.ones(len(known.messages), np.bool_)
    accepted = np.isin(known.messages.offsets, judged.accepted.offsets)
    differs = ~accepted
    differs[accepted] = judged.accepted.event_time_us != known.event_time_us[accepted]
    return differs


def _apply(conn: Connection, change: _Change, numbers: DomainNumbers) -> set[datetime]:
    """Write one slice's changes; returns the hours whose raw events are others now."""
    part, known = change.known.messages, change.known
    rows = np.flatnonzero(change.differs)
    if not len(rows):
        return set()
    offsets = [part.offsets[row] for row in rows.tolist()]
    replay.remove(conn, part, offsets, known.where)
    wanted = set(offsets)
    letters = [
        replace(letter, batch_id=int(known.batch_id[part.offsets.index(letter.offset)]))
        for letter in change.judged.letters
        if letter.offset in wanted
    ]
    dead_letters.write(conn, letters)
    accepted = change.judged.accepted
    moved = np.isin(accepted.offsets, offsets)
    replay.insert(conn, accepted, np.flatnonzero(moved), known)
    times = accepted.event_time_us[moved].tolist()
    if known.where is Known.RAW:
        times += known.event_time_us[rows].tolist()
    hours = {hour_of(from_us(one)) for one in times}
    if change.judged.domain != UNKNOWN_DOMAIN:
        number = numbers.number(change.judged.domain)
        pending_work.add(
            conn,
            [
                Invalidation(
                    asset="normalized_measurements", domain_id=number, hour=hour, reason="raw events rebuilt"
                )
                for hour in sorted(hours)
            ],
        )
    return hours


def _recount(
    conn: Connection,
    numbers: DomainNumbers,
    domain: str,
    hour: datetime,
    touched: Iterable[datetime],
    run_id: str,
) -> DomainOutcome:
    outcome = DomainOutcome(domain, 0, 0, 0, 0, GateResult(RAW_EVENTS, domain, 0))
    for one in sorted(touched):
        raw, dead = raw_events.count_hour(conn, domain, one), dead_letters.count(conn, RAW_EVENTS, one, domain)
        if raw or dead:
            state = PartitionState(rows=raw, rows_failed=dead)
            partition_state.write_states(conn, RAW_EVENTS, {(numbers.number(domain), one): state}, run_id)
        if one == hour:
            outcome = replace(
                outcome, rows=raw, written=raw, dead_letters=dead, rows_seen=raw + dead, rows_failed=dead
            )
    return outcome
