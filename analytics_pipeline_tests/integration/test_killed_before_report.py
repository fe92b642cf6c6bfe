"""kill -9 between commit and report, of the drain and of a run: the next tick shows what was committed, once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from dagster import AssetKey, AssetMaterialization, AssetRecordsFilter, DagsterInstance

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.sensors import tick
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, hour_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.crashing_processes import derive_and_die, drain_and_die
from analytics_pipeline_tests.dagster_ui import wait_for
from analytics_pipeline_tests.environments import Environment, open_environment, run_process
from analytics_pipeline_tests.integration.conftest import Environment as StackEnvironment
from analytics_pipeline_tests.integration.test_dagster_faults import FAILED_WITHIN_S, children_of, run_of_hour
from analytics_pipeline_tests.pipeline import reading

pytestmark = pytest.mark.timeout(300)

KILLED = -signal.SIGKILL
NOW = datetime.now(UTC)
START = hour_of(NOW) - 3 * HOUR
#: A tick each 5 s, and what it does itself.
ONE_TICK_S = 10


@pytest.fixture
def sent_env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as it:
        it.send([reading(START + timedelta(minutes=minute), 20.0) for minute in range(30)])
        yield it


def shown_by_a_tick(env: Environment, instance: DagsterInstance, cursor: str | None) -> tuple[str | None, list[str]]:
    """The sensor's cursor, and what a tick of a fresh process showed: ``asset: rows`` of the hour."""
    with closing(Pipeline(env.settings, env.pipeline.registry)) as pipeline:
        result = tick(pipeline, instance, cursor, NOW)
    shown = [event for event in result.asset_events if isinstance(event, AssetMaterialization)]
    for asset in DERIVED:
        wanted = AssetRecordsFilter(AssetKey(asset), asset_partitions=[key_of(START)])
        records = instance.fetch_materializations(wanted, 10).records
        shown += [record.asset_materialization for record in records if record.asset_materialization]
    assert {event.partition for event in shown} <= {key_of(START)}
    words = [f"{event.asset_key.to_user_string()}: {event.metadata['dagster/row_count'].value}" for event in shown]
    return result.cursor, words


def test_what_a_killed_drain_committed_is_shown_by_the_next_tick_once(sent_env: Environment) -> None:
    env = sent_env
    env.pipeline.close()
    assert run_process(drain_and_die, env.settings, env.topics, "after the commit", 1) == KILLED
    with DagsterInstance.ephemeral() as instance:
        cursor, shown = shown_by_a_tick(env, instance, None)
        assert shown == ["raw_events: 30"]
        assert shown_by_a_tick(env, instance, cursor)[1] == []


@pytest.mark.parametrize("asset", ["normalized_measurements", "kpis"])
def test_what_a_killed_run_committed_is_shown_by_the_next_tick_once(sent_env: Environment, asset: DerivedName) -> None:
    env = sent_env
    env.drain()
    assert run_process(derive_and_die, env.settings, env.topics, asset, "after the commit") == KILLED
    committed = DERIVED[: DERIVED.index(asset) + 1]
    rows = dict(env.pipeline.query("SELECT asset, rows FROM partition_state WHERE hour = %s", START))
    with DagsterInstance.ephemeral() as instance:
        cursor, first = shown_by_a_tick(env, instance, None)
        expected = [f"{name}: {rows.get(name, 0)}" for name in committed]
        assert first == ["raw_events: 30", *expected]
        assert shown_by_a_tick(env, instance, cursor)[1] == expected


def test_the_page_shows_within_a_tick_what_a_killed_worker_committed(env: StackEnvironment) -> None:
    hour = env.fresh_hours(1)[0]
    env.wait_until_idle()
    with env.connect() as computing, env.connect() as reporting:
        computing.cursor().execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        env.send_readings(hour, 20)
        run_id = wait_for(lambda: run_of_hour(env, hour), 30, "the start")
        time.sleep(1)  # so that it waits for the table
        reporting.cursor().execute("LOCK TABLE event_logs IN SHARE ROW EXCLUSIVE MODE")
        computing.rollback()
        committed = "SELECT rows FROM partition_state WHERE hour = %s AND asset = 'window_aggregates'"
        ((rows,),) = wait_for(lambda: env.query(committed, hour), 20, "the commit")
        for child in children_of(env.stack.workers["backfill"].pid):
            os.kill(child, signal.SIGKILL)
        reporting.rollback()
    assert env.ui.materialization("window_aggregates", key_of(hour)) is None
    assert env.ui.wait(run_id, timeout_s=FAILED_WITHIN_S)["status"] == "FAILURE"
    shown = wait_for(lambda: env.ui.materialization("window_aggregates", key_of(hour)), ONE_TICK_S, "the report")
    assert shown["dagster/row_count"] == rows
    check = wait_for(lambda: env.ui.check("window_aggregates", key_of(hour)), ONE_TICK_S, "the verdict")
    assert check["status"] == "SUCCEEDED"
    env.wait_until_settled(hour)
