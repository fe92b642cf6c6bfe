"""What runs committed and did not live to report: shown by the next tick, each commit once, as the hour is by then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterInstance

from analytics_pipeline.orchestration import outcome_reports
from analytics_pipeline.orchestration.outcome_reports import report_unreported
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, strict, topic_of
from analytics_pipeline_tests.domains.copies import OVEN, PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.pipeline import Pipeline, reading

START = hour_of(datetime.now(UTC)) - 6 * HOUR
#: The daemon looks so often.
TICK_S = 5.0
ASSET = "normalized_measurements"


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, OVEN, strict.DOMAIN]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


@pytest.fixture(scope="module")
def instance_of_module() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def instance(instance_of_module: DagsterInstance) -> DagsterInstance:
    instance_of_module.wipe()
    return instance_of_module


def drain(env: Environment, domain: str, *values: float, hour: datetime = START) -> None:
    moments = [hour + timedelta(seconds=3600 * number / len(values)) for number in range(len(values))]
    readings = [
        reading(moment, value, sensor_id=f"s-{number % 4}")
        for number, (moment, value) in enumerate(zip(moments, values, strict=True))
    ]
    env.send(readings, topic=topic_of(env, domain))
    env.drain()


def report(env: Environment, instance: DagsterInstance, unfinished: tuple[str, ...] = ()) -> int:
    """As a tick does."""
    with connection(env.pipeline.engine) as conn:
        return report_unreported(instance, conn, unfinished, valid=lambda _: True)


def materializations(instance: DagsterInstance, hour: datetime = START, asset: str = ASSET) -> list[dict[str, Any]]:
    """The metadata of an hour's materializations, the newest first."""
    wanted = AssetRecordsFilter(AssetKey(asset), asset_partitions=[key_of(hour)])
    found = [record.asset_materialization for record in instance.fetch_materializations(wanted, 100).records]
    return [{name: value.value for name, value in one.metadata.items()} for one in found if one]


def verdicts(instance: DagsterInstance, asset: str = ASSET) -> list[tuple[bool, str | None]]:
    """What the page shows: whether the gate passed, and what it says."""
    history = instance.event_log_storage.get_asset_check_execution_history(AssetCheckKey(AssetKey(asset), "gate"), 100)
    events = [one.event.dagster_event for one in history if one.event and one.event.dagster_event]
    return [(one.asset_check_evaluation_data.passed, one.asset_check_evaluation_data.description) for one in events]


def execute(env: Environment, statement: str) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(statement)
        conn.commit()


def unreported(env: Environment) -> int:
    return int(env.pipeline.query("SELECT count(*) FROM partition_outcome WHERE reported_at IS NULL")[0][0])


def test_a_commit_that_comes_after_one_with_a_higher_id_is_reported_too(
    env: Environment, instance: DagsterInstance
) -> None:
    drain(env, "press", 9.0)
    # On TimescaleDB, whoever makes a chunk keeps others waiting for it until the commit: it is made before.
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "first")
    assert report(env, instance) == 1
    drain(env, "press", 1.0, 2.0, 3.0)
    drain(env, "oven", 1.0)
    held, slow = Gate(), Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    before(slow.deriver.protocol, "_commit", held.hold)
    derive = slow.deriver.derive_hours
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(derive, ASSET, [START], "incremental", "slow", domains=["press"])
        held.wait_until_reached()  # its outcome has an id, the lower one
        env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "quick", domains=["oven"])
        assert report(env, instance) == 1
        held.let_go()
        running.result(PATIENCE_S)
    slow.close()
    assert report(env, instance) == 1
    assert [one["dagster/row_count"] for one in materializations(instance)] == [4, 2, 1]
    assert report(env, instance) == 0
    assert unreported(env) == 0


def test_of_several_commits_of_an_hour_none_is_reported_twice(env: Environment, instance: DagsterInstance) -> None:
    for run, domain in enumerate(("press", "oven", "press")):
        drain(env, domain, *(float(number) for number in range(run + 1)))
        env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", f"run {run}")
        assert report(env, instance) == 1
        assert report(env, instance) == 0
    assert [one["rows_written"] for one in materializations(instance)] == [3, 2, 1]


@pytest.mark.parametrize("place", ["forget_check_results", "_note"])
def test_a_reporter_that_dies_before_noting_its_report_materializes_nothing_twice(
    env: Environment, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    drain(env, "press", 1.0)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "killed")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outcome_reports, place, die)
        with pytest.raises(KeyboardInterrupt):
            report(env, instance)
    drain(env, "oven", 1.0)  # and another run commits the same hour before the next tick
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "other")
    report(env, instance)
    assert [one["rows_written"] for one in materializations(instance)] == [1, 1]
    assert verdicts(instance) == [(True, "every row passed")]
    assert unreported(env) == 0


def test_a_run_that_may_still_report_is_left_alone_and_holds_up_no_other(
    env: Environment, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_reports, "MAX_OUTCOMES_PER_TICK", 1)
    drain(env, "press", 1.0)
    drain(env, "press", 1.0, hour=START + HOUR)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "lives")
    env.pipeline.deriver.derive_hours(ASSET, [START + HOUR], "incremental", "killed")
    assert report(env, instance, unfinished=("lives",)) == 1
    assert materializations(instance, START + HOUR)
    assert not materializations(instance)


def test_a_late_report_shows_the_hour_as_it_is_by_now(env: Environment, instance: DagsterInstance) -> None:
    """What a killed run committed was made good by a run after it, which reported first."""
    drain(env, "strict", *[strict.HOTTEST + 1] * 200)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "killed")
    assert env.pipeline.query("SELECT DISTINCT status FROM partition_state WHERE asset = %s", ASSET) == [
        ("quarantined",)
    ]
    drain(env, "strict", *[1.0] * 3000)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "later")
    assert report(env, instance, unfinished=("killed",)) == 1
    [(_, said)] = verdicts(instance)
    assert said == "200 rows of this hour are in the dead letters"
    assert report(env, instance) == 1
    assert [text for _, text in verdicts(instance)] == [said]


def test_two_reporters_at_once_report_each_commit_once(
    env: Environment, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that Dagster gave up waiting for continues beside the next one."""
    drain(env, "press", 1.0)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "killed")
    inside, real = Gate(), outcome_reports._report

    def hold(*arguments: Any, **more: Any) -> None:
        inside.hold()
        real(*arguments, **more)

    monkeypatch.setattr(outcome_reports, "_report", hold)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(report, env, instance)
        inside.wait_until_reached()
        assert report(env, instance) == 0
        inside.let_go()
        assert first.result(PATIENCE_S) == 1
    assert len(materializations(instance)) == 1


def test_10_000_hours_of_killed_runs_take_no_tick_long_and_the_newest_come_first(
    env: Environment, instance: DagsterInstance
) -> None:
    drain(env, "press", 1.0)
    env.pipeline.deriver.derive_hours(ASSET, [START], "incremental", "killed")
    execute(
        env,
        "INSERT INTO partition_outcome (asset, domain_id, hour, run_id, mode, rows, rows_written, dead_letters, "
        "late_rows, rows_failed, quarantined, gate, duration_s) SELECT asset, domain_id, hour - n * interval '1 h', "
        "'killed', mode, rows, rows_written, dead_letters, late_rows, rows_failed, quarantined, gate, duration_s "
        "FROM partition_outcome, generate_series(1, 10000) n",
    )
    began = time.monotonic()
    assert report(env, instance) == outcome_reports.MAX_HOURS_PER_TICK
    assert time.monotonic() - began < TICK_S
    newest = [START - HOUR * back for back in range(outcome_reports.MAX_HOURS_PER_TICK + 1)]
    assert [bool(materializations(instance, hour)) for hour in newest] == [*[True] * (len(newest) - 1), False]
