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

from analytics_pipeline.records import HOUR, HOUR_S
from benchmarks.copies import domain_name, topic_name
from benchmarks.kafka import PARTITIONS
from benchmarks.payloads import FACTORY, METRIC, SENSORS, TENANT, UNIT, machine_id, sensor_id

EPOCH = 0

#: Of number ``i``, the ``n``-th of its hour, at time ``t``. The sensors take turns, as in the live stream.
_VALUE = "round((60 + 3 * sin(n * 0.37))::numeric, 3)"
#: As Kafka had it; without what nobody reads again, where 20 million of them would fill the disk; and with a value
#: that is a word, for dead letters.
_PAYLOAD = (
    """'{"time":"' || to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || """
    f"""'","tenant_id":"{TENANT}","factory_id":"' || factory_id || '","machine_id":"' || machine_id || """
    f"""'","sensor_id":"' || sensor_id || '","metric":"{METRIC}","unit":"{UNIT}","value":' || {{value}} || '}}'"""
)
_GOOD_PAYLOAD, _BAD_PAYLOAD = _PAYLOAD.replace("{value}", _VALUE), _PAYLOAD.replace("{value}", """'"invalid"'""")
_SHORT_PAYLOAD = f"""'{{"value":' || {_VALUE} || '}}'"""

_NUMBERS = """
    SELECT i, i - %(first)s AS n, s.series_id, s.factory_id, s.machine_id, s.sensor_id,
           %(begins)s + (i - %(first)s) * %(step_us)s * interval '1 microsecond' AS t
    FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s - 1) i
    JOIN measurement_series s ON s.series_id = %(series)s + (i - %(first)s) %% %(sensors)s
"""
_RAW = f"""
    INSERT INTO raw_events (topic, epoch, partition, "offset", domain_id, key, kafka_time, event_time, arrived_at,
                            batch_id, payload)
    SELECT %(topic)s, {EPOCH}, i %% {PARTITIONS}, i / {PARTITIONS}, %(domain_id)s, convert_to(sensor_id, 'UTF8'), t,
           t, t, %(batch)s, {{payload}}
    FROM ({_NUMBERS}) numbers
"""
_NORMALIZED = f"""
    INSERT INTO normalized_measurements
        (domain_id, event_time, series_id, sample_key, value, kafka_time, log_id, "offset", ordinal,
         quality)
    SELECT %(domain_id)s, t, series_id, 0, {_VALUE}, t, (%(logs)s::int[])[1 + i %% {PARTITIONS}],
           i / {PARTITIONS}, 0, 0
    FROM ({_NUMBERS}) numbers
"""
_HOUR = "INSERT INTO ingest_batch_hour VALUES (%(batch)s, %(begins)s, %(domain)s, %(rows)s, 0, 0)"
_STATE = """
    INSERT INTO partition_state (asset, domain_id, hour, rows, rows_failed, status)
    VALUES (%s, %s, %s, %s, 0, 'open')
    ON CONFLICT (asset, domain_id, hour) DO UPDATE SET rows = EXCLUDED.rows
"""
_WINDOWS = """
    INSERT INTO window_aggregates
        (domain_id, window_s, bucket_start, series_id, count_n, avg_val, m2, min_val, max_val, first_val, first_time,
         last_val, last_time, p50, p95, p99, base_n, coverage, tw_integral, tw_covered_s, bad_n, uncertain_n,
         censored_n, late_n, ends_bad, sketch)
    SELECT domain_id, window_s, bucket_start - ago, series_id, count_n, avg_val, m2, min_val, max_val, first_val,
           first_time - ago, last_val, last_time - ago, p50, p95, p99, base_n, coverage, tw_integral,
           tw_covered_s, bad_n, uncertain_n, censored_n, late_n, ends_bad, sketch
    FROM window_aggregates CROSS JOIN (SELECT k * interval '1 hour' AS ago FROM generate_series(1, %(hours)s) k) a
    WHERE domain_id = %(domain_id)s AND bucket_start >= %(hour)s AND bucket_start < %(hour)s + interval '1 hour'
"""


@contextmanager
def session(database: dict[str, Any]) -> Iterator[Any]:
    """A cursor in a transaction of its own."""
    # A benchmark's filling need not survive a crash.
    options = "-c search_path=analytics,public -c timezone=UTC -c synchronous_commit=off"
    conn = psycopg2.connect(**database, options=options)
    try:
        with conn, conn.cursor() as cursor:
            yield cursor
    finally:
        conn.close()


def execute(database: dict[str, Any], *statements: str) -> None:
    """Some statements in one transaction."""
    with session(database) as cursor:
        for statement in statements:
            cursor.execute(statement)


def forget_pending(database: dict[str, Any]) -> None:
    """What is stored counts as done."""
    execute(database, "DELETE FROM pending_work")


def maintain(database: dict[str, Any], statement: str = "VACUUM (ANALYZE)") -> None:
    """What autovacuum would have done long ago, so that it does not begin while something is measured."""
    conn = psycopg2.connect(**database, options="-c search_path=analytics,public")
    conn.autocommit = True
    try:
        with conn.cursor() as cursor:
            cursor.execute(statement)
    finally:
        conn.close()


@dataclass(frozen=True)
class Fill:
    """``rows`` readings, evenly over ``span_s`` seconds from the start of ``hour`` on; numbered from ``first``.

    ``short``: payloads that hold the value alone, which nothing can decode: for hours that nobody computes again.
    ``bad``: payloads whose value is no number: each becomes a dead letter.
    """

    hour: datetime
    rows: int
    first: int
    span_s: int = HOUR_S
    short: bool = False
    bad: bool = False

    @property
    def payload(self) -> str:
        if self.short:
            return _SHORT_PAYLOAD
        return _BAD_PAYLOAD if self.bad else _GOOD_PAYLOAD


class Filler:
    """Fills one migrated database with readings of one domain.

    Args:
        domain: number of the copy of sensor, see ``copies``.
        sensors: how many take turns. Series are added for them.
        factory: of every reading.
    """

    def __init__(
        self, database: dict[str, Any], domain: int = 0, sensors: int = SENSORS, factory: str = FACTORY
    ) -> None:
        self._database = database
        self._sensors, self._factory = sensors, factory
        self._domain, self._topic = domain_name(domain), topic_name(domain)
        with session(self._database) as cursor:
            cursor.execute("LOCK TABLE domain_number IN SHARE ROW EXCLUSIVE MODE")
            cursor.execute(
                "INSERT INTO domain_number (domain_id, domain) "
                "SELECT coalesce(max(domain_id), 0) + 1, %(name)s FROM domain_number "
                "HAVING %(name)s NOT IN (SELECT domain FROM domain_number)",
                {"name": self._domain},
            )
            cursor.execute("SELECT domain_id FROM domain_number WHERE domain = %s", (self._domain,))
            self._domain_id = int(cursor.fetchone()[0])
            self._logs = _begin_logs(cursor, self._topic)
            self._first_series = self._add_series(cursor)

    def _add_series(self, cursor: Any) -> int:
        """The number of the first; the others follow."""
        cursor.execute(
            "INSERT INTO measurement_series "
            "(domain_id, tenant_id, factory_id, machine_id, sensor_id, metric, unit) "
            "SELECT %s, %s, %s, machine, sensor, %s, %s "
            "FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY v (machine, sensor, place) ORDER BY place "
            "RETURNING series_id",
            (self._domain_id, TENANT, self._factory, METRIC, UNIT, *_names(self._sensors)),
        )
        numbers = [int(row[0]) for row in cursor.fetchall()]
        if numbers != list(range(numbers[0], numbers[0] + self._sensors)):
            raise RuntimeError("the server numbered the series in another order")
        return numbers[0]

    def raw(self, *fills: Fill) -> None:
        """Raw events, a batch for each fill; leaves nothing pending."""
        with session(self._database) as cursor:
            for fill in fills:
                parameters = self._parameters(fill)
                parameters["batch"] = _open_batch(cursor, fill)
                cursor.execute(_HOUR, parameters)
                cursor.execute(_RAW.format(payload=fill.payload), parameters)
                cursor.execute(_STATE, ("raw_events", self._domain_id, fill.hour, fill.rows))

    def normalized(self, *fills: Fill) -> None:
        """Their measurements."""
        with session(self._database) as cursor:
            for fill in fills:
                cursor.execute(_NORMALIZED, self._parameters(fill))
                cursor.execute(_STATE, ("normalized_measurements", self._domain_id, fill.hour, fill.rows))

    def repeat_windows(self, hour: datetime, hours: int) -> None:
        """The windows of an hour for so many hours before it."""
        with session(self._database) as cursor:
            cursor.execute(_WINDOWS, {"hour": hour, "hours": hours, "domain_id": self._domain_id})
            rows = int(cursor.rowcount) // max(1, hours)
            for ago in range(1, hours + 1):
                cursor.execute(_STATE, ("window_aggregates", self._domain_id, hour - ago * HOUR, rows))

    def _parameters(self, fill: Fill) -> dict[str, Any]:
        return {
            "begins": fill.hour,
            "rows": fill.rows,
            "first": fill.first,
            "step_us": fill.span_s * 1_000_000 // fill.rows,
            "series": self._first_series,
            "sensors": self._sensors,
            "domain_id": self._domain_id,
            "domain": self._domain,
            "topic": self._topic,
            "logs": self._logs,
        }


def _names(sensors: int) -> tuple[list[str], list[str]]:
    return [machine_id(at, sensors) for at in range(sensors)], [sensor_id(at) for at in range(sensors)]


# ------------------------------------------------------------------ what the drain writes


def _begin_logs(cursor: Any, topic: str) -> list[int]:
    """The number of the log of each partition."""
    cursor.execute(
        "INSERT INTO kafka_log (topic, partition, epoch, begin_offset, reason) "
        "SELECT %s, p, %s, 0, 'stored before' FROM generate_series(0, %s - 1) p ORDER BY p RETURNING log_id",
        (topic, EPOCH, PARTITIONS),
    )
    return [int(row[0]) for row in cursor.fetchall()]


def _open_batch(cursor: Any, fill: Fill) -> int:
    """A batch record without offset ranges: nobody reads these rows by batch."""
    cursor.execute(
        "INSERT INTO ingest_batch (arrived_at, messages, raw_rows, dead_letters, duration_s, ranges) "
        "VALUES (%s, %s, %s, 0, 0.1, '') RETURNING batch_id",
        (fill.hour, fill.rows, fill.rows),
    )
    return int(cursor.fetchone()[0])
