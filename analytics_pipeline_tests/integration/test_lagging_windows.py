"""In live hours with many series, the windows above the base lag behind it for some seconds, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.assets.windows import levels
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.quick_gate import use_quick_gates

START = hour_of(datetime.now(UTC)).replace(hour=10) - 24 * HOUR
LAG_S = 2.0
SERIES = 30


@pytest.fixture(autouse=True)
def _many_series(monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_gates(monkeypatch)
    monkeypatch.setattr(levels, "LAG_ABOVE_WINDOWS", 10)


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    sizes = [60, 300, 3600, 7200]
    brokers = kafka_broker.bootstrap_servers
    with open_domains(postgres_server, brokers, [PRESS], windows=sizes, windows_lag_s=LAG_S) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def send(env: Environment, minutes: range, sensors: range = range(SERIES)) -> None:
    values = [(START + timedelta(minutes=m, seconds=7), m + s, f"s-{s}") for m in minutes for s in sensors]
    env.send([reading(moment, value, sensor_id=sensor) for moment, value, sensor in values])
    env.drain()


def live_pass(env: Environment) -> None:
    """As a live run does it while the hour is the current one."""
    for asset in DERIVED:
        done = env.pipeline.deriver.derive_hours(
            asset, [START, START + HOUR], "incremental", "test", now=START + timedelta(minutes=30)
        )
        assert not done.errors


def windows(env: Environment) -> dict[int, tuple[int, int]]:
    """Rows and samples of each size."""
    rows = env.pipeline.query("SELECT window_s, count(*), sum(count_n)::bigint FROM window_aggregates GROUP BY 1")
    return {size: (count, samples) for size, count, samples in rows}


def wait_for_slot() -> None:
    """Until a new stretch begins, so that what follows lies in one."""
    time.sleep(LAG_S - time.time() % LAG_S + 0.05)


def test_larger_windows_wait_while_base_windows_and_kpis_are_there(env: Environment) -> None:
    wait_for_slot()
    send(env, range(2))
    live_pass(env)
    assert windows(env) == {60: (2 * SERIES, 2 * SERIES)}
    assert env.pipeline.query("SELECT sum(value) FROM kpis WHERE kpi = 'messages'") == [(2.0 * SERIES,)]
    with connection(env.pipeline.engine) as conn:
        assert actionable_hours(conn) == []  # it is not time yet
    assert env.pipeline.query("SELECT DISTINCT above_base FROM pending_work") == [(True,)]
    wait_for_slot()
    live_pass(env)
    assert {size: samples for size, (_, samples) in windows(env).items()} == dict.fromkeys(
        (60, 300, 3600, 7200), 2 * SERIES
    )
    assert env.pipeline.count("pending_work") == 0
    assert_live_equals_rebuild(env.pipeline)


def test_what_lagged_in_several_passes_is_done_at_once(env: Environment) -> None:
    wait_for_slot()
    for minute in (1, 2, 58):
        send(env, range(minute, minute + 1))
        live_pass(env)
    wait_for_slot()
    send(env, range(59, 61))
    live_pass(env)
    live_pass(env)
    env.pipeline.settle()
    wait_for_slot()
    env.pipeline.settle()
    assert windows(env)[3600][1] == 5 * SERIES
    assert_live_equals_rebuild(env.pipeline)


def test_a_full_recompute_leaves_nothing_to_wait_for(env: Environment) -> None:
    wait_for_slot()
    send(env, range(2))
    live_pass(env)
    env.pipeline.rebuild([START])
    assert env.pipeline.query("SELECT count(*) FROM pending_work WHERE above_base") == [(0,)]
    env.pipeline.settle()
    assert windows(env)[3600][1] == 2 * SERIES


def test_few_series_do_not_lag(env: Environment) -> None:
    wait_for_slot()
    send(env, range(1), range(10))
    live_pass(env)
    assert windows(env)[3600] == (10, 10)


def test_what_a_clock_that_ran_ahead_put_off_is_done_at_once(env: Environment) -> None:
    wait_for_slot()
    send(env, range(2))
    live_pass(env)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("UPDATE pending_work SET not_before = now() + interval '3 hours'")
        conn.commit()
    env.pipeline.settle()
    assert windows(env)[3600][1] == 2 * SERIES
    assert_live_equals_rebuild(env.pipeline)
