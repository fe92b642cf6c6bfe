"""What the smoke run's watcher sees of a pipeline, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.cli import _smoke_watch
from analytics_pipeline.cli._smoke_watch import Sent, Watcher
from analytics_pipeline.domains import Registry
from analytics_pipeline.records import hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline_tests.pipeline import Pipeline, reading, send


@pytest.fixture
def pipeline(settings: Settings, engine: Engine, registry: Registry) -> Iterator[Pipeline]:
    it = Pipeline(settings, engine, registry)
    yield it
    it.close()


def test_what_is_committed_right_before_the_stop_is_seen(
    pipeline: Pipeline, producer: Producer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_smoke_watch, "POLL_S", 60.0)
    watcher = Watcher(pipeline.engine, [topic])
    watcher.start()
    now = datetime.now(UTC)
    send(producer, topic, [reading(now, 20.0, factory_id="live")])
    pipeline.tick()
    pipeline.settle()
    watcher.stop()
    sent = [Sent("live", hour_of(now), topic, 0, 0, now.timestamp())]
    assert math.isfinite(watcher.freshness_raw_s(sent)[0])
    assert math.isfinite(watcher.freshness_kpi_s(sent)[0])
