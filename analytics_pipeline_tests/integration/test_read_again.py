"""A rebuild of raw events while Kafka is in trouble: what could not be read is said, and never taken for an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from sqlalchemy import Engine

from analytics_pipeline.assets.raw_events import read_again
from analytics_pipeline.assets.raw_events.rebuild import RebuiltHour, rebuild_raw
from analytics_pipeline.domains import Registry
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources import kafka
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import KafkaServer
from analytics_pipeline_tests.fault_points import PartitionError
from analytics_pipeline_tests.pipeline import Pipeline, reading, send

NOW = hour_of(datetime.now(UTC)) - timedelta(hours=5)
MESSAGES = 30


class TroubledConsumer:
    """A consumer whose first answers about a topic are an error of its partition, and nothing else."""

    troubled = ""
    answers = 0

    def __init__(self, real: Any) -> None:
        self._real = real
        self._assigned: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def assign(self, partitions: Any) -> None:
        self._assigned = {one.topic for one in partitions}
        self._real.assign(partitions)

    def incremental_assign(self, partitions: Any) -> None:
        self._assigned |= {one.topic for one in partitions}
        self._real.incremental_assign(partitions)

    def incremental_unassign(self, partitions: Any) -> None:
        self._assigned -= {one.topic for one in partitions}
        self._real.incremental_unassign(partitions)

    def consume(self, *arguments: Any) -> Any:
        if TroubledConsumer.answers and TroubledConsumer.troubled in self._assigned:
            TroubledConsumer.answers -= 1
            return [PartitionError(TroubledConsumer.troubled, 0)]
        return self._real.consume(*arguments)


@pytest.fixture
def both(
    settings: Settings,
    engine: Engine,
    registry: Registry,
    producer: Producer,
    topic: str,
    make_topic: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Pipeline]:
    """Two domains of a topic each, drained and settled, whose raw events are gone."""
    [sensor] = registry.domains
    other = make_topic()
    domains = Registry((sensor, replace(sensor, name="other", topics=(other,))), (topic, other))
    pipeline = Pipeline(settings, engine, domains)
    for name in (topic, other):
        send(producer, name, [reading(NOW + timedelta(minutes=n)) for n in range(MESSAGES)])
    pipeline.tick(NOW + HOUR)
    pipeline.settle()
    with connection(engine) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM raw_events")
        conn.commit()
    monkeypatch.setattr(TroubledConsumer, "troubled", topic)
    real = kafka.Consumer
    monkeypatch.setattr(kafka, "Consumer", lambda config: TroubledConsumer(real(config)))
    yield pipeline
    pipeline.close()


def rebuild(pipeline: Pipeline) -> RebuiltHour:
    return rebuild_raw(pipeline.settings, pipeline.engine, pipeline.registry, NOW, "by hand")


def test_an_error_that_passes_is_not_taken_for_the_end_of_the_log(
    both: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TroubledConsumer, "answers", 2)
    assert rebuild(both).unread == []
    assert both.count("raw_events") == 2 * MESSAGES


def test_a_log_that_cannot_be_read_is_named_and_the_others_are_rebuilt(
    both: Pipeline, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    monkeypatch.setattr(TroubledConsumer, "answers", 1_000_000)
    monkeypatch.setattr(read_again, "PATIENCE_S", 0.5)
    [unread] = rebuild(both).unread
    assert (unread.domain, unread.hour) == ("sensor", NOW)
    for told in (f"{topic}[0]", f"offsets 0 to {MESSAGES}", "a fault of the test", "materialize the hour again"):
        assert told in str(unread.error)
    assert both.query("SELECT DISTINCT topic, count(*) FROM raw_events GROUP BY 1") == [
        (both.registry.by_name["other"].topics[0], MESSAGES)
    ]
    monkeypatch.setattr(TroubledConsumer, "answers", 0)
    assert rebuild(both).unread == []
    assert both.count("raw_events") == 2 * MESSAGES


def test_a_log_that_was_cut_short_is_read_to_its_end_and_is_no_trouble(
    both: Pipeline, kafka_broker: KafkaServer, topic: str
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    for future in admin.delete_records([TopicPartition(topic, 0, 10)]).values():
        future.result(timeout=20)
    assert rebuild(both).unread == []
    assert both.query("SELECT count(*) FROM raw_events WHERE topic = %s", topic) == [(MESSAGES - 10,)]
