"""Retention as Dagster shows it, and by chunks where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import AssetCheckKey, AssetKey, AssetRecordsFilter, DagsterInstance

from analytics_pipeline.definitions import build_defs
from analytics_pipeline.domains import Registry
from analytics_pipeline.orchestration import schedules
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, hour_of
from analytics_pipeline.storage import chunks
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.retention import Expired, expire
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains
from analytics_pipeline_tests.domains.copies import OVEN, PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.pipeline import reading

NOW = datetime.now(UTC)
KEPT = hour_of(NOW) - 20 * HOUR
EXPIRED = [hour_of(NOW) - 80 * HOUR, hour_of(NOW) - 79 * HOUR]


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS], retention_days=30) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    hours = [EXPIRED[0] - HOUR, *EXPIRED, KEPT]
    opened.send([reading(hour + timedelta(minutes=minute), 20.0) for hour in hours for minute in range(3)])
    opened.drain(NOW)
    opened.pipeline.settle()
    return opened


def shown(instance: DagsterInstance, asset: str, hour: datetime) -> tuple[list[Any], list[str | None]]:
    """The row counts of an hour's observations, and what its gate says."""
    wanted = AssetRecordsFilter(AssetKey(asset), asset_partitions=[key_of(hour)])
    found = [record.asset_observation for record in instance.fetch_observations(wanted, 10).records]
    history = instance.event_log_storage.get_asset_check_execution_history(AssetCheckKey(AssetKey(asset), "gate"), 99)
    said = [
        one.event.dagster_event.asset_check_evaluation_data.description
        for one in history
        if one.event and one.event.dagster_event and one.partition == key_of(hour)
    ]
    return [one.metadata["dagster/row_count"].value for one in found if one], said


def test_hours_that_retention_takes_are_shown_as_taken_and_no_others(env: Environment) -> None:
    settings = env.settings.model_copy(update={"retention_days": 1, "partitions_start": EXPIRED[0]})
    job = build_defs({"pipeline": Pipeline(settings, env.pipeline.registry)}).resolve_job_def("retention")
    with DagsterInstance.ephemeral() as instance:
        for _ in range(2):  # nothing more is said the second time
            assert job.execute_in_process(instance=instance).success
            for asset in (RAW_EVENTS, *DERIVED[:2], "kpis"):
                for hour in EXPIRED:
                    taken = "taken by retention: this hour holds no rows any more"
                    assert shown(instance, asset, hour) == ([0], [taken])
                for hour in (EXPIRED[0] - HOUR, KEPT):  # the first has no partition
                    assert shown(instance, asset, hour) == ([], [])
        assert not instance.fetch_materializations(AssetKey("kpis"), 10).records
    assert env.pipeline.count("raw_events") == 3


def test_what_could_not_be_reported_is_not_deleted_yet(env: Environment) -> None:
    def fail(_: object) -> None:
        raise ConnectionError

    with connection(env.pipeline.engine) as conn, pytest.raises(ConnectionError):
        expire(conn, ["press"], NOW, 1, announce=fail)
    assert env.pipeline.count("raw_events") == 12


def test_windows_of_a_domain_that_is_not_enabled_stay_for_as_long_as_its_own_look_back(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is enabled again, its first hours are rebuilt from the history that live had."""
    hour = hour_of(NOW) - 30 * HOUR
    env.send([reading(hour, 20.0)])
    env.drain(NOW)
    env.pipeline.settle()
    monkeypatch.setattr(schedules, "discover", lambda: (PRESS,))
    settings = env.settings.model_copy(update={"retention_days": 1})
    enabled = Registry((replace(OVEN, detectors=()),), OVEN.topics)
    job = build_defs({"pipeline": Pipeline(settings, enabled)}).resolve_job_def("retention")
    with DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
    kept = "SELECT count(*) FROM {} WHERE {} = %s"
    assert env.pipeline.query(kept.format("window_aggregates", "bucket_start"), hour) == [(3,)]
    assert env.pipeline.query(kept.format("normalized_measurements", "event_time"), hour) == [(0,)]


# ---------------------------------------------------------------------- chunks


def expire_now(env: Environment) -> Expired:
    with connection(env.pipeline.engine) as conn:
        return expire(conn, ["press"], NOW, 1, look_back=PRESS.history)


def test_of_a_compressed_chunk_that_expired_in_part_nothing_is_deleted(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed = EXPIRED[1]
    monkeypatch.setattr(chunks, "has_chunks", lambda _: True)
    monkeypatch.setattr(chunks, "drop_before", lambda *_: 0)
    monkeypatch.setattr(
        chunks, "compressed_chunk_begin", lambda _, table, __: compressed if table == "raw_events" else None
    )
    assert expire_now(env).rows["raw_events"] == 6
    assert env.pipeline.query("SELECT min(date_trunc('hour', event_time)) FROM raw_events") == [(compressed,)]
    assert env.pipeline.query("SELECT min(event_time) >= %s FROM normalized_measurements", KEPT) == [(True,)]


def test_whole_chunks_are_dropped_and_their_rows_counted(env: Environment) -> None:
    with connection(env.pipeline.engine) as conn:
        if not chunks.has_chunks(conn):
            pytest.skip("no TimescaleDB on this server; .ci/timescaledb.sh starts one")
    count = (
        "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_schema = current_schema() "
        "AND hypertable_name = 'raw_events' AND range_end <= %s"
    )
    floor = hour_of(NOW) - timedelta(days=1)
    assert env.pipeline.query(count, floor)[0][0] > 0
    expired = expire_now(env)
    assert env.pipeline.query(count, floor) == [(0,)]
    assert expired.rows["raw_events"] == expired.rows["normalized_measurements"] == 9
    assert env.pipeline.count("raw_events") == 3
