"""Kafka to KPIs on the real servers: what lands, what is counted, and that live equals rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer
from sqlalchemy import Engine

from analytics_pipeline.domains import Registry
from analytics_pipeline.records import hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline_tests.pipeline import Pipeline, reading, send


@pytest.fixture
def pipeline(settings: Settings, engine: Engine, registry: Registry) -> Iterator[Pipeline]:
    it = Pipeline(settings, engine, registry)
    yield it
    it.close()


def test_a_reading_becomes_a_measurement_a_window_of_each_size_and_kpis(
    pipeline: Pipeline, producer: Producer, topic: str
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    send(producer, topic, [reading(now - timedelta(seconds=1), 20.0), reading(now, 22.0)])
    outcome = pipeline.tick()
    assert (outcome.messages, outcome.raw_rows, outcome.dead_letters) == (2, 2, 0)
    pipeline.settle()
    assert pipeline.count("normalized_measurements") == 2
    sizes = pipeline.query("SELECT DISTINCT window_s FROM analytics_agg ORDER BY 1")
    assert [row[0] for row in sizes] == [60, 300, 3600]
    kpis = dict(pipeline.query("SELECT kpi, value FROM kpis WHERE bucket_start = %s", hour_of(now)))
    assert (
        kpis["messages"]
        + dict(pipeline.query("SELECT kpi, value FROM kpis WHERE bucket_start <> %s", hour_of(now))).get(
            "messages", 0
        )
        == 2
    )
    assert kpis["share_in_spec"] is None


def test_a_second_tick_reads_only_what_is_new(pipeline: Pipeline, producer: Producer, topic: str) -> None:
    now = datetime.now(UTC)
    send(producer, topic, [reading(now, 1.0, sensor_id=f"s-{n}") for n in range(10)])
    assert pipeline.tick().messages == 10
    assert pipeline.tick().messages == 0
    send(producer, topic, [reading(now, 2.0, sensor_id="s-new")], partition=1)
    assert pipeline.tick().messages == 1
    assert pipeline.count("raw_events") == 11


def test_a_row_that_the_gate_refuses_says_of_which_series_and_value_it_is(
    pipeline: Pipeline, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(datetime.now(UTC), 23.7, sensor_id="")])
    pipeline.tick()
    pipeline.settle()
    ((stage, error),) = pipeline.query("SELECT stage, error FROM dead_letters")
    names = "tenant_id 't1', factory_id 'f1', machine_id 'mc-01', sensor_id '', metric 'temp'"
    assert (stage, error) == ("normalized_measurements", f"name_empty: {names}, value 23.7")


def test_live_equals_rebuild_to_the_last_bit(pipeline: Pipeline, producer: Producer, topic: str) -> None:
    base = hour_of(datetime.now(UTC)) - timedelta(hours=3)
    for part in range(6):
        values = [
            reading(base + timedelta(seconds=17 * (n * 6 + part)), (n * 37 % 101) / 7, sensor_id=f"s-{n % 3}")
            for n in range(100)
        ]
        send(producer, topic, values, partition=part % 2)
        pipeline.tick()
        pipeline.settle()
    live = pipeline.snapshot()
    assert len(live["normalized_measurements"]) == 600
    pipeline.rebuild(pipeline.hours())
    pipeline.settle()
    assert pipeline.snapshot() == live
