"""raw_events rebuilt by hand: what is missing comes back from Kafka, what reads differently now moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.domains import Registry
from analytics_pipeline.domains.base import Expect
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.conftest import KafkaServer
from analytics_pipeline_tests.pipeline import Pipeline, reading, send
from analytics_pipeline_tests.raw_produce import produce_with_headers

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


def counts(pipeline: Pipeline) -> dict[datetime, tuple[int, int]]:
    """What people are told of raw events: rows and dead letters by hour."""
    rows = pipeline.query("SELECT hour, rows, rows_failed FROM partition_state WHERE asset = 'raw_events'")
    return {hour: (raw, dead) for hour, raw, dead in rows if raw or dead}


def broken(_: object) -> datetime:
    raise OSError("no such zone")


def test_every_hour_that_gains_or_loses_rows_or_dead_letters_is_counted_anew(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    """Dead letters are kept by the hour in which Kafka got them: rebuilding one hour empties or fills others."""
    [domain] = registry.domains
    pipeline = make_pipeline(registry)
    faulty = make_pipeline(Registry((replace(domain, event_time=broken),), registry.topics))
    arrived = int((NOW + 2 * HOUR).timestamp() * 1000)
    send(producer, topic, [reading(NOW + timedelta(minutes=n)) for n in range(3)], timestamp=arrived)
    pipeline.tick(NOW + 3 * HOUR)
    assert counts(pipeline) == {NOW: (3, 0)}
    rebuild(faulty, NOW)
    assert counts(pipeline) == {NOW + 2 * HOUR: (0, 3)}
    rebuild(pipeline, NOW + 2 * HOUR)
    assert counts(pipeline) == {NOW: (3, 0)}


# ---------------------------------------------------------------------- what a rebuild leaves alone


def test_rows_of_a_domain_that_is_disabled_here_stay_as_they_are(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    pipeline = make_pipeline(registry)
    send(producer, topic, [reading(NOW + timedelta(minutes=n)) for n in range(10)] + [b"bad"])
    pipeline.tick(NOW + HOUR)
    pipeline.settle()
    before = pipeline.snapshot()
    for topics in (registry.topics, ()):
        rebuild(make_pipeline(Registry((), topics)), NOW)
        assert pipeline.snapshot() == before


def test_retention_goes_by_the_floor_that_is_written_down_and_not_by_the_clock(
    make_pipeline: Callable[[Registry], Pipeline],
    registry: Registry,
    producer: Producer,
    topic: str,
) -> None:
    pipeline = make_pipeline(registry)
    old = NOW - timedelta(days=3)
    send(producer, topic, [reading(old + timedelta(minutes=n)) for n in range(10)])
    pipeline.tick(NOW)
    pipeline.settle()
    before = pipeline.snapshot()
    pipeline.settings = pipeline.settings.model_copy(update={"retention_days": 1})
    rebuild(pipeline, old)  # retention did not run yet
    assert pipeline.snapshot() == before


def test_what_retention_took_does_not_come_back_with_a_neighbouring_hour(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    pipeline = make_pipeline(registry)
    send(producer, topic, [reading(NOW - timedelta(minutes=n)) for n in range(1, 11)])
    send(producer, topic, [reading(NOW + timedelta(minutes=n)) for n in range(10)])
    pipeline.tick(NOW + HOUR)
    pipeline.settle()
    with connection(pipeline.engine) as conn:
        expire(conn, ["sensor"], NOW + timedelta(days=1), 1)
    before = pipeline.snapshot(["raw_events", "dead_letters"])
    rebuild(pipeline, NOW)
    assert pipeline.snapshot(["raw_events", "dead_letters"]) == before
    assert pipeline.count("raw_events") == 10


def test_an_hour_of_a_deleted_topic_is_decoded_again_from_what_is_stored(
    make_pipeline: Callable[[Registry], Pipeline],
    registry: Registry,
    producer: Producer,
    topic: str,
    kafka_broker: KafkaServer,
) -> None:
    wrong = make_pipeline(registry)
    zoneless = (NOW + timedelta(minutes=5)).replace(tzinfo=None).isoformat()
    send(producer, topic, [reading(zoneless, 7.0)])
    wrong.tick(NOW + 4 * HOUR)
    wrong.settle()
    wrong.close()
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    admin.delete_topics([topic])[topic].result(timeout=20)
    [domain] = registry.domains
    right = make_pipeline(Registry((replace(domain, time_zone=ZoneInfo("Etc/GMT-2")),), registry.topics))
    rebuild(right, NOW)
    assert right.hours() == [NOW - 2 * HOUR]


def test_a_domain_that_raises_keeps_its_hour_and_the_others_are_rebuilt(
    make_pipeline: Callable[[Registry], Pipeline],
    registry: Registry,
    producer: Producer,
    topic: str,
    make_topic: Callable[..., str],
) -> None:
    [sensor] = registry.domains
    other = make_topic()
    good = Registry((sensor, replace(sensor, name="other", topics=(other,))), (topic, other))
    pipeline = make_pipeline(good)
    for name in (topic, other):
        send(producer, name, [reading(NOW + timedelta(minutes=n)) for n in range(10)])
    pipeline.tick(NOW + HOUR)
    pipeline.settle()
    before = pipeline.snapshot(["raw_events"])
    with connection(pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute('DELETE FROM raw_events WHERE "offset" = 3 AND topic = %s', (topic,))
        conn.commit()
    nowhere = Expect("raw_events", "expect_column_values_to_not_be_null", "nowhere", "missing")
    faulty = make_pipeline(Registry((sensor, replace(good.domains[1], expectations=(nowhere,))), good.topics))
    outcome = rebuild_raw(faulty.settings, faulty.engine, faulty.registry, NOW, "by hand").outcome
    assert outcome.quarantined == ("other",)
    assert pipeline.snapshot(["raw_events"]) == before


def test_headers_that_could_not_be_read_stay_dead_letters(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, settings: Settings, topic: str
) -> None:
    pipeline = make_pipeline(registry)
    produce_with_headers(settings.kafka_brokers, topic, 0, reading(NOW), [(b"\xff", b"1")])
    pipeline.tick(NOW + HOUR)
    before = pipeline.snapshot(["raw_events", "dead_letters"])
    rebuild(pipeline, hour_of(datetime.now(UTC)))
    assert pipeline.snapshot(["raw_events", "dead_letters"]) == before
    assert pipeline.count("dead_letters") == 1


# ---------------------------------------------------------------------- cost


def test_an_hour_of_dead_letters_is_rebuilt_about_as_fast_as_one_of_good_rows(
    make_pipeline: Callable[[Registry], Pipeline], registry: Registry, producer: Producer, topic: str
) -> None:
    count = 40_000
    pipeline = make_pipeline(registry)
    hours = [NOW, NOW - 2 * HOUR]
    good = [reading(hours[0] + timedelta(milliseconds=80 * n), float(n)) for n in range(count)]
    send(producer, topic, good, timestamp=int(hours[0].timestamp() * 1000))
    bad = [one[:-2] for one in good]
    send(producer, topic, bad, 1, timestamp=int(hours[1].timestamp() * 1000))
    while pipeline.count("ingest_batch") == 0 or pipeline.tick(NOW + HOUR).messages:
        pipeline.tick(NOW + HOUR)
    assert (pipeline.count("raw_events"), pipeline.count("dead_letters")) == (count, count)
    before = pipeline.snapshot(["raw_events", "dead_letters"])
    took = [min(_rebuild_s(pipeline, hour) for _ in range(2)) for hour in hours]
    assert pipeline.snapshot(["raw_events", "dead_letters"]) == before
    assert took[1] <= 2 * took[0], f"good {took[0]:.2f} s, dead letters {took[1]:.2f} s"


def _rebuild_s(pipeline: Pipeline, hour: datetime) -> float:
    began = time.monotonic()
    rebuild_raw(pipeline.settings, pipeline.engine, pipeline.registry, hour, "by hand")
    return time.monotonic() - began
