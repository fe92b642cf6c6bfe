"""What retention has taken stays taken: no rebuild computes an hour from what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.domains import Registry
from analytics_pipeline.errors import BelowRetentionError
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.pipeline import Pipeline, reading, send

NOW = datetime.now(UTC)
OLD = hour_of(NOW) - timedelta(days=30)


@pytest.fixture
def pipeline(settings: Settings, engine: Engine, registry: Registry) -> Iterator[Pipeline]:
    it = Pipeline(settings.model_copy(update={"retention_days": 30}), engine, registry)
    yield it
    it.close()


def expire_now(pipeline: Pipeline, now: datetime) -> None:
    with connection(pipeline.engine) as conn:
        expire(conn, pipeline.registry.by_name, now, 30)


def test_an_hour_below_the_floor_is_gone_cannot_be_rebuilt_and_takes_no_row(
    pipeline: Pipeline, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(OLD + timedelta(minutes=1)), reading(OLD + HOUR + timedelta(minutes=1))])
    pipeline.tick(NOW)
    pipeline.settle()
    expire_now(pipeline, NOW)
    assert pipeline.count("raw_events") == 2, "the hour that the floor is in is kept whole"
    expire_now(pipeline, NOW + HOUR)
    for table in ("raw_events", "normalized_measurements"):
        assert pipeline.count(table) == 1
    for asset in DERIVED:
        with pytest.raises(BelowRetentionError, match="restored"):
            pipeline.deriver.derive(asset, OLD, "full", "by hand")
    with pytest.raises(BelowRetentionError):
        rebuild_raw(pipeline.settings, pipeline.engine, pipeline.registry, OLD, "by hand")
    send(producer, topic, [reading(OLD + timedelta(minutes=2))])
    pipeline.tick(NOW + HOUR)
    assert pipeline.query("SELECT reason FROM dead_letters") == [("after_retention",)]
    expire_now(pipeline, NOW + HOUR)
    assert pipeline.count("dead_letters") == 1, "it is kept by the hour in which it came"
