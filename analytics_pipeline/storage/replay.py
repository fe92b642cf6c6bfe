"""What is known of an hour of raw events, message by message, so that it can be classified again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.records import HOUR, RAW_EVENTS, from_us, to_us
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.offset_ranges import decode
from analytics_pipeline.storage.raw_events import IN_LOG, RawRows, copy_raw, encode, headers_of, pick

#: A dead letter of this reason has no headers: the client library could not read them.
HEADERS_UNREADABLE = "headers_unreadable"
#: Rows fetched at once: the driver holds them a second time.
FETCHED_AT_ONCE = 10_000


class Known(Enum):
    """Where a message is kept now."""

    RAW = RAW_EVENTS
    DEAD = "dead_letters"
    NOWHERE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSlice:
    """Messages of one log that are kept in one place, or elements of them.

    Attributes:
        event_time_us: meant for those in RAW only.
        elements: the messages are elements that were split before.
        said: of those in DEAD, reason and error.
        present: of those that are NOWHERE, which (offset, ordinal) are kept all the same: a message that is
            split may be kept in part.
    """

    messages: MessageSlice
    arrived_at_us: npt.NDArray[np.int64]
    batch_id: npt.NDArray[np.int64]
    event_time_us: npt.NDArray[np.int64]
    where: Known
    elements: bool = False
    said: Sequence[tuple[str, str]] = ()
    present: frozenset[tuple[int, int]] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRange:
    """Offsets that one batch read, with its arrival."""

    log: LogPartition
    kafka_topic_id: str | None
    from_offset: int
    to_offset: int
    batch_id: int
    arrived_at_us: int


def batch_ranges(connection: Connection, hour: datetime, topics: Sequence[str]) -> list[BatchRange]:
    """Offset ranges of the batches that brought something for an hour, of logs that still live, below the next
    offset."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT o.log_id, o.topic, o.epoch, o.partition, l.kafka_topic_id, o.next_offset FROM kafka_offset o "
            "JOIN kafka_log l USING (log_id) WHERE o.topic = ANY(%s) AND l.ended_at IS NULL",
            (list(topics),),
        )
        alive = {row[0]: (LogPartition(*row[1:4]), *row[4:]) for row in cursor.fetchall()}
        cursor.execute(
            "SELECT batch_id, arrived_at, ranges FROM ingest_batch b "
            "WHERE EXISTS (SELECT FROM ingest_batch_hour h WHERE h.batch_id = b.batch_id AND h.hour = %s)",
            (hour,),
        )
        found: list[BatchRange] = []
        for batch_id, arrived_at, value in cursor.fetchall():
            ranges = decode(value)
            columns = (ranges.log_id, ranges.from_offset, ranges.to_offset)
            for log_id, begin, end in zip(*(column.tolist() for column in columns), strict=True):
                if log_id in alive:
                    log, topic_id, next_offset = alive[log_id]
                    known = min(end, next_offset)
                    found.append(BatchRange(
                        log=log,
                        kafka_topic_id=topic_id,
                        from_offset=begin,
                        to_offset=known,
                        batch_id=batch_id,
                        arrived_at_us=to_us(arrived_at),
                    ))
    return found


def floors(connection: Connection) -> dict[str, datetime]:
    """The first hour of raw events that retention left, by domain; none for domains that it never touched."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT domain, floor_hour FROM retention_floor WHERE asset = %s", (RAW_EVENTS,))
        return dict(cursor.fetchall())


_KEPT = (
    'topic, epoch, partition, "offset", ordinal, kafka_time, payload, key, headers, arrived_at, '
    "coalesce(batch_id, 0)"
)


def read_known(connection: Connection, hour: datetime, topics: Sequence[str]) -> list[KnownSlice]:
    """Every raw event of an hour and every dead letter of its drain, of some topics, by log."""
    raw = (
        f"SELECT {_KEPT}, event_time, NULL, NULL, true FROM raw_events "
        "WHERE event_time >= %s AND event_time < %s AND topic = ANY(%s)"
    )
    dead = (
        f"SELECT {_KEPT}, kafka_time, reason, error, is_element FROM dead_letters "
        "WHERE hour = %s AND stage = %s AND topic = ANY(%s)"
    )
    return [
        *_slices(connection, raw, (hour, hour + HOUR, list(topics)), Known.RAW),
        *_slices(connection, dead, (hour, RAW_EVENTS, list(topics)), Known.DEAD),
    ]


def _slices(connection: Connection, query: str, values: Sequence[Any], where: Known) -> list[KnownSlice]:
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(FETCHED_AT_ONCE):
            for row in rows:
                groups.setdefault((*row[:3], row[14]), []).append(row)
    return [_slice(sorted(group, key=lambda row: row[3:5]), where) for group in groups.values()]


def _slice(rows: Sequence[tuple[Any, ...]], where: Known) -> KnownSlice:
    offsets = [row[3] for row in rows]
    elements = rows[0][14]
    has_ordinals = any(row[4] for row in rows) or (elements and where is Known.DEAD)
    messages = MessageSlice(
        log=LogPartition(*rows[0][:3]),
        from_offset=offsets[0],
        next_offset=offsets[-1] + 1,
        offsets=offsets,
        kafka_times_ms=[to_us(row[5]) // 1000 for row in rows],
        values=[row[6].encode() if isinstance(row[6], str) else _bytes(row[6]) for row in rows],
        keys=[_bytes(row[7]) for row in rows],
        headers=[headers_of(row[8]) for row in rows],
        unreadable={at: row[13] for at, row in enumerate(rows) if row[12] == HEADERS_UNREADABLE},
        ordinals=[row[4] for row in rows] if has_ordinals else None,
    )
    return KnownSlice(
        messages=messages,
        arrived_at_us=np.array([to_us(row[9]) for row in rows], np.int64),
        batch_id=np.array([row[10] for row in rows], np.int64),
        event_time_us=np.array([to_us(row[11]) for row in rows], np.int64),
        where=where,
        elements=elements,
        said=[(row[12], row[13]) for row in rows],
    )


def _bytes(value: object) -> bytes | None:
    return None if value is None else bytes(value)  # type: ignore[call-overload]


def positions(connection: Connection, part: MessageSlice) -> tuple[frozenset[tuple[int, int]], set[int]]:
    """What of a slice's span is kept in raw events or in the drain's dead letters: (offset, ordinal), and the
    offsets of whole messages among the dead letters."""
    span = (*_log(part.log), part.from_offset, part.next_offset - 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f'SELECT "offset", ordinal, false FROM raw_events WHERE {IN_LOG} UNION ALL '
            f'SELECT "offset", ordinal, NOT is_element FROM dead_letters WHERE {IN_LOG} AND stage = %s',
            (*span, *span, RAW_EVENTS),
        )
        rows = cursor.fetchall()
    return frozenset(row[:2] for row in rows), {offset for offset, _, whole in rows if whole}


def _log(log: LogPartition) -> tuple[str, int, int]:
    return log.topic, log.epoch, log.partition


def remove(connection: Connection, known: KnownSlice, rows: npt.NDArray[np.int64]) -> None:
    """Take messages out of where they are kept; the caller writes them anew in the same transaction.

    Bounded by offset and event time, both as constants: without them each compressed chunk is unpacked.
    """
    if known.where is Known.NOWHERE or not len(rows):
        return
    part = known.messages
    offsets = [part.offsets[row] for row in rows.tolist()]
    ordinals = [part.ordinal(row) for row in rows.tolist()]
    if known.where is Known.RAW:
        times = known.event_time_us[rows]
        bound = "event_time BETWEEN %s AND %s"
        values: tuple[Any, ...] = (from_us(int(times.min())), from_us(int(times.max())))
    else:
        bound, values = "stage = %s", (RAW_EVENTS,)
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {known.where.value} WHERE {IN_LOG} AND {bound} "
            'AND ("offset", ordinal) IN (SELECT * FROM unnest(%s::bigint[], %s::int[]))',
            (*_log(part.log), min(offsets), max(offsets), *values, offsets, ordinals),
        )


def insert(connection: Connection, accepted: RawRows, known: KnownSlice, row_of: Mapping[Any, int]) -> None:
    """Write accepted rows with the arrival and the batch that they came with.

    Args:
        row_of: of a row's offset (of elements: with its ordinal) the row of ``known`` that it comes from.
    """
    at = np.array([row_of[key] for key in keys_of(accepted, known.elements)], np.int64)
    batch, arrived = known.batch_id[at], known.arrived_at_us[at]
    for batch_id, arrived_us in sorted(set(zip(batch.tolist(), arrived.tolist(), strict=True))):
        chosen = np.flatnonzero((batch == batch_id) & (arrived == arrived_us))
        copy_raw(connection, encode([pick(accepted, chosen)], arrived_us), batch_id)


def keys_of(rows: RawRows, elements: bool) -> Sequence[Any]:
    """What tells rows of a slice apart: the offset, of elements with the ordinal."""
    offsets = rows.offsets.tolist()
    return list(zip(offsets, rows.ordinals.tolist(), strict=True)) if elements else offsets
