"""Dead letters: what a stage rejected, bytes kept. Unique by (position, stage). Not here: why it was rejected."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from analytics_pipeline.records import DeadLetter
from analytics_pipeline.storage.binary_copy import POSTGRES_EPOCH_US, SIGNATURE, TRAILER
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import headers_json

ERROR_CHARACTERS = 1000
#: Bytes of one COPY: a single dead letter may have many megabytes.
COPY_BYTES = 8 * 1024 * 1024

_COLUMNS = (
    'topic, epoch, partition, "offset", ordinal, stage, hour, domain, reason, error, payload, key, headers, '
    "kafka_time, event_time, arrived_at, batch_id, is_element"
)
_FIELDS = struct.pack(">h", _COLUMNS.count(",") + 1)
_NULL = struct.pack(">i", -1)
_INT4, _INT8 = struct.Struct(">ii"), struct.Struct(">iq")
_LENGTH = struct.Struct(">i")
_TRUE, _FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"

_INCOMING = (
    "CREATE TEMP TABLE IF NOT EXISTS incoming_dead_letters ON COMMIT DELETE ROWS AS "
    "SELECT topic, epoch, partition, \"offset\", ordinal, stage, hour, ''::text AS domain, reason, error, "
    "payload, key, headers, kafka_time, event_time, arrived_at, batch_id, is_element FROM dead_letters WHERE false"
)
#: Of the position and stage: without statistics the planner expects one letter of an hour, and would read all that come
#: for each that is stored.
_INDEXED = (
    "CREATE INDEX IF NOT EXISTS incoming_dead_letters_position "
    'ON incoming_dead_letters (topic, epoch, partition, "offset", ordinal, stage)'
)
_REPLACED = ("hour", "domain_id", "reason", "error", "payload", "event_time", "batch_id", "is_element")
_STORED = (
    "SELECT count(*) FROM incoming_dead_letters JOIN dead_letters "
    'USING (topic, epoch, partition, "offset", ordinal, stage)'
)
#: A domain without a number makes domain_id NULL, which the table refuses.
_UPSERT = (
    'INSERT INTO dead_letters (topic, epoch, partition, "offset", ordinal, stage, hour, domain_id, reason, '
    "error, payload, key, headers, kafka_time, event_time, arrived_at, batch_id, is_element) "
    'SELECT i.topic, i.epoch, i.partition, i."offset", i.ordinal, i.stage, i.hour, d.domain_id, i.reason, '
    "i.error, i.payload, i.key, i.headers, i.kafka_time, i.event_time, i.arrived_at, i.batch_id, i.is_element "
    "FROM incoming_dead_letters i LEFT JOIN domain_number d USING (domain) "
    "ON CONFLICT (topic, epoch, partition, \"offset\", ordinal, stage) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in _REPLACED)
    # One that is as it was is not written again: an hour that is rebuilt may hold thousands of them.
    + f" WHERE ({', '.join(f'dead_letters.{name}' for name in _REPLACED)}) "
    f"IS DISTINCT FROM ({', '.join(f'EXCLUDED.{name}' for name in _REPLACED)})"
)


def stored_error(error: str) -> str:
    """An error as it is kept: PostgreSQL text takes neither NUL nor half of a surrogate pair."""
    return error.replace("\x00", "\\u0000").encode("utf-8", "backslashreplace").decode()[:ERROR_CHARACTERS]


def write(connection: Connection, rejected: Sequence[DeadLetter], batch_id: int | None = None) -> None:
    """Insert, or replace what the same stage said of the same position before.

    The domains have numbers already (`domain_numbers`). ``batch_id`` is that of dead letters without one.
    """
    if not rejected:
        return
    with connection.cursor() as cursor:
        _copy_in(cursor, rejected, batch_id)
        _upsert(cursor, len(rejected))


def replace_hours(
    connection: Connection, stage: str, keys: Sequence[tuple[int, datetime]], rejected: Sequence[DeadLetter]
) -> None:
    """The same, and drop what else the stage said of some (domain number, hour), which are rebuilt."""
    with connection.cursor() as cursor:
        _copy_in(cursor, rejected, None)
        cursor.execute(
            "DELETE FROM dead_letters d USING unnest(%s::int[], %s::timestamptz[]) w (domain_id, hour) "
            "WHERE d.hour = w.hour AND d.stage = %s AND d.domain_id = w.domain_id AND NOT EXISTS ("
            "SELECT FROM incoming_dead_letters i WHERE i.topic = d.topic AND i.epoch = d.epoch AND i.stage = d.stage "
            'AND i.partition = d.partition AND i."offset" = d."offset" AND i.ordinal = d.ordinal)',
            ([key[0] for key in keys], [key[1] for key in keys], stage),
        )
        _upsert(cursor, len(rejected))


def _copy_in(cursor: Any, rejected: Sequence[DeadLetter], batch_id: int | None) -> None:
    cursor.execute(_INCOMING)
    cursor.execute(_INDEXED)
    cursor.execute("DELETE FROM incoming_dead_letters")
    for stream in _streams(_encode(one, batch_id) for one in rejected):
        cursor.copy_expert(f"COPY incoming_dead_letters ({_COLUMNS}) FROM STDIN (FORMAT binary)", io.BytesIO(stream))


def _upsert(cursor: Any, rejected: int) -> None:
    cursor.execute(_UPSERT)
    cursor.execute(_STORED)
    (stored,) = cursor.fetchone()
    if stored != rejected:
        raise AssertionError(
            f"{rejected} dead letters would become {stored} rows; rolled back, please report this as a bug"
        )


def _streams(rows: Iterable[bytes]) -> Iterator[bytes]:
    """COPY streams of about `COPY_BYTES`."""
    page, size = [SIGNATURE], 0
    for row in rows:
        page.append(row)
        size += len(row)
        if size >= COPY_BYTES:
            yield b"".join((*page, TRAILER))
            page, size = [SIGNATURE], 0
    if size:
        yield b"".join((*page, TRAILER))


def _encode(one: DeadLetter, batch_id: int | None) -> bytes:
    """One row of a binary COPY, in the order of `_COLUMNS`."""
    headers = headers_json(one.headers)
    batch = batch_id if one.batch_id is None else one.batch_id
    return b"".join(
        (
            _FIELDS,
            _bytes(one.topic.encode()),
            _INT4.pack(4, one.epoch),
            _INT4.pack(4, one.partition),
            _INT8.pack(8, one.offset),
            _INT4.pack(4, one.ordinal),
            _bytes(one.stage.encode()),
            _time(one.hour_us),
            _bytes(one.domain.encode()),
            _bytes(one.reason.encode()),
            _bytes(stored_error(one.error).encode()),
            _bytes(one.payload),
            _bytes(one.key),
            _bytes(None if headers is None else b"\x01" + headers.encode()),  # jsonb's wire format, version 1
            _time(one.kafka_time_us),
            _time(one.event_time_us),
            _time(one.arrived_at_us),
            _NULL if batch is None else _INT8.pack(8, batch),
            _TRUE if one.is_element else _FALSE,
        )
    )


def _bytes(value: bytes | None) -> bytes:
    return _NULL if value is None else _LENGTH.pack(len(value)) + value


def _time(time_us: int | None) -> bytes:
    return _NULL if time_us is None else _INT8.pack(8, time_us - POSTGRES_EPOCH_US)


_OF_HOUR = "hour = %s AND stage = %s AND domain_id = (SELECT domain_id FROM domain_number WHERE domain = %s)"


def count(connection: Connection, stage: str, hour: datetime, domain: str) -> int:
    """A stage's dead letters of an hour."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM dead_letters WHERE {_OF_HOUR}", (hour, stage, domain))
        return int(cursor.fetchone()[0])
