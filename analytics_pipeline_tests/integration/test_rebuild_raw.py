"""raw_events rebuilt by hand: what is missing comes back from Kafka, what reads differently now moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.domains import Registry
from analytics_pipeline.flow.rebuild_raw import rebuild_raw
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.pipeline import Pipeline, reading, send

NOW = hour_of(datetime.now(UTC)) - timedelta(hours=5)


@pytest.fixture
def make_pipeline(settings: Settings, engine: Engine) -> Iterator[Callable[[Registry], Pipeline]]:
    made: list[Pipeline] = []

    def make(registry: Registry) -> Pipeline:
        made.append(Pipeline(settings, engine, registry))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def rebuild(pipeline: Pipeline, hour: datetime) -> None:
    rebuild_raw(pipeline.settings, pipeline.engine, pipeline.registry, hour, "by hand")
    pipeline.settle()


def test_rows_that_vanished_come_back_from_kafka_and_nothing_doubles(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    pipeline = make_pipeline(registry)
    payloads = [reading(NOW + timedelta(minutes=n), float(n), sensor_id=f"s-{n % 2}") for n in range(50)]
    send(producer, topic, [*payloads[:25], b"not json", *payloads[25:]])
    pipeline.tick(NOW + HOUR)
    pipeline.settle()
    before = pipeline.snapshot()
    with connection(pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute('DELETE FROM raw_events WHERE "offset" %% 3 = 0', ())
        cursor.execute("DELETE FROM dead_letters")
        conn.commit()
    assert pipeline.count("raw_events") < 50
    rebuild(pipeline, NOW)
    rebuild(pipeline, NOW)
    assert pipeline.snapshot() == before


def test_a_fixed_time_zone_moves_rows_and_both_hours_are_computed_again(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    wrong = make_pipeline(registry)
    zoneless = (NOW + timedelta(minutes=5)).replace(tzinfo=None).isoformat()
    send(producer, topic, [reading(zoneless, 7.0)])
    wrong.tick(NOW + 4 * HOUR)
    wrong.settle()
    [domain] = registry.domains
    right = make_pipeline(Registry((replace(domain, time_zone=ZoneInfo("Etc/GMT-2")),), registry.topics))
    rebuild(right, NOW)
    assert right.hours() == [NOW - 2 * HOUR]
    hours = "SELECT DISTINCT date_trunc('hour', {}) FROM {}"
    for column, table in (("event_time", "normalized_measurements"), ("bucket_start", "window_aggregates"),
                          ("bucket_start", "kpis")):  # fmt: skip
        assert right.query(hours.format(column, table)) == [(NOW - 2 * HOUR,)]


class LooseEnvelope(msgspec.Struct):
    time: datetime | None = None
    at: datetime | None = None


def test_a_dead_letter_that_can_be_read_now_becomes_a_raw_event(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    strict = make_pipeline(registry)
    good = reading(NOW + timedelta(minutes=5), 7.0)
    kafka_time = NOW + timedelta(minutes=6)
    send(producer, topic, [good.replace(b'"time"', b'"at"')], timestamp=int(kafka_time.timestamp() * 1000))
    strict.tick(NOW + HOUR)
    assert strict.query("SELECT reason, hour FROM dead_letters") == [("field_missing", NOW)]
    [domain] = registry.domains
    fixed = replace(domain, envelope=LooseEnvelope, event_time=lambda it: it.time or it.at)
    loose = make_pipeline(Registry((fixed,), registry.topics))
    rebuild(loose, NOW)
    assert (loose.count("dead_letters"), loose.count("raw_events")) == (0, 1)
    assert loose.count("normalized_measurements") == 1
