"""Other window sizes than the database holds: refused with the remedy, or taken over whole; never half of each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.errors import SettingsError
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import load_settings
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, open_environment
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
