"""Rows of ``raw_events``, written by binary COPY without re-encoding payloads, and read back by batch or hour.

Every message passes here: rows are cut from two structured arrays and joined with the payload bytes as Kafka
gave them, which costs about half of formatting them as CSV and spares the server parsing three timestamps.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg2.extras import execute_values

from analytics_pipeline.records import HOUR, to_us
from analytics_pipeline.storage.binary_copy import (
    POSTGRES_EPOCH_US,
    SIGNATURE,
    TRAILER,
    FixedTable,
    copy_out_with_payload,
)
from analytics_pipeline.storage.engine import Connection

_NULL = struct.pack(">i", -1)
_FIELDS = 10
Headers = list[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True)
class RawRows:
    """Accepted messages of one partition, column by column."""

    topic: str
    epoch: int
    partition: int
    offsets: npt.NDArray[np.int64]
    keys: Sequence[bytes | None]
    headers: Sequence[Headers]
    kafka_time_us: npt.NDArray[np.int64]
    event_time_us: npt.NDArray[np.int64]
    payloads: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.offsets)


def pick(rows: RawRows, chosen: npt.NDArray[np.int64]) -> RawRows:
    """Some of the rows."""
    places = chosen.tolist()
    return RawRows(
        rows.topic,
        rows.epoch,
        rows.partition,
        rows.offsets[chosen],
        [rows.keys[at] for at in places],
        [rows.headers[at] for at in places],
        rows.kafka_time_us[chosen],
        rows.event_time_us[chosen],
        [rows.payloads[at] for at in places],
    )


def headers_json(headers: Headers) -> str | None:
    """Headers as JSON pairs. Values that are no UTF-8 text are kept as ``{"hex": "…"}``."""
    if not headers:
        return None
    # A name's NUL is no character to PostgreSQL; a value with one is kept in hex.
    return json.dumps([[name.replace("\0", "\ufffd"), _header_value(value)] for name, value in headers])


def headers_of(stored: object) -> Headers:
    """Headers as they came, from how `headers_json` keeps them."""
    if not isinstance(stored, list):
        return None
    return [(name, _header_bytes(value)) for name, value in stored]


def _header_bytes(kept: Any) -> bytes | None:
    if kept is None:
        return None
    return kept.encode() if isinstance(kept, str) else bytes.fromhex(kept["hex"])


def _header_value(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"hex": value.hex()}
    return {"hex": value.hex()} if "\x00" in text else text


def _field(value: bytes | None) -> bytes:
    return _NULL if value is None else struct.pack(">i", len(value)) + value


def _headers_field(headers: Headers) -> bytes:
    text = headers_json(headers)
    return _NULL if text is None else _field(b"\x01" + text.encode())  # jsonb's wire format, version 1


def _cut(table: npt.NDArray[Any]) -> list[bytes]:
    buffer, width = table.tobytes(), table.dtype.itemsize
    return [buffer[at : at + width] for at in range(0, len(buffer), width)]


def _encode(rows: RawRows, arrived_at_us: int) -> Iterable[bytes]:
    """The COPY body: for each row the position, key, headers, times, and payload."""
    topic = rows.topic.encode()
    front = np.empty(
        len(rows),
        [("fields", ">i2"), ("topic_n", ">i4"), ("topic", f"S{len(topic)}"), ("epoch_n", ">i4"),
         ("epoch", ">i4"), ("part_n", ">i4"), ("part", ">i4"), ("offset_n", ">i4"), ("offset", ">i8")],
    )  # fmt: skip
    front["fields"], front["topic_n"], front["topic"] = _FIELDS, len(topic), topic
    front["epoch_n"], front["epoch"], front["part_n"], front["part"] = 4, rows.epoch, 4, rows.partition
    front["offset_n"], front["offset"] = 8, rows.offsets
    back = np.empty(
        len(rows),
        [("kafka_n", ">i4"), ("kafka", ">i8"), ("event_n", ">i4"), ("event", ">i8"), ("arrived_n", ">i4"),
         ("arrived", ">i8"), ("payload_n", ">i4")],
    )  # fmt: skip
    for name, column in (("kafka", rows.kafka_time_us), ("event", rows.event_time_us)):
        back[f"{name}_n"], back[name] = 8, column - POSTGRES_EPOCH_US
    back["arrived_n"], back["arrived"] = 8, arrived_at_us - POSTGRES_EPOCH_US
    back["payload_n"] = np.fromiter(map(len, rows.payloads), np.int32, len(rows))
    pieces: list[bytes] = [b""] * (5 * len(rows))
    pieces[0::5] = _cut(front)
    pieces[1::5] = [_NULL if key is None else _field(key) for key in rows.keys]
    pieces[2::5] = [_headers_field(headers) if headers else _NULL for headers in rows.headers]
    pieces[3::5] = _cut(back)
    pieces[4::5] = rows.payloads
    return pieces


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows ready to be sent, made while the batch before is still being written."""

    rows: int
    stream: bytes


def encode(parts: Sequence[RawRows], arrived_at_us: int) -> EncodedRows:
    """The COPY stream of rows that arrived together."""
    body = [SIGNATURE]
    for part in parts:
        body.extend(_encode(part, arrived_at_us))
    body.append(TRAILER)
    return EncodedRows(sum(map(len, parts)), b"".join(body))


def copy_raw(connection: Connection, encoded: EncodedRows, batch_id: int) -> int:
    """Write rows; returns how many. Positions that exist already are an error: offsets only move forward.

    The batch is known only inside the transaction, after the rows are encoded: it is the column's default,
    which reads a setting of the transaction.
    """
    if not encoded.rows:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('analytics_pipeline.batch_id', %s, true)", (str(batch_id),))
        cursor.copy_expert(
            'COPY raw_events (topic, epoch, partition, "offset", key, headers, kafka_time, event_time, '
            "arrived_at, payload) FROM STDIN (FORMAT binary)",
            io.BytesIO(encoded.stream),
        )
        return int(cursor.rowcount)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Raw events read back, column by column."""

    log_id: npt.NDArray[np.int32]
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    kafka_time_us: npt.NDArray[np.int64]
    event_time_us: npt.NDArray[np.int64]
    payload: list[bytes]

    def __len__(self) -> int:
        return len(self.payload)


def pick_stored(rows: StoredRows, chosen: npt.NDArray[np.int64]) -> StoredRows:
    """Some of the rows."""
    return StoredRows(
        log_id=rows.log_id[chosen],
        partition=rows.partition[chosen],
        offset=rows.offset[chosen],
        kafka_time_us=rows.kafka_time_us[chosen],
        event_time_us=rows.event_time_us[chosen],
        payload=[rows.payload[at] for at in chosen.tolist()],
    )


_STORED = FixedTable(
    (
        ("log_id", "int4"),
        ("partition", "int4"),
        ("offset", "int8"),
        ("kafka_time", "timestamptz"),
        ("event_time", "timestamptz"),
    )
)
_SELECT = 'SELECT l.log_id, r.partition, r."offset", r.kafka_time, r.event_time, r.payload '


def read_span(connection: Connection, topics: Sequence[str], begins: datetime, ends: datetime) -> StoredRows:
    """All raw events of some topics in a half-open span of event time."""
    query = (
        _SELECT + "FROM raw_events r JOIN kafka_log l USING (topic, epoch) "
        "WHERE r.event_time >= %s AND r.event_time < %s AND r.topic = ANY(%s)"
    )
    return _read(connection, query, (begins, ends, list(topics)))


def read_batches(
    connection: Connection, topics: Sequence[str], hour: datetime, batch_ids: Sequence[int]
) -> StoredRows:
    """The raw events that some batches brought for an hour, found by their offset ranges.

    Costs what the batches hold, however much is stored beside them: the ranges stand in the statement as
    constants, or the planner, who cannot see how short they are, goes through the whole hour instead.
    """
    ranges = _ranges(connection, topics, batch_ids)
    part = (
        'SELECT %s::int, r.partition, r."offset", r.kafka_time, r.event_time, r.payload FROM raw_events r '
        'WHERE r.topic = %s AND r.epoch = %s AND r.partition = %s AND r."offset" >= %s AND r."offset" < %s '
        "AND r.event_time >= %s AND r.event_time < %s"
    )
    parameters = [value for one in ranges for value in (*one, hour, hour + HOUR)]
    return _read(connection, " UNION ALL ".join([part] * len(ranges)), parameters)


_Range = tuple[int, str, int, int, int, int]


def _ranges(connection: Connection, topics: Sequence[str], batch_ids: Sequence[int]) -> list[_Range]:
    """(log_id, topic, epoch, partition, from, to) of some batches; ranges that follow each other are one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT l.log_id, b.topic, b.epoch, b.partition, b.from_offset, b.to_offset FROM ingest_batch_range b "
            "JOIN kafka_log l USING (topic, epoch) WHERE b.batch_id = ANY(%s) AND b.topic = ANY(%s) "
            "ORDER BY l.log_id, b.partition, b.from_offset",
            (list(batch_ids), list(topics)),
        )
        joined: list[_Range] = []
        for *log, begin, end in cursor.fetchall():
            follows = joined and joined[-1][:4] == tuple(log) and joined[-1][5] == begin
            joined.append((*log, joined.pop()[4] if follows else begin, end))
    # A statement needs at least one: an empty one of no log.
    return joined or [(0, "", 0, 0, 0, 0)]


def _read(connection: Connection, query: str, parameters: Sequence[Any]) -> StoredRows:
    columns, payloads = copy_out_with_payload(connection, query, parameters, _STORED)
    return StoredRows(
        columns["log_id"],
        columns["partition"],
        columns["offset"],
        columns["kafka_time"],
        columns["event_time"],
        payloads,
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dead letter needs to know of a raw event beyond what computing reads."""

    topic: str
    epoch: int
    key: bytes | None
    headers: Headers
    arrived_at_us: int
    batch_id: int


def read_origins(connection: Connection, raw: StoredRows, rows: Sequence[int]) -> dict[int, Origin]:
    """Topic, key, headers and arrival of some rows, by their place in ``raw``."""
    if not rows:
        return {}
    wanted = [(row, int(raw.log_id[row]), int(raw.partition[row]), int(raw.offset[row])) for row in rows]
    with connection.cursor() as cursor:
        found = execute_values(
            cursor,
            "SELECT v.place, r.topic, r.epoch, r.key, r.headers, r.arrived_at, r.batch_id "
            'FROM (VALUES %s) v (place, log_id, partition, "offset") JOIN kafka_log l USING (log_id) '
            "JOIN raw_events r ON r.topic = l.topic AND r.epoch = l.epoch AND r.partition = v.partition "
            'AND r."offset" = v."offset"',
            wanted,
            template="(%s, %s, %s, %s::bigint)",
            page_size=1000,
            fetch=True,
        )
    return {
        place: Origin(
            topic, epoch, None if key is None else bytes(key), headers_of(headers), to_us(arrived), batch
        )
        for place, topic, epoch, key, headers, arrived, batch in found
    }


def count_hour(connection: Connection, domain: str, hour: datetime) -> int:
    """Raw events of a domain in an hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM raw_events WHERE event_time >= %s AND event_time < %s "
            "AND topic IN (SELECT topic FROM domain_topic WHERE domain = %s)",
            (hour, hour + HOUR, domain),
        )
        return int(cursor.fetchone()[0])
