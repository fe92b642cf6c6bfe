"""One tick of the sensor at a time, on real Kafka and PostgreSQL: what it drains, reports, asks for, and says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    build_sensor_context,
)
from dagster._core.test_utils import create_run_for_test

from analytics_pipeline.domains import Registry
from analytics_pipeline.orchestration import sensors
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.orchestration.planning import MAX_RANGES_UNDER_WAY
from analytics_pipeline.orchestration.reporting import MAX_HOURS_PER_TICK
from analytics_pipeline.orchestration.resources import DRAIN_LOCK, Pipeline
from analytics_pipeline.orchestration.sensors import LIVE_RUN_LONGEST_S, tick
from analytics_pipeline.orchestration.tags import CODE_TAG, MODE_TAG, QUEUE_TAG, REQUEST_TAG
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.retention import expire
from analytics_pipeline.storage.run_requests import read_requests
from analytics_pipeline_tests.pipeline import reading, send

NOW = datetime.now(UTC)
CURRENT = hour_of(NOW)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def pipeline(settings: Settings, registry: Registry) -> Iterator[Pipeline]:
    made = Pipeline(settings, registry)
    yield made
    made.close()


def materialized(instance: DagsterInstance) -> set[str]:
    """The hours of raw events that Dagster shows as materialized."""
    return set(instance.get_materialized_partitions(AssetKey("raw_events")))


def query(pipeline: Pipeline, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with pipeline.connection() as conn, conn.cursor() as cursor:
        cursor.execute(sql, parameters)
        rows = list(cursor.fetchall()) if cursor.description else []
        conn.commit()
        return rows


def words(result: SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_a_tick_reports_what_it_drained_and_asks_for_a_live_run(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)] * 3 + [b"not json"])

    result = tick(pipeline, instance, None, NOW)

    (request,) = result.run_requests or ()
    assert [key.to_user_string() for key in request.asset_selection or ()] == list(DERIVED)
    assert request.tags["dagster/partition"] == key_of(CURRENT)
    assert request.tags[QUEUE_TAG] == "live"
    assert request.tags["dagster/max_runtime"] == str(LIVE_RUN_LONGEST_S)
    assert request.tags[MODE_TAG] == "incremental"
    assert {REQUEST_TAG, CODE_TAG} <= request.tags.keys()
    assert request.run_key == f"{request.tags[REQUEST_TAG]}:1"
    materializations = [event for event in result.asset_events if isinstance(event, AssetMaterialization)]
    assert {one.partition for one in materializations} == {key_of(CURRENT)}
    assert sum(one.metadata["rows_written"].value for one in materializations) == 3
    batch, drained = str(result.cursor).split(" ", 1)
    assert batch == str(query(pipeline, "SELECT max(batch_id) FROM ingest_batch")[0][0])
    assert re.match(r"drained 4 messages in \d+\.\d\d s \(3 rows, 1 dead letters\), lag 0", drained)


def test_nothing_is_reported_twice_and_an_asked_hour_is_not_asked_again(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    first = tick(pipeline, instance, None, NOW)
    second = tick(pipeline, instance, first.cursor, NOW + timedelta(seconds=5))
    assert not second.asset_events
    assert not second.run_requests
    assert words(second) == "idle: no new messages; 1 hours are being computed"


def test_a_crash_between_commit_and_report_loses_no_report(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    pipeline.drain(NOW)  # and then the process died: no cursor was moved
    assert len(tick(pipeline, instance, None, NOW).asset_events) == 2


def test_a_cursor_of_another_database_begins_anew(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    first = tick(pipeline, instance, "4711", NOW)
    again = first if first.asset_events else tick(pipeline, instance, first.cursor, NOW)
    assert len(again.asset_events) == 2


def test_backpressure_pauses_the_drain_says_so_and_runs_go_on(
    settings: Settings, registry: Registry, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    with closing(Pipeline(settings.model_copy(update={"backpressure_pending": 1}), registry)) as pipeline:
        send(producer, topic, [reading(CURRENT - HOUR * back) for back in (0, 1)])
        first = tick(pipeline, instance, None, NOW)
        assert len(first.run_requests or ()) == 1
        send(producer, topic, [reading(CURRENT - HOUR * 40)])

        later = NOW + timedelta(seconds=40)  # the live run never appeared: it is asked for again
        paused = tick(pipeline, instance, first.cursor, later)

        assert query(pipeline, "SELECT count(*) FROM raw_events") == [(2,)]
        assert len(paused.run_requests or ()) == 1
        for asset in DERIVED:
            pipeline.derive_hours(asset, [CURRENT - HOUR, CURRENT], "incremental", "test")
        resumed = tick(pipeline, instance, paused.cursor, later + timedelta(seconds=5))
        assert query(pipeline, "SELECT count(*) FROM raw_events") == [(3,)]
        assert len(resumed.run_requests or ()) == 1


def test_late_data_for_many_hours_never_pauses_what_is_live(
    settings: Settings, registry: Registry, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    with closing(Pipeline(settings.model_copy(update={"backpressure_pending": 1}), registry)) as pipeline:
        send(producer, topic, [reading(CURRENT - HOUR * back) for back in range(10, 40)])
        first = tick(pipeline, instance, None, NOW)
        send(producer, topic, [reading(CURRENT)])
        tick(pipeline, instance, first.cursor, NOW + timedelta(seconds=5))
        assert query(pipeline, "SELECT count(*) FROM raw_events") == [(31,)]


def test_a_paused_tick_without_requests_says_that_it_is_paused(
    settings: Settings, registry: Registry, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    with closing(Pipeline(settings.model_copy(update={"backpressure_pending": 1}), registry)) as pipeline:
        send(producer, topic, [reading(CURRENT - HOUR * back) for back in (0, 1)])
        first = tick(pipeline, instance, None, NOW)
        second = tick(pipeline, instance, first.cursor, NOW + timedelta(seconds=5))
        assert words(second).startswith("paused by backpressure: 2 items of live work pending, limit 1")
        assert query(pipeline, "SELECT sum(lag) FROM worker_checkpoints") == [(0,)]


def test_lag_grows_while_the_drain_is_paused(
    settings: Settings, registry: Registry, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    with closing(Pipeline(settings.model_copy(update={"backpressure_pending": 0}), registry)) as pipeline:
        send(producer, topic, [reading(NOW)])
        first = tick(pipeline, instance, None, NOW)
        for second in range(5):  # one by one: the embedded broker shows the end of its log less the last batch
            send(producer, topic, [reading(NOW + timedelta(seconds=second))])
        paused = tick(pipeline, instance, first.cursor, NOW + timedelta(seconds=5))
        ((lag,),) = query(pipeline, "SELECT sum(lag) FROM worker_checkpoints")
        assert 4 <= lag <= 5
        assert f"Kafka keeps the rest, lag {lag}" in words(paused)


def test_a_topic_that_is_not_there_is_named(
    settings: Settings, registry: Registry, instance: DagsterInstance
) -> None:
    with closing(Pipeline(settings, registry.with_topics({"test.not.there": "sensor"}))) as pipeline:
        result = tick(pipeline, instance, None, NOW)
        assert words(result) == "idle: Kafka has no topic test.not.there"


def test_topics_that_nobody_made_are_one_calm_line_beside_one_that_is_drained(
    settings: Settings, registry: Registry, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    [sensor] = registry
    copies = [replace(sensor, name=f"d{n}", topics=(f"test.not.there.{n}",)) for n in range(9)]
    all_ten = Registry((sensor, *copies), (topic, *(copy.topics[0] for copy in copies)))
    send(producer, topic, [reading(NOW)])
    with closing(Pipeline(settings, all_ten)) as pipeline:
        drained = pipeline.drain(NOW)
        assert (drained.raw_rows, drained.troubles) == (1, ())
        idle = pipeline.drain(NOW)
    assert idle.troubles == ()
    named = "test.not.there.0, test.not.there.1, test.not.there.2"
    assert idle.skip_reason == f"no new messages; Kafka has no topic {named} and 6 more"


def test_without_a_broker_the_tick_says_so_and_pending_work_goes_on(
    pipeline: Pipeline,
    settings: Settings,
    registry: Registry,
    instance: DagsterInstance,
    producer: Producer,
    topic: str,
) -> None:
    send(producer, topic, [reading(NOW)])
    pipeline.drain(NOW)
    cut_off = Pipeline(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}), registry)
    try:
        assert len(tick(cut_off, instance, None, NOW).run_requests or ()) == 1
        silent = tick(cut_off, instance, "1", NOW + timedelta(seconds=5))
        assert words(silent).startswith("not drained: Kafka at 127.0.0.1:1 does not answer")
    finally:
        cut_off.close()


def test_a_tick_beside_one_that_still_drains_leaves_the_consumer_alone(
    pipeline: Pipeline, instance: DagsterInstance
) -> None:
    with DRAIN_LOCK:
        assert words(tick(pipeline, instance, None, NOW)) == "an earlier tick is still draining"


def test_testing_the_sensor_in_the_ui_requests_no_run(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    tested = tick(pipeline, instance, None, NOW, real=False)
    assert len(tested.run_requests or ()) == 1  # shown, and never started
    with pipeline.connection() as conn:
        assert read_requests(conn) == {}
    assert len(tick(pipeline, instance, None, NOW).run_requests or ()) == 1


def test_the_daemon_gets_no_reports_to_store_for_they_are_stored_together(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    its = {"instance": instance, "resources": {"pipeline": pipeline}}
    shown = sensors._evaluate(build_sensor_context(**its))
    assert len(shown.asset_events) == 2
    assert materialized(instance) == set()
    result = sensors._evaluate(build_sensor_context(**its, last_sensor_start_time=NOW.timestamp()))
    assert not result.asset_events
    assert materialized(instance) == {key_of(CURRENT)}


def test_testing_the_sensor_in_the_ui_deletes_no_check_result_and_ends_no_run(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(NOW)])
    first = tick(pipeline, instance, None, NOW)
    for event in first.asset_events:
        if isinstance(event, AssetCheckEvaluation):
            instance.report_runless_asset_event(event)
    lost = create_run_for_test(instance, status=DagsterRunStatus.NOT_STARTED)
    key = AssetCheckKey(AssetKey("raw_events"), "gate")

    def outlives() -> tuple[int, object]:
        found = instance.get_run_by_id(lost.run_id)
        results = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
        return len(results), found and found.status

    before = outlives()
    assert before == (1, DagsterRunStatus.NOT_STARTED)
    later = NOW + timedelta(hours=1)
    tick(pipeline, instance, None, later, real=False)
    assert outlives() == before
    tick(pipeline, instance, None, later)
    assert outlives() == (0, DagsterRunStatus.FAILURE)


def test_a_year_of_history_is_asked_for_in_ranges_oldest_first_and_reported_bit_by_bit(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    send(producer, topic, [reading(CURRENT - HOUR * back) for back in range(3, 403)])
    result = tick(pipeline, instance, None, NOW)
    requests = result.run_requests or ()
    assert [request.tags["dagster/asset_partition_range_start"] for request in requests] == [
        key_of(CURRENT - HOUR * back) for back in range(402, 402 - 24 * MAX_RANGES_UNDER_WAY, -24)
    ]
    assert {request.tags[QUEUE_TAG] for request in requests} == {"backfill"}
    reported = len(result.asset_events)
    assert reported == 2 * MAX_HOURS_PER_TICK
    while reported < 800:
        result = tick(pipeline, instance, result.cursor, NOW)
        assert result.asset_events
        reported += len(result.asset_events)
    assert reported == 800


@pytest.mark.parametrize("cursor", [None, "0 words", "1|1|2999-01-01-00:00", "4711"])
def test_an_emptied_or_impossible_cursor_delays_no_report_of_a_live_hour(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str, cursor: str | None
) -> None:
    backs = range(3, MAX_HOURS_PER_TICK + 103)
    send(producer, topic, [reading(CURRENT - HOUR * back) for back in backs])
    pipeline.drain(NOW)
    send(producer, topic, [reading(CURRENT)])
    result = tick(pipeline, instance, cursor, NOW)
    shown = [event.partition for event in result.asset_events]
    assert key_of(CURRENT) in shown
    while result.asset_events:
        result = tick(pipeline, instance, result.cursor, NOW)
        shown += [event.partition for event in result.asset_events]
    hours = {key_of(CURRENT - HOUR * back) for back in (0, *backs)}
    if cursor != "1|1|2999-01-01-00:00":  # it says that the first batch is reported
        assert sorted(shown) == sorted(2 * [*hours])


# ---------------------------------------------------------------------- retention


def test_retention_deletes_whole_hours_below_a_floor_that_it_writes_down_first(
    pipeline: Pipeline, instance: DagsterInstance, producer: Producer, topic: str
) -> None:
    old, young = CURRENT - 50 * HOUR, CURRENT - 20 * HOUR
    send(producer, topic, [reading(hour + timedelta(minutes=5)) for hour in (old, young)])
    pipeline.drain(NOW)
    for hour in (old, young):
        for asset in DERIVED:
            pipeline.derive_hours(asset, [hour], "incremental", "test")

    with pipeline.connection() as conn:
        assert expire(conn, ["sensor"], NOW, 0).floor is None
        expired = expire(conn, ["sensor"], NOW, 1)
        again = expire(conn, ["sensor"], NOW, 1)

    assert expired.floor == CURRENT - 24 * HOUR
    assert expired.rows["raw_events"] == expired.rows["normalized_measurements"] == 1
    assert not any(again.rows.values())
    for table, column in {
        "raw_events": "event_time",
        "window_aggregates": "bucket_start",
        "kpis": "bucket_start",
    }.items():
        assert query(pipeline, f"SELECT min(date_trunc('hour', {column})) FROM {table}") == [(young,)]
    assert query(pipeline, "SELECT DISTINCT floor_hour FROM retention_floor") == [(expired.floor,)]
    assert query(pipeline, "SELECT count(*) FROM ingest_batch") != [(0,)]


def test_the_floor_is_never_lowered(pipeline: Pipeline) -> None:
    with pipeline.connection() as conn:
        expire(conn, ["sensor"], NOW, 1)
        expire(conn, ["sensor"], NOW, 5)
    assert query(pipeline, "SELECT DISTINCT floor_hour FROM retention_floor") == [(CURRENT - 24 * HOUR,)]
