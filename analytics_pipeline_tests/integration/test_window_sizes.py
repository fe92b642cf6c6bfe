"""Other window sizes than the database holds: refused with the remedy, or taken over whole; never half of each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.errors import SettingsError
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import load_settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, open_environment
from analytics_pipeline_tests.faulty import happen, mend
from analytics_pipeline_tests.invariants import assert_invariants
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 5 * HOUR


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as it:
        it.send([reading(START + timedelta(minutes=minute), 20.0 + minute % 7) for minute in range(100)])
        it.drain()
        it.pipeline.settle()
        yield it


def sizes(env: Environment) -> list[int]:
    return [row[0] for row in env.pipeline.query("SELECT DISTINCT window_s FROM window_aggregates ORDER BY 1")]


def change_windows(env: Environment, *windows: int) -> None:
    env.settings = load_settings(_env_file=None, **env.settings.model_dump() | {"windows": list(windows)})
    env.renew()


def test_a_process_with_other_window_sizes_computes_nothing_and_says_what_to_do(env: Environment) -> None:
    change_windows(env, 60, 600)
    with pytest.raises(SettingsError, match=r"windows of 60,600 s, the database holds 60,300,3600 s.*migrate"):
        env.pipeline.deriver.derive("window_aggregates", START, "full", "test")
    assert sizes(env) == [60, 300, 3600]


def test_a_migration_takes_new_window_sizes_over_for_every_hour_and_drops_the_old_ones(env: Environment) -> None:
    change_windows(env, 60, 600)
    told: list[str] = []
    migrate(env.settings, on_notice=told.append)
    assert any("2 hours are computed again" in line for line in told)
    assert sizes(env) == [60]
    env.pipeline.settle()
    assert sizes(env) == [60, 600]
    assert_invariants(env)


def test_a_migration_with_the_same_window_sizes_asks_for_nothing(env: Environment) -> None:
    migrate(env.settings)
    assert env.pipeline.query("SELECT count(*) FROM pending_work") == [(0,)]


@pytest.mark.parametrize("moment", ["before its snapshot", "after its snapshot"])
def test_a_slice_under_way_while_window_sizes_change_commits_nothing(env: Environment, moment: str) -> None:
    env.send([reading(START + timedelta(minutes=30, seconds=1), 50.0)])
    env.drain()
    env.normalize()
    deriver = env.pipeline.deriver
    others = load_settings(_env_file=None, **env.settings.model_dump() | {"windows": [60, 600]})
    compute = deriver.protocol.compute
    if moment == "before its snapshot":
        deriver.protocol.compute = lambda *run: (migrate(others), compute(*run))[1]  # type: ignore[method-assign]
    else:
        happen(deriver, "window_aggregates", "sensor", "read", lambda _: migrate(others) and None)
    with pytest.raises(SettingsError, match="the database holds 60,600 s"):
        deriver.derive("window_aggregates", START, "incremental", "test")
    mend(deriver)
    assert env.pipeline.count("partition_failure") == 0, "nothing is wrong with the hour"
    change_windows(env, 60, 600)
    env.pipeline.settle()
    assert sizes(env) == [60, 600]
    assert_invariants(env)


def test_a_longer_window_that_begins_in_an_hour_without_data_is_taken_over_too(env: Environment) -> None:
    week_s = 7 * 24 * 3600
    change_windows(env, 60, 300, 3600, week_s)
    migrate(env.settings)
    env.pipeline.settle()
    assert sizes(env) == [60, 300, 3600, week_s]
    assert_invariants(env)


def test_no_anomaly_of_a_former_base_window_is_left_where_the_first_one_begins_later(env: Environment) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO analytics_spec_limits (metric, usl) VALUES ('temp', 50)")
        conn.commit()
    # In the first hour of all: the look-back of an earlier one would ask for the whole of it.
    env.send([reading(START - HOUR + timedelta(minutes=3), 99.0)])
    env.drain()
    for windows in ([300, 3600], [60, 3600]):
        change_windows(env, *windows)
        migrate(env.settings)
        env.pipeline.settle()
        starts = env.pipeline.query(
            "SELECT window_s, extract(minute FROM bucket_start)::int FROM anomalies WHERE detector = 'spec_limits'"
        )
        assert starts == [(windows[0], 180 // windows[0] * windows[0] // 60)]
