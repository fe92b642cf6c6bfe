"""Offset ranges that were drained once, read from Kafka again for what is stored nowhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import structlog

from analytics_pipeline.domains.base import Domain
from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import BrokerUnreachableError, LogReader, Position, TopicInfo
from analytics_pipeline.storage import replay
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.replay import BatchRange, Known, KnownSlice

log = structlog.get_logger(__name__)

#: A log that brings nothing for so long, and does not end, is not waited for.
PATIENCE_S = 60.0

Unread = dict[LogPartition, BrokerUnreachableError]


def read_missing(
    settings: Settings, conn: Connection, ranges: Sequence[BatchRange], by_topic: Mapping[str, Domain]
) -> tuple[list[KnownSlice], Unread]:
    """Messages of recorded offset ranges that are in neither raw events nor dead letters; and the logs that Kafka may
    still hold and did not give, with what it said. What was read of those is among the messages.

    Raises:
        BrokerUnreachableError: no topic can be described.
    """
    found: list[KnownSlice] = []
    unread: Unread = {}
    if not ranges:
        return found, unread
    reader = LogReader(settings)
    try:
        described = reader.describe(sorted({one.log.topic for one in ranges}))
        for adjoining in _contiguous(ranges):
            where = adjoining[0].log
            try:
                if _holds(reader, described.get(where.topic), adjoining[0]):
                    split = by_topic[where.topic].split is not None
                    _read_ranges(settings, reader, conn, adjoining, split, found)
            except BrokerUnreachableError as error:
                log.warning("a log cannot be read again", log=str(where), error=str(error))
                unread[where] = BrokerUnreachableError(
                    f"{error}. {where} may hold more of this hour than is stored: what was read of it is; "
                    "materialize the hour again when the broker answers"
                )
    finally:
        reader.close()
    return found, unread


def _holds(reader: LogReader, info: TopicInfo | None, wanted: BatchRange) -> bool:
    """Whether Kafka still has the log; if not, what is stored is all there is.

    Raises:
        BrokerUnreachableError: it may have it, and does not give it now.
    """
    where = wanted.log
    if info is None:
        if where.topic in reader.troubles:
            raise reader.cluster.unreachable(f"{where}: {reader.troubles[where.topic]}")
        return False
    if wanted.kafka_topic_id and info.topic_id and wanted.kafka_topic_id != info.topic_id:
        return False  # another topic of that name
    if where.partition in info.leaderless:
        raise reader.cluster.unreachable(f"{where}: no broker leads this partition")
    return where.partition in info.partitions


def _read_ranges(
    settings: Settings,
    reader: LogReader,
    conn: Connection,
    adjoining: Sequence[BatchRange],
    split: bool,
    found: list[KnownSlice],
) -> None:
    where, end = adjoining[0].log, adjoining[-1].to_offset
    at = max(adjoining[0].from_offset, reader.bounds(where.topic, where.partition)[0])
    reader.assign({where: Position(at)})
    give_up_at = time.monotonic() + PATIENCE_S
    while at < end:
        parts = reader.read(settings.drain_batch_messages, settings.drain_batch_bytes, give_up_at)
        for part in parts:
            at, give_up_at = part.next_offset, time.monotonic() + PATIENCE_S
            present, whole = replay.positions(conn, part)
            stored = whole if split else {offset for offset, _ in present}
            rows = [row for row, offset in enumerate(part.offsets) if offset < end and offset not in stored]
            if rows:
                found.append(replace(_arrived(_pick(part, rows), adjoining), present=present))
        if not parts:
            if reader.ended(where):
                return  # the log was cut short: what is stored is all there is
            at = _after_trouble(reader, where, at, end, give_up_at)


def _after_trouble(reader: LogReader, where: LogPartition, at: int, end: int, give_up_at: float) -> int:
    """Where to read on after a read that brought neither messages nor the end.

    Raises:
        BrokerUnreachableError: that has been so for too long.
    """
    if time.monotonic() >= give_up_at:
        said = reader.moved.get(where) or "; ".join(reader.troubles.values()) or "nothing arrives"
        raise reader.cluster.unreachable(f"{where}: offsets {at} to {end} could not be read again: {said}")
    at = max(at, reader.bounds(where.topic, where.partition)[0])  # its beginning may have expired meanwhile
    reader.assign({where: Position(at)})
    return at


def _contiguous(ranges: Sequence[BatchRange]) -> list[list[BatchRange]]:
    """Ranges of one log that follow each other, read in one go."""
    found: list[list[BatchRange]] = []
    for one in sorted(ranges, key=lambda r: (r.log, r.from_offset)):
        before = found[-1][-1] if found else None
        if before and before.log == one.log and before.to_offset == one.from_offset:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _pick(part: MessageSlice, rows: Sequence[int]) -> MessageSlice:
    return replace(
        part,
        offsets=[part.offsets[row] for row in rows],
        kafka_times_ms=[part.kafka_times_ms[row] for row in rows],
        values=[part.values[row] for row in rows],
        keys=[part.keys[row] for row in rows],
        headers=[part.headers[row] for row in rows],
        unreadable={at: part.unreadable[row] for at, row in enumerate(rows) if row in part.unreadable},
    )


def _arrived(part: MessageSlice, adjoining: Sequence[BatchRange]) -> KnownSlice:
    """Messages that are new to us take arrival and batch from the range that they were recorded in."""
    starts = np.array([one.from_offset for one in adjoining])
    at = np.clip(np.searchsorted(starts, part.offsets, side="right") - 1, 0, len(adjoining) - 1)
    arrived = np.array([one.arrived_at_us for one in adjoining], np.int64)[at]
    batch = np.array([one.batch_id for one in adjoining], np.int64)[at]
    return KnownSlice(
        messages=part,
        arrived_at_us=arrived,
        batch_id=batch,
        event_time_us=np.zeros(len(part), np.int64),
        where=Known.NOWHERE,
    )
