"""Baseline (b): the same raw rows by COPY into one plain table: what this machine and server can do at all.

The rows are in memory beforehand as columns, with nothing decoded, checked or derived; the table has no key
and no index. The clock runs from the columns to the commit, so that it holds the encoding (polars, CSV) and
COPY; the share of COPY alone is reported beside it.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import polars as pl
import psycopg2

from benchmarks.kafka import read_all
from benchmarks.payloads import TOPIC

TABLE = """
CREATE TABLE bare_copy (
    topic      text NOT NULL,
    epoch      integer NOT NULL,
    partition  integer NOT NULL,
    "offset"   bigint NOT NULL,
    key        bytea,
    headers    jsonb,
    kafka_time timestamptz NOT NULL,
    event_time timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL,
    batch_id   bigint NOT NULL,
    payload    text NOT NULL
)
"""
COPY = "COPY bare_copy FROM STDIN (FORMAT csv)"
EVENT_TIME = r'"time":"([^"]+)"'


@dataclass(frozen=True)
class CopyTimes:
    """Seconds of one COPY of ``rows`` rows: encoding and COPY with its commit, and COPY alone."""

    rows: int
    total_s: float
    copy_s: float


def raw_rows(brokers: str, count: int) -> pl.DataFrame:
    """The topic's messages as rows of ``raw_events``."""
    frames = []
    for messages in read_all(brokers, count):
        keys = [r"\x" + message.key().hex() for message in messages]
        frames.append(
            pl.DataFrame(
                {
                    "partition": [message.partition() for message in messages],
                    "offset": [message.offset() for message in messages],
                    "key": keys,
                    "kafka_time": [message.timestamp()[1] for message in messages],
                    "payload": [message.value().decode() for message in messages],
                }
            )
        )
    zoned = pl.Datetime("us", "UTC")
    arrived = pl.lit(time.time_ns() // 1000).cast(zoned)
    return pl.concat(frames).select(
        pl.lit(TOPIC).alias("topic"),
        pl.lit(1).alias("epoch"),
        "partition",
        "offset",
        "key",
        pl.lit(None, pl.String).alias("headers"),
        (pl.col("kafka_time") * 1000).cast(zoned),
        pl.col("payload")
        .str.extract(EVENT_TIME)
        .str.to_datetime(time_zone="UTC", time_unit="us")
        .alias("event_time"),
        arrived.alias("arrived_at"),
        pl.lit(1).alias("batch_id"),
        "payload",
    )


def run(database: dict[str, Any], rows: pl.DataFrame) -> CopyTimes:
    """COPY the rows into a table made for it, in one transaction."""
    connection = psycopg2.connect(**database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS bare_copy")
            cursor.execute(TABLE)
            connection.commit()
            started = time.monotonic()
            text = io.BytesIO()
            rows.write_csv(text, include_header=False)
            text.seek(0)
            encoded = time.monotonic()
            cursor.copy_expert(COPY, text, size=1 << 20)
            connection.commit()
            done = time.monotonic()
            cursor.execute("SELECT count(*) FROM bare_copy")
            stored = cursor.fetchone()[0]
            if stored != len(rows):
                raise RuntimeError(f"bare_copy holds {stored} rows of {len(rows)}")
            cursor.execute("DROP TABLE bare_copy")
            connection.commit()
    finally:
        connection.close()
    return CopyTimes(len(rows), done - started, done - encoded)
