"""Pruning Dagster's storage: 20,000 real-shaped runs go, and what its pages are made of stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from dagster import AssetCheckKey, AssetKey, DagsterInstance, DagsterRunStatus, RunsFilter

from analytics_pipeline.definitions import build_defs
from analytics_pipeline.domains import Registry
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.orchestration.prune import prune, summary
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.tags import INCREMENTAL, LIVE_QUEUE, MODE_TAG, QUEUE_TAG, REQUEST_TAG
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.pipeline import reading, send

CLONES = 20_000
#: Live runs of one hour: one every five seconds.
RUNS_PER_HOUR = 720
TEMPLATE_HOUR = hour_of(datetime.now(UTC)) - 10 * 24 * HOUR

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def instance(dagster_instance: DagsterInstance) -> DagsterInstance:
    return dagster_instance


@pytest.fixture
def pipeline(settings: Settings, registry: Registry) -> Iterator[Pipeline]:
    """The resource, on the test's own database and topic."""
    made = Pipeline(settings, registry)
    yield made
    made.close()


def execute(instance: DagsterInstance, pipeline: Pipeline, hour: datetime, **tags: str) -> str:
    """One run of the four derived assets, in this process; returns its id."""
    defs = build_defs({"pipeline": pipeline})
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={AssetKey(asset) for asset in DERIVED}
    )
    result = job.execute_in_process(instance=instance, partition_key=key_of(hour), tags=tags, raise_on_error=False)
    return str(result.run_id)


def live_tags(request_id: str) -> dict[str, str]:
    return {MODE_TAG: INCREMENTAL, REQUEST_TAG: request_id, QUEUE_TAG: LIVE_QUEUE}


CLONE = """
CREATE TEMP TABLE clone AS
    SELECT n, gen_random_uuid()::text AS run_id,
        to_char(%(first)s::timestamptz + interval '1 hour' * (n / %(per_hour)s), 'YYYY-MM-DD-HH24:MI') AS key
    FROM generate_series(0, %(clones)s - 1) n;
INSERT INTO analytics_dagster.runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition,
        create_timestamp, update_timestamp, start_time, end_time)
    SELECT c.run_id, r.snapshot_id, r.pipeline_name, r.mode, r.status,
        replace(replace(r.run_body, r.run_id, c.run_id), %(key)s, c.key), r.partition,
        r.create_timestamp - interval '9 days' + interval '5 seconds' * c.n,
        r.update_timestamp - interval '9 days' + interval '5 seconds' * c.n,
        r.start_time - 777600 + 5 * c.n, r.end_time - 777600 + 5 * c.n
    FROM analytics_dagster.runs r, clone c WHERE r.run_id = %(run)s;
INSERT INTO analytics_dagster.run_tags (run_id, key, value)
    SELECT c.run_id, t.key, replace(t.value, %(key)s, c.key)
    FROM analytics_dagster.run_tags t, clone c WHERE t.run_id = %(run)s;
INSERT INTO analytics_dagster.event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key,
        partition)
    SELECT c.run_id, replace(replace(e.event, e.run_id, c.run_id), %(key)s, c.key), e.dagster_event_type,
        e.timestamp - interval '9 days' + interval '5 seconds' * c.n, e.step_key, e.asset_key,
        replace(e.partition, %(key)s, c.key)
    FROM clone c, analytics_dagster.event_logs e WHERE e.run_id = %(run)s ORDER BY c.n, e.id;
INSERT INTO analytics_dagster.asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT x.asset_key, x.check_name, c.key, c.run_id, x.execution_status,
        replace(replace(x.evaluation_event, x.run_id, c.run_id), %(key)s, c.key),
        x.evaluation_event_timestamp, x.evaluation_event_storage_id
    FROM clone c, analytics_dagster.asset_check_executions x WHERE x.run_id = %(run)s ORDER BY c.n, x.id;
DROP TABLE clone;
ANALYZE;
"""


def clone_run(settings: Settings, run_id: str, first: datetime, clones: int) -> None:
    """Many copies of one run, 720 an hour from ``first`` on, in SQL: executing them would take hours."""
    with connection(engine_for(settings)) as conn, conn.cursor() as cursor:
        cursor.execute(
            CLONE,
            {
                "run": run_id,
                "key": key_of(TEMPLATE_HOUR),
                "first": first,
                "clones": clones,
                "per_hour": RUNS_PER_HOUR,
            },
        )
        conn.commit()


@pytest.fixture
def template(instance: DagsterInstance, pipeline: Pipeline, producer: Producer, topic: str) -> str:
    """A real live run that found work in every asset."""
    moments = [TEMPLATE_HOUR + timedelta(seconds=10 * step) for step in range(120)]
    send(producer, topic, [reading(moment, 20 + step % 5) for step, moment in enumerate(moments)])
    assert pipeline.drain(TEMPLATE_HOUR + HOUR).raw_rows == 120
    return execute(instance, pipeline, TEMPLATE_HOUR, **live_tags("template"))


def test_20_000_old_live_runs_go_and_partition_status_and_checks_stay(
    instance: DagsterInstance, pipeline: Pipeline, template: str, record_property: Any
) -> None:
    first = TEMPLATE_HOUR + HOUR
    by_hand = execute(instance, pipeline, first)  # before the clones, so that theirs are the latest
    clone_run(pipeline.settings, template, first, CLONES)
    hours = {key_of(first + HOUR * step) for step in range(-(-CLONES // RUNS_PER_HOUR))}
    keys = [AssetKey(asset) for asset in DERIVED]
    before = {key: set(instance.get_materialized_partitions(key)) for key in keys}
    assert hours <= before[keys[0]]

    pruned = prune(instance, datetime.now(UTC) - timedelta(days=1), return_space=True)

    print("\n" + "\n".join(summary(pruned)))
    record_property("pruned", json.dumps({"before": pruned.rows_before, "after": pruned.rows_after}))
    assert {key: set(instance.get_materialized_partitions(key)) for key in keys} == before
    for key in keys:
        for hour in (min(hours), max(hours)):
            results = instance.event_log_storage.get_asset_check_execution_history(
                AssetCheckKey(key, "gate"), limit=1000
            )
            assert any(one.partition == hour and one.evaluation and one.evaluation.passed for one in results)
    # One run an hour holds the latest materializations; those of today, and of a person, are whole.
    assert pruned.rows_after["runs"] == len(hours) + 2
    assert pruned.rows_after["event_logs"] < pruned.rows_before["event_logs"] / 100
    assert pruned.bytes_after < pruned.bytes_before / 20
    assert len(instance.all_logs(by_hand)) > 30
    assert len(instance.all_logs(template)) > 30


def test_pruning_twice_deletes_nothing_more(instance: DagsterInstance, settings: Settings, template: str) -> None:
    clone_run(settings, template, TEMPLATE_HOUR + HOUR, 50)
    cutoff = datetime.now(UTC) - timedelta(days=1)
    first = prune(instance, cutoff)
    second = prune(instance, cutoff)
    assert first.deleted["runs"] == 49
    assert not any(second.deleted.values())
    assert first.rows_after == second.rows_after


def test_a_failure_that_nothing_made_good_stays(
    instance: DagsterInstance, settings: Settings, template: str
) -> None:
    clone_run(settings, template, TEMPLATE_HOUR + HOUR, 3)
    with connection(engine_for(settings)) as conn, conn.cursor() as cursor:
        # The last of the three failed, as if its materializations had never been.
        cursor.execute("SELECT run_id FROM analytics_dagster.runs ORDER BY id DESC LIMIT 1")
        last = cursor.fetchone()[0]
        cursor.execute(
            "UPDATE analytics_dagster.runs SET status = 'FAILURE', "
            "run_body = replace(run_body, 'SUCCESS', 'FAILURE') WHERE run_id = %s",
            (last,),
        )
        cursor.execute(
            "DELETE FROM analytics_dagster.event_logs WHERE run_id = %s "
            "AND dagster_event_type = 'ASSET_MATERIALIZATION'",
            (last,),
        )
        conn.commit()

    prune(instance, datetime.now(UTC) - timedelta(days=1))

    failed = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
    assert [run.run_id for run in failed] == [last]
