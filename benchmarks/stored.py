"""Rows that are already there: made by the server with generate_series, as if drained and derived long ago.

They belong to an epoch of their own, before the one that is measured. Values repeat from hour to hour, so that
the windows of one hour, computed by the pipeline itself, are those of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import Binary

from analytics_pipeline.records import HOUR, HOUR_S
from analytics_pipeline.storage.offset_ranges import encode, of_rows
from benchmarks.kafka import PARTITIONS
from benchmarks.payloads import FACTORY, METRIC, SENSORS, TENANT, TOPIC, UNIT, machine_id, sensor_id
from benchmarks.pipeline import DOMAIN

EPOCH = 0
BATCH_MESSAGES = 10_000

#: Of number ``i``, the ``n``-th of its hour, at time ``t``. 100 sensors take turns, as in the live stream.
_VALUE = "round((60 + 3 * sin(n * 0.37))::numeric, 3)"
#: As Kafka had it; and without what nobody reads again, where 20 million of them would fill the disk.
_PAYLOAD = (
    """'{"time":"' || to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || """
    f"""'","tenant_id":"{TENANT}","factory_id":"{FACTORY}","machine_id":"' || machine_id || """
    f"""'","sensor_id":"' || sensor_id || '","metric":"{METRIC}","unit":"{UNIT}","value":' || {_VALUE} || '}}'"""
)
_SHORT_PAYLOAD = f"""'{{"value":' || {_VALUE} || '}}'"""

_NUMBERS = f"""
    SELECT i, i - %(first)s AS n, s.series_id, s.machine_id, s.sensor_id,
           %(begins)s + (i - %(first)s) * %(step_us)s * interval '1 microsecond' AS t
    FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s - 1) i
    JOIN measurement_series s ON s.series_id = %(series)s + (i - %(first)s) %% {SENSORS}
"""
_RAW = f"""
    INSERT INTO raw_events
    SELECT '{TOPIC}', {EPOCH}, i %% {PARTITIONS}, i / {PARTITIONS}, 0, %(domain_id)s,
           convert_to(sensor_id, 'UTF8'), NULL, t, t, t, {{batch}}, {{payload}}
    FROM ({_NUMBERS}) numbers
"""
_NORMALIZED = f"""
    INSERT INTO normalized_measurements (event_time, series_id, value, kafka_time, log_id, partition, "offset")
    SELECT t, series_id, {_VALUE}, t, %(log)s + i %% {PARTITIONS}, i %% {PARTITIONS}, i / {PARTITIONS}
    FROM ({_NUMBERS}) numbers
"""
_BATCHES = f"""
    WITH batch AS (
        INSERT INTO ingest_batch (arrived_at, messages, raw_rows, dead_letters, duration_s, ranges)
        SELECT %(begins)s, least({BATCH_MESSAGES}, %(first)s + %(rows)s - b), least({BATCH_MESSAGES},
               %(first)s + %(rows)s - b), 0, 0.1, ''
        FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s - 1, {BATCH_MESSAGES}) b
        RETURNING batch_id, messages
    ), numbered AS (
        SELECT batch_id, messages, %(first)s::bigint + (row_number() OVER (ORDER BY batch_id) - 1)
               * {BATCH_MESSAGES} AS b FROM batch
    ), hours AS (
        INSERT INTO ingest_batch_hour
        SELECT batch_id, %(hour)s, '{DOMAIN}', messages, 0, 0 FROM numbered
    )
    SELECT batch_id, b, messages FROM numbered ORDER BY batch_id
"""
_STATE = """
    INSERT INTO partition_state (asset, hour, domain, rows, rows_seen, rows_failed, status)
    VALUES (%s, %s, %s, %s, %s, 0, 'open')
    ON CONFLICT (asset, hour, domain) DO UPDATE SET rows = EXCLUDED.rows, rows_seen = EXCLUDED.rows_seen
"""
_WINDOWS = """
    INSERT INTO window_aggregates
        (bucket_start, window_s, series_id, count_n, avg_val, m2, min_val, max_val, first_val, first_time,
         last_val, last_time, p50, p95, p99, base_n, coverage, tw_integral, tw_covered_s, sketch)
    SELECT bucket_start - ago, window_s, series_id, count_n, avg_val, m2, min_val, max_val, first_val,
           first_time - ago, last_val, last_time - ago, p50, p95, p99, base_n, coverage, tw_integral,
           tw_covered_s, sketch
    FROM window_aggregates CROSS JOIN (SELECT k * interval '1 hour' AS ago FROM generate_series(1, %(hours)s) k) a
    WHERE bucket_start >= %(hour)s AND bucket_start < %(hour)s + interval '1 hour'
"""


@dataclass(frozen=True)
class Fill:
    """``rows`` readings, evenly over ``span_s`` seconds from the start of ``hour`` on; numbered from ``first``.

    ``short``: payloads that hold the value alone, which nothing can decode: for hours that nobody computes again.
    """

    hour: datetime
    rows: int
    first: int
    span_s: int = HOUR_S
    short: bool = False


class Filler:
    """Fills one migrated database."""

    def __init__(self, database: dict[str, Any]) -> None:
        self._database = database
        with self.session() as cursor:
            cursor.execute(
                "INSERT INTO kafka_log (topic, partition, epoch, begin_offset, reason) "
                "SELECT %s, p, %s, 0, 'stored before' FROM generate_series(0, %s) p RETURNING log_id",
                (TOPIC, EPOCH, PARTITIONS - 1),
            )
            self._log_id = min(int(row[0]) for row in cursor.fetchall())
            cursor.execute(
                "INSERT INTO domain_number (domain_id, domain) SELECT coalesce(max(domain_id), 0) + 1, %s "
                "FROM domain_number ON CONFLICT (domain) DO NOTHING",
                (DOMAIN,),
            )
            cursor.execute("SELECT domain_id FROM domain_number WHERE domain = %s", (DOMAIN,))
            self._domain_id = int(cursor.fetchone()[0])
            cursor.execute(
                "INSERT INTO measurement_series "
                "(domain, tenant_id, factory_id, machine_id, sensor_id, metric, unit) "
                "SELECT %s, %s, %s, machine, sensor, %s, %s "
                "FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY v (machine, sensor, place) ORDER BY place "
                "RETURNING series_id",
                (DOMAIN, TENANT, FACTORY, METRIC, UNIT, *_names()),
            )
            numbers = [int(row[0]) for row in cursor.fetchall()]
        if numbers != list(range(numbers[0], numbers[0] + SENSORS)):
            raise RuntimeError("the server numbered the series in another order")
        self._first_series = numbers[0]

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor in a transaction of its own."""
        # A benchmark's filling need not survive a crash.
        options = "-c search_path=analytics,public -c timezone=UTC -c synchronous_commit=off"
        conn = psycopg2.connect(**self._database, options=options)
        try:
            with conn, conn.cursor() as cursor:
                yield cursor
        finally:
            conn.close()

    def raw(self, fill: Fill) -> None:
        """Raw events with their batches; marks nothing."""
        with self.session() as cursor:
            cursor.execute(_BATCHES, self._parameters(fill))
            numbered = cursor.fetchall()
            batch = f"{numbered[0][0]} + n / {BATCH_MESSAGES}"
            ranges = [(Binary(self._ranges(first, count)), batch_id) for batch_id, first, count in numbered]
            cursor.executemany("UPDATE ingest_batch SET ranges = %s WHERE batch_id = %s", ranges)
            payload = _SHORT_PAYLOAD if fill.short else _PAYLOAD
            cursor.execute(_RAW.format(batch=batch, payload=payload), self._parameters(fill))
            cursor.execute(_STATE, ("raw_events", fill.hour, DOMAIN, fill.rows, fill.rows))

    def normalized(self, fill: Fill) -> None:
        """Their measurements."""
        with self.session() as cursor:
            cursor.execute(_NORMALIZED, self._parameters(fill))
            cursor.execute(_STATE, ("normalized_measurements", fill.hour, DOMAIN, fill.rows, fill.rows))

    def repeat_windows(self, hour: datetime, hours: int) -> None:
        """The windows of an hour for so many hours before it."""
        with self.session() as cursor:
            cursor.execute(_WINDOWS, {"hour": hour, "hours": hours})
            rows = int(cursor.rowcount) // max(1, hours)
            for ago in range(1, hours + 1):
                cursor.execute(_STATE, ("window_aggregates", hour - ago * HOUR, DOMAIN, rows, rows))

    def forget_marks(self) -> None:
        """What is stored counts as done."""
        with self.session() as cursor:
            cursor.execute("DELETE FROM pending_mark")

    def _ranges(self, first: int, count: int) -> bytes:
        """Of the messages from one number on, which take turns over the partitions."""
        rows = []
        for partition in range(PARTITIONS):
            begin, end = ((at + PARTITIONS - 1 - partition) // PARTITIONS for at in (first, first + count))
            rows.append((self._log_id + partition, begin, end, end - begin, 0))
        return encode(of_rows(rows))

    def _parameters(self, fill: Fill) -> dict[str, Any]:
        return {
            "begins": fill.hour,
            "hour": fill.hour,
            "rows": fill.rows,
            "first": fill.first,
            "step_us": fill.span_s * 1_000_000 // fill.rows,
            "series": self._first_series,
            "log": self._log_id,
            "domain_id": self._domain_id,
        }


def _names() -> tuple[list[str], list[str]]:
    return [machine_id(sensor) for sensor in range(SENSORS)], [sensor_id(sensor) for sensor in range(SENSORS)]
