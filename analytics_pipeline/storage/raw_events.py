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

from analytics_pipeline.messages import Headers, LogPartition
from analytics_pipeline.records import HOUR, from_us, to_us
from analytics_pipeline.storage.batches import read_ranges
from analytics_pipeline.storage.binary_copy import (
    POSTGRES_EPOCH_US,
    SIGNATURE,
    TRAILER,
    FixedTable,
    copy_out_with_payload,
)
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.offset_ranges import join

_NULL = struct.pack(">i", -1)
_FIELDS = 12
#: One log, between two offsets, both included.
IN_LOG = 'topic = %s AND epoch = %s AND partition = %s AND "offset" BETWEEN %s AND %s'
#: Ranges that one statement reads: each takes the server half a kilobyte of stack.
RANGES_PER_STATEMENT = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """Accepted messages of one log, or elements of them, column by column."""

    log: LogPartition
    domain_id: int
    offsets: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.int32]
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
        log=rows.log,
        domain_id=rows.domain_id,
        offsets=rows.offsets[chosen],
        ordinals=rows.ordinals[chosen],
        keys=[rows.keys[at] for at in places],
        headers=[rows.headers[at] for at in places],
        kafka_time_us=rows.kafka_time_us[chosen],
        event_time_us=rows.event_time_us[chosen],
        payloads=[rows.payloads[at] for at in places],
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


def _encode(parts: Sequence[RawRows], arrived_at_us: int) -> Iterable[bytes]:
    """The COPY body of rows of one topic: for each row the position, domain, key, headers, times, and payload."""
    sizes = [len(part) for part in parts]
    count, topic = sum(sizes), parts[0].log.topic.encode()
    front = np.empty(count, _front(len(topic)))
    front["fields"], front["topic_n"], front["topic"] = _FIELDS, len(topic), topic
    for name, column in {
        "epoch": np.repeat([part.log.epoch for part in parts], sizes),
        "part": np.repeat([part.log.partition for part in parts], sizes),
        "offset": np.concatenate([part.offsets for part in parts]),
        "ordinal": np.concatenate([part.ordinals for part in parts]),
        "domain": np.repeat([part.domain_id for part in parts], sizes),
    }.items():
        front[f"{name}_n"], front[name] = front.dtype[name].itemsize, column
    payloads = [payload for part in parts for payload in part.payloads]
    back = np.empty(count, _BACK)
    times: dict[str, Any] = {
        "kafka": np.concatenate([part.kafka_time_us for part in parts]) - POSTGRES_EPOCH_US,
        "event": np.concatenate([part.event_time_us for part in parts]) - POSTGRES_EPOCH_US,
        "arrived": arrived_at_us - POSTGRES_EPOCH_US,
    }
    for name, column in times.items():
        back[f"{name}_n"], back[name] = 8, column
    back["payload_n"] = np.fromiter(map(len, payloads), np.int32, count)
    pieces: list[bytes] = [b""] * (5 * count)
    pieces[0::5] = _cut(front)
    pieces[1::5] = [_NULL if key is None else _field(key) for part in parts for key in part.keys]
    pieces[2::5] = [_headers_field(headers) if headers else _NULL for part in parts for headers in part.headers]
    pieces[3::5] = _cut(back)
    pieces[4::5] = payloads
    return pieces


def _front(topic_bytes: int) -> np.dtype[Any]:
    return np.dtype(
        [("fields", ">i2"), ("topic_n", ">i4"), ("topic", f"S{topic_bytes}"), ("epoch_n", ">i4"),
         ("epoch", ">i4"), ("part_n", ">i4"), ("part", ">i4"), ("offset_n", ">i4"), ("offset", ">i8"),
         ("ordinal_n", ">i4"), ("ordinal", ">i4"), ("domain_n", ">i4"), ("domain", ">i4")]
    )  # fmt: skip


_BACK = np.dtype(
    [("kafka_n", ">i4"), ("kafka", ">i8"), ("event_n", ">i4"), ("event", ">i8"), ("arrived_n", ">i4"),
     ("arrived", ">i8"), ("payload_n", ">i4")]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows ready to be sent, made while the batch before is still being written."""

    rows: int
    stream: bytes


def encode(parts: Sequence[RawRows], arrived_at_us: int) -> EncodedRows:
    """The COPY stream of rows that arrived together."""
    body = [SIGNATURE]
    by_topic: dict[str, list[RawRows]] = {}
    for part in parts:
        by_topic.setdefault(part.log.topic, []).append(part)
    for same in by_topic.values():
        body.extend(_encode(same, arrived_at_us))
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
            'COPY raw_events (topic, epoch, partition, "offset", ordinal, domain_id, key, headers, kafka_time, '
            "event_time, arrived_at, payload) FROM STDIN (FORMAT binary)",
            io.BytesIO(encoded.stream),
        )
        return int(cursor.rowcount)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Raw events read back, column by column. ``log_id`` says topic, partition and epoch."""

    log_id: npt.NDArray[np.int32]
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    ordinal: npt.NDArray[np.int32]
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
        ordinal=rows.ordinal[chosen],
        kafka_time_us=rows.kafka_time_us[chosen],
        event_time_us=rows.event_time_us[chosen],
        payload=[rows.payload[at] for at in chosen.tolist()],
    )


_STORED = FixedTable(
    (
        ("log_id", "int4"),
        ("partition", "int4"),
        ("offset", "int8"),
        ("ordinal", "int4"),
        ("kafka_time", "timestamptz"),
        ("event_time", "timestamptz"),
    )
)
_COLUMNS = 'r.partition, r."offset", r.ordinal, r.kafka_time, r.event_time, r.payload'


def read_span(connection: Connection, topics: Sequence[str], begins: datetime, ends: datetime) -> StoredRows:
    """All raw events of some topics in a half-open span of event time."""
    query = (
        f"SELECT l.log_id, {_COLUMNS} FROM raw_events r JOIN kafka_log l USING (topic, partition, epoch) "
        "WHERE r.event_time >= %s AND r.event_time < %s AND r.topic = ANY(%s)"
    )
    return _read(connection, [(query, (begins, ends, list(topics)))])


def read_batches(
    connection: Connection, topics: Sequence[str], hour: datetime, batch_ids: Sequence[int]
) -> StoredRows:
    """The raw events that some batches brought for an hour, found by their offset ranges.

    Costs what the batches hold, however much is stored beside them: the ranges stand in the statement as
    constants, or the planner, who cannot see how short they are, goes through the whole hour instead. Many of
    them take several statements.
    """
    ranges = _ranges(connection, topics, batch_ids)
    part = (
        f"SELECT %s::int, {_COLUMNS} FROM raw_events r "
        'WHERE r.topic = %s AND r.epoch = %s AND r.partition = %s AND r."offset" >= %s AND r."offset" < %s '
        "AND r.event_time >= %s AND r.event_time < %s"
    )
    statements = []
    for first in range(0, len(ranges), RANGES_PER_STATEMENT):
        some = ranges[first : first + RANGES_PER_STATEMENT]
        values = [value for one in some for value in (*one, hour, hour + HOUR)]
        statements.append((" UNION ALL ".join([part] * len(some)), values))
    return _read(connection, statements)


_Range = tuple[int, str, int, int, int, int]


def _ranges(connection: Connection, topics: Sequence[str], batch_ids: Sequence[int]) -> list[_Range]:
    """(log_id, topic, epoch, partition, from, to) of some batches; ranges that follow each other are one."""
    parts = read_ranges(connection, batch_ids)
    # A statement needs at least one: an empty one of no log.
    nothing: list[_Range] = [(0, "", 0, 0, 0, 0)]
    if not parts:
        return nothing
    joined = join(parts)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT log_id, topic, epoch, partition FROM kafka_log WHERE log_id = ANY(%s) AND topic = ANY(%s)",
            (np.unique(joined.log_id).tolist(), list(topics)),
        )
        logs = {row[0]: row for row in cursor.fetchall()}
    spans = zip(joined.log_id.tolist(), joined.from_offset.tolist(), joined.to_offset.tolist(), strict=True)
    return [(*logs[log_id], begin, end) for log_id, begin, end in spans if log_id in logs] or nothing


def _read(connection: Connection, statements: Sequence[tuple[str, Sequence[Any]]]) -> StoredRows:
    found = [copy_out_with_payload(connection, query, values, _STORED) for query, values in statements]
    columns = {name: np.concatenate([part[name] for part, _ in found]) for name in _STORED.names}
    return StoredRows(
        log_id=columns["log_id"],
        partition=columns["partition"],
        offset=columns["offset"],
        ordinal=columns["ordinal"],
        kafka_time_us=columns["kafka_time"],
        event_time_us=columns["event_time"],
        payload=found[0][1] if len(found) == 1 else [payload for _, part in found for payload in part],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a dead letter needs to know of a raw event beyond what computing reads."""

    topic: str
    epoch: int
    key: bytes | None
    headers: Headers
    arrived_at_us: int
    batch_id: int


def read_origins(connection: Connection, raw: StoredRows, rows: Sequence[int]) -> dict[int, Origin]:
    """Topic, key, headers and arrival of some rows, by their place in ``raw``.

    Bounded by offset and event time, both as constants: in a compressed chunk neither a list of offsets nor a
    join says which parts need not be unpacked.
    """
    by_log: dict[int, list[int]] = {}
    for row in rows:
        by_log.setdefault(int(raw.log_id[row]), []).append(row)
    origins: dict[int, Origin] = {}
    for log_id, members in by_log.items():
        origins |= _origins_of_log(connection, raw, log_id, np.array(members, np.int64))
    return origins


def _origins_of_log(
    connection: Connection, raw: StoredRows, log_id: int, rows: npt.NDArray[np.int64]
) -> dict[int, Origin]:
    offsets, times = raw.offset[rows], raw.event_time_us[rows]
    place = dict(zip(zip(offsets.tolist(), raw.ordinal[rows].tolist(), strict=True), rows.tolist(), strict=True))
    with connection.cursor() as cursor:
        cursor.execute("SELECT topic, epoch, partition FROM kafka_log WHERE log_id = %s", (log_id,))
        topic, epoch, partition = cursor.fetchone()
        cursor.execute(
            f'SELECT "offset", ordinal, key, headers, arrived_at, batch_id FROM raw_events WHERE {IN_LOG} '
            'AND "offset" = ANY(%s) AND event_time BETWEEN %s AND %s',
            (topic, epoch, partition, int(offsets.min()), int(offsets.max()), offsets.tolist(),
             from_us(int(times.min())), from_us(int(times.max()))),
        )  # fmt: skip
        return {
            place[offset, ordinal]: Origin(
                topic=topic,
                epoch=epoch,
                key=None if key is None else bytes(key),
                headers=headers_of(headers),
                arrived_at_us=to_us(arrived),
                batch_id=batch,
            )
            for offset, ordinal, key, headers, arrived, batch in cursor.fetchall()
            if (offset, ordinal) in place
        }


def count_hour(connection: Connection, domain: str, hour: datetime) -> int:
    """Raw events of a domain in an hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM raw_events WHERE event_time >= %s AND event_time < %s "
            "AND domain_id = (SELECT domain_id FROM domain_number WHERE domain = %s)",
            (hour, hour + HOUR, domain),
        )
        return int(cursor.fetchone()[0])
