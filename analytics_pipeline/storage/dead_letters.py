"""Dead letters: what a stage refused, bytes kept. Unique by (position, stage). No judgement here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from psycopg2 import Binary
from psycopg2.extras import execute_values

from analytics_pipeline.records import DeadLetter, from_us
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import headers_json

ERROR_CHARACTERS = 1000
#: One statement takes so many letters, or so many bytes of payloads, keys and headers: as SQL text they take
#: several times their size, and a single letter may have many megabytes.
STATEMENT_LETTERS = 500
STATEMENT_BYTES = 8 * 1024 * 1024


def _text(value: str) -> str:
    """PostgreSQL text takes neither NUL nor half of a surrogate pair."""
    return value.replace("\x00", "\\u0000").encode("utf-8", "backslashreplace").decode()


def _row(letter: DeadLetter, batch_id: int | None) -> tuple[object, ...]:
    event_time = None
    if letter.event_time_us is not None:
        event_time = from_us(letter.event_time_us)
    return (
        letter.topic,
        letter.epoch,
        letter.partition,
        letter.offset,
        letter.ordinal,
        letter.stage,
        from_us(letter.hour_us),
        letter.domain,
        letter.reason,
        _text(letter.error)[:ERROR_CHARACTERS],
        None if letter.payload is None else Binary(letter.payload),
        None if letter.key is None else Binary(letter.key),
        headers_json(letter.headers),
        from_us(letter.kafka_time_us),
        event_time,
        from_us(letter.arrived_at_us),
        batch_id if letter.batch_id is None else letter.batch_id,
    )


def write(connection: Connection, letters: Sequence[DeadLetter], batch_id: int | None = None) -> None:
    """Insert, or replace what the same stage said of the same position before.

    ``batch_id`` is that of letters which do not carry one yet.
    """
    with connection.cursor() as cursor:
        for page in _pages(letters):
            _write_page(cursor, page, batch_id)


def _pages(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    page: list[DeadLetter] = []
    size = 0
    for letter in letters:
        page.append(letter)
        size += sum(len(part) for part in (letter.payload, letter.key) if part is not None)
        size += sum(len(value) for _, value in letter.headers or () if value is not None)
        if len(page) == STATEMENT_LETTERS or size >= STATEMENT_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _write_page(cursor: Any, page: Sequence[DeadLetter], batch_id: int | None) -> None:
    execute_values(
        cursor,
        'INSERT INTO dead_letters (topic, epoch, partition, "offset", ordinal, stage, hour, domain, reason, '
        "error, payload, key, headers, kafka_time, event_time, arrived_at, batch_id) VALUES %s "
        'ON CONFLICT (topic, epoch, partition, "offset", ordinal, stage) DO UPDATE SET hour = EXCLUDED.hour, '
        "domain = EXCLUDED.domain, reason = EXCLUDED.reason, error = EXCLUDED.error, "
        "event_time = EXCLUDED.event_time, batch_id = EXCLUDED.batch_id",
        [_row(letter, batch_id) for letter in page],
        page_size=STATEMENT_LETTERS,
    )


def forget(connection: Connection, stage: str, hour: datetime, domain: str) -> int:
    """Drop a stage's letters of an hour before that stage is rebuilt; returns how many there were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM dead_letters WHERE hour = %s AND stage = %s AND domain = %s", (hour, stage, domain)
        )
        return int(cursor.rowcount)


def forget_all(connection: Connection, stage: str, keys: Sequence[tuple[datetime, str]]) -> None:
    """Drop a stage's letters of some (hour, domain) before that stage is rebuilt."""
    if keys:
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM dead_letters d USING unnest(%s::timestamptz[], %s::text[]) w (hour, domain) "
                "WHERE d.hour = w.hour AND d.stage = %s AND d.domain = w.domain",
                ([key[0] for key in keys], [key[1] for key in keys], stage),
            )


def count(connection: Connection, stage: str, hour: datetime, domain: str) -> int:
    """A stage's letters of an hour."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM dead_letters WHERE hour = %s AND stage = %s AND domain = %s",
            (hour, stage, domain),
        )
        return int(cursor.fetchone()[0])
