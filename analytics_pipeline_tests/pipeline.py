"""Drives the two paths in a test as the sensor and its runs would, without Dagster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.domains import Registry
from analytics_pipeline.records import DERIVED, DrainOutcome, HourOutcome
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours

#: More rounds than any cascade of pending work needs.
MAX_ROUNDS = 50

DERIVED_TABLES = {
    "raw_events": 'topic, epoch, partition, "offset", ordinal, domain_id, event_time, payload',
    "normalized_measurements": 'domain_id, event_time, series_id, sample_key, value, kafka_time, log_id, "offset", '
    "ordinal, quality",
    "window_aggregates": "domain_id, window_s, bucket_start, series_id, count_n, avg_val, m2, min_val, max_val, "
    "first_val, first_time, last_val, last_time, p50, p95, p99, base_n, coverage, tw_integral, "
    "tw_covered_s, bad_n, uncertain_n, censored_n, late_n, ends_bad, encode(sketch, 'hex')",
    "normalized_events": "domain_id, event_time, identity, event_id, tenant_id, factory_id, machine_id, entity_type, "
    'entity_id, event_type, user_id, value, properties, kafka_time, log_id, "offset", ordinal',
    "event_identities": 'domain_id, identity, event_time, kafka_time, log_id, "offset", ordinal',
    "event_rollups": "domain_id, window_s, bucket_start, tenant_id, factory_id, machine_id, entity_type, event_type, "
    "count_n, value_n, sum_val",
    "state_changes": 'domain_id, event_time, series_id, state, kafka_time, log_id, "offset", ordinal',
    "state_durations": "domain_id, window_s, bucket_start, series_id, state, duration_us",
    "carried_states": "domain_id, bucket_start, series_id, state",
    "counter_readings": 'domain_id, event_time, series_id, reading, kafka_time, log_id, "offset", ordinal',
    "counter_increments": "domain_id, window_s, bucket_start, series_id, increment, reason, readings, resets, "
    "roll_overs, swaps, unknown_n, gaps_spanned, last_time, last_reading",
    "carried_readings": "domain_id, series_id, event_time, reading",
    "anomalies": "domain_id, bucket_start, window_s, series_id, detector, anomaly_id, severity, value, score, detail",
    "kpis": "domain_id, bucket_start, window_s, tenant_id, factory_id, machine_id, kpi, value, numerator, "
    "denominator, unit, reason",
    "dead_letters": 'topic, epoch, partition, "offset", ordinal, stage, hour, domain_id, reason, '
    "encode(payload, 'hex'), event_time",
}


def reading(time: datetime | str, value: Any = 23.7, **fields: Any) -> bytes:
    """A payload of the sensor domain; ``fields`` replace or add."""
    stamp = time if isinstance(time, str) else time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    payload = {
        "time": stamp,
        "tenant_id": "t1",
        "factory_id": "f1",
        "machine_id": "mc-01",
        "sensor_id": "s-001",
        "metric": "temp",
        "value": value,
    }
    return json.dumps(payload | fields).encode()


@dataclass
class Pipeline:
    """Both paths over one database."""

    settings: Settings
    engine: Engine
    registry: Registry

    def __post_init__(self) -> None:
        self.drain = Drain(self.settings, self.engine, self.registry)
        self.deriver = Deriver(self.settings, self.engine, self.registry)

    def close(self) -> None:
        self.drain.close()

    def tick(self, now: datetime | None = None) -> DrainOutcome:
        return self.drain.tick(now or datetime.now(UTC))

    def settle(self) -> list[HourOutcome]:
        """Do pending work until nothing is left; returns what was done."""
        done = []
        for _ in range(MAX_ROUNDS):
            with connection(self.engine) as conn:
                todo = actionable_hours(conn)
            if not todo:
                return done
            for hour in todo:
                for asset in hour.assets:
                    done.append(self.deriver.derive(asset, hour.hour, "incremental", "test"))
        raise AssertionError(f"still pending after {MAX_ROUNDS} rounds: {todo}")

    def rebuild(self, hours: Iterable[datetime]) -> None:
        """Recompute whole hours, asset by asset, as a backfill does."""
        hours = sorted(hours)
        for asset in DERIVED:
            for hour in hours:
                self.deriver.derive(asset, hour, "full", "test")

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with connection(self.engine) as conn, conn.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def count(self, table: str) -> int:
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])

    def hours(self) -> list[datetime]:
        return [row[0] for row in self.query("SELECT DISTINCT date_trunc('hour', event_time) FROM raw_events")]

    def snapshot(self, tables: Sequence[str] = tuple(DERIVED_TABLES)) -> dict[str, list[str]]:
        """Every row of the tables that must come out the same, in one order, without bookkeeping."""
        return {
            name: sorted(str(row) for row in self.query(f"SELECT {DERIVED_TABLES[name]} FROM {name}"))
            for name in tables
        }


def send(producer: Producer, topic: str, values: Iterable[bytes | None], partition: int = 0, **more: Any) -> int:
    """Produce to one partition and return when the broker has them."""
    sent = 0
    for value in values:
        producer.produce(topic, value, partition=partition, **more)
        sent += 1
        if sent % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(30) == 0
    return sent
