"""What is known of an hour of raw events, message by message, so that it can be judged again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import numpy as np
import numpy.typing as npt

from analytics_pipeline.records import HOUR, RAW_EVENTS, to_us
from analytics_pipeline.stages.raw import MessageSlice
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import RawRows, copy_raw, encode, headers_of, pick


class Known(Enum):
    """Where a message is kept now."""

    RAW = "raw_events"
    DEAD = "dead_letters"
    NOWHERE = ""


@dataclass(frozen=True, slots=True)
class KnownSlice:
    """Messages of one partition that are kept in one place; ``event_time_us`` is meant for those in RAW only."""

    messages: MessageSlice
    arrived_at_us: npt.NDArray[np.int64]
    batch_id: npt.NDArray[np.int64]
    event_time_us: npt.NDArray[np.int64]
    where: Known


@dataclass(frozen=True, slots=True)
class BatchRange:
    """Offsets that one batch read, with its arrival."""

    topic: str
    epoch: int
    partition: int
    from_offset: int
    to_offset: int
    batch_id: int
    arrived_at_us: int


def batch_ranges(connection: Connection, hour: datetime) -> list[BatchRange]:
    """Offset ranges that brought something for an hour, of logs that still live, below the next offset."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT r.topic, r.epoch, r.partition, r.from_offset, least(r.to_offset, o.next_offset), r.batch_id, "
            "b.arrived_at FROM ingest_batch_hour h JOIN ingest_batch b USING (batch_id) "
            "JOIN ingest_batch_range r USING (batch_id) JOIN kafka_offset o USING (topic, partition, epoch) "
            "WHERE h.hour = %s GROUP BY r.batch_id, r.topic, r.partition, r.from_offset, o.next_offset, "
            "b.arrived_at",
            (hour,),
        )
        rows = cursor.fetchall()
    return [BatchRange(t, e, p, first, end, batch, to_us(at)) for t, e, p, first, end, batch, at in rows]


def read_known(connection: Connection, hour: datetime) -> list[KnownSlice]:
    """Every raw event of an hour and every dead letter of its drain, by partition."""
    columns = 'topic, epoch, partition, "offset", kafka_time, payload, key, headers, arrived_at, batch_id'
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {columns}, event_time FROM raw_events WHERE event_time >= %s AND event_time < %s "
            'ORDER BY topic, epoch, partition, "offset"',
            (hour, hour + HOUR),
        )
        slices = _slices(cursor.fetchall(), Known.RAW)
        cursor.execute(
            f"SELECT {columns}, kafka_time FROM dead_letters WHERE hour = %s AND stage = %s "
            'ORDER BY topic, epoch, partition, "offset"',
            (hour, RAW_EVENTS),
        )
        return slices + _slices(cursor.fetchall(), Known.DEAD)


def _slices(rows: Sequence[tuple[object, ...]], where: Known) -> list[KnownSlice]:
    groups: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
    for row in rows:
        groups.setdefault(row[:3], []).append(row)
    return [_slice(group, where) for group in groups.values()]


def _slice(rows: Sequence[tuple[object, ...]], where: Known) -> KnownSlice:
    topic, epoch, partition = rows[0][:3]
    offsets = [int(row[3]) for row in rows]  # type: ignore[call-overload]
    messages = MessageSlice(topic, epoch, partition, offsets[0], offsets[-1] + 1, offsets)  # type: ignore[arg-type]
    for row in rows:
        payload, key = row[5], row[6]
        messages.kafka_times_ms.append(to_us(row[4]) // 1000)  # type: ignore[arg-type]
        messages.values.append(payload.encode() if isinstance(payload, str) else _bytes(payload))
        messages.keys.append(_bytes(key))
        messages.headers.append(headers_of(row[7]))
    arrived, batch, event = (
        np.array([to_us(row[8]) for row in rows], np.int64),  # type: ignore[arg-type]
        np.array([row[9] or 0 for row in rows], np.int64),
        np.array([to_us(row[10]) for row in rows], np.int64),  # type: ignore[arg-type]
    )
    return KnownSlice(messages, arrived, batch, event, where)


def _bytes(value: object) -> bytes | None:
    return None if value is None else bytes(value)  # type: ignore[call-overload]


def positions(connection: Connection, part: MessageSlice) -> set[int]:
    """Offsets of a slice's span that are kept in raw events or in the drain's dead letters."""
    where = 'topic = %s AND epoch = %s AND partition = %s AND "offset" >= %s AND "offset" < %s'
    span = (part.topic, part.epoch, part.partition, part.from_offset, part.next_offset)
    with connection.cursor() as cursor:
        cursor.execute(
            f'SELECT "offset" FROM raw_events WHERE {where} UNION ALL '
            f'SELECT "offset" FROM dead_letters WHERE {where} AND stage = %s',
            (*span, *span, RAW_EVENTS),
        )
        return {row[0] for row in cursor.fetchall()}


def remove(connection: Connection, part: MessageSlice, offsets: Sequence[int], where: Known) -> None:
    """Take messages out of where they are kept; the caller writes them anew in the same transaction."""
    if where is Known.NOWHERE:
        return
    stage = f" AND stage = '{RAW_EVENTS}'" if where is Known.DEAD else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {where.value} WHERE topic = %s AND epoch = %s AND partition = %s "
            f'AND "offset" = ANY(%s){stage}',
            (part.topic, part.epoch, part.partition, list(offsets)),
        )


def insert(connection: Connection, accepted: RawRows, rows: npt.NDArray[np.int64], known: KnownSlice) -> None:
    """Write some accepted rows with the arrival and the batch that they came with."""
    place = {offset: at for at, offset in enumerate(known.messages.offsets)}
    at = np.array([place[offset] for offset in accepted.offsets[rows].tolist()], np.int64)
    batch, arrived = known.batch_id[at], known.arrived_at_us[at]
    for batch_id, arrived_us in sorted(set(zip(batch.tolist(), arrived.tolist(), strict=True))):
        chosen = rows[(batch == batch_id) & (arrived == arrived_us)]
        copy_raw(connection, encode([pick(accepted, chosen)], arrived_us), batch_id)
