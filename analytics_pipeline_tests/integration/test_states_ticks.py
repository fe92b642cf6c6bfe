"""The state clock in Dagster: the sensor's tick advances it, and asks for what that makes stale."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2
import pytest
from dagster import DagsterInstance, SensorResult

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.orchestration import resources, sensors
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.records import HOUR
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.locks import lock_domain_commits
from analytics_pipeline_tests.domains import begin_anew, states, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_states import ALL, START, advance, assert_right, at, durations, send

pytestmark = pytest.mark.usefixtures("quick_gates")

#: As a tick may take, less what the rest of it needs.
A_TICK_S = 5.0


@pytest.fixture
def env(opened_states: Environment) -> Environment:
    begin_anew(opened_states)
    return opened_states


@pytest.fixture
def pipeline(env: Environment) -> Iterator[Pipeline]:
    made = Pipeline(env.settings, env.pipeline.registry)
    yield made
    made.close()


def tick(pipeline: Pipeline, *, real: bool = True) -> SensorResult:
    with DagsterInstance.ephemeral() as instance:
        return sensors.tick(pipeline, instance, None, datetime.now(UTC), real=real)


def test_a_tick_lets_states_last_up_to_the_watermark_and_asks_for_them(
    env: Environment, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "STATES_EVERY_S", 0.0)
    send(env, states.message(at(30), "running"), states.heartbeat(at(90)))
    env.pipeline.settle()
    assert durations(env) == []
    assert not tick(pipeline, real=False).run_requests, "a test in the page advances nothing"
    assert tick(pipeline).run_requests
    env.pipeline.settle()
    assert durations(env) == [(ALL[0], "running", 1800), (ALL[1], "running", 1800)]
    send(env, states.heartbeat(at(100)))
    env.pipeline.settle()
    tick(pipeline)
    env.pipeline.settle()
    assert durations(env) == [(ALL[0], "running", 1800), (ALL[1], "running", 2400)]


def test_ticks_within_a_minute_advance_the_clock_once(env: Environment, pipeline: Pipeline) -> None:
    send(env, states.message(at(30), "running"))
    tick(pipeline)
    env.pipeline.settle()
    send(env, states.heartbeat(at(100)))
    env.pipeline.settle()
    assert not tick(pipeline).run_requests


def test_a_clock_that_cannot_be_advanced_keeps_no_tick_from_its_work(
    env: Environment, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise psycopg2.errors.LockNotAvailable("others commit for too long")

    send(env, states.message(at(30), "running"))
    with monkeypatch.context() as failing:
        failing.setattr(state_clock, "advance", fail)
        assert tick(pipeline).run_requests
    env.pipeline.settle()
    send(env, states.heartbeat(at(90)))
    env.pipeline.settle()
    assert tick(pipeline).run_requests, "it is tried again with the next tick"


def test_a_state_that_begins_ahead_of_the_clock_is_carried_out_of_the_clocks_hour(env: Environment) -> None:
    """As a rebuild of the hour has it. The watermark is no later than Kafka's time, an event may be ahead of it."""
    kafka_ms = int(at(44).timestamp() * 1000)
    env.send([states.message(at(49), "running")], topic=topic_of(env, "states"), timestamp=kafka_ms)
    env.drain()
    env.pipeline.settle()
    advance(env)
    env.pipeline.settle()
    assert env.pipeline.count("carried_states") == 1
    assert_right(env)


# ---------------------------------------------------------------------- commits that are held up, long jumps


@pytest.fixture
def impatient(env: Environment) -> Iterator[Pipeline]:
    """The server ends what waits so long: else a red test would take minutes."""
    made = Pipeline(env.settings.model_copy(update={"db_statement_timeout_s": 12}), env.pipeline.registry)
    yield made
    made.close()


def test_a_domain_whose_commits_are_held_up_holds_up_no_tick(env: Environment, impatient: Pipeline) -> None:
    send(env, states.message(at(30), "running"), states.heartbeat(at(90)))
    env.pipeline.settle()
    tick(impatient)
    send(env, states.heartbeat(at(100)))
    impatient._states_due_at = 0.0
    number = DomainNumbers(env.pipeline.engine).numbers([states.DOMAIN.name])[states.DOMAIN.name]
    with connection(env.pipeline.engine) as worker:
        lock_domain_commits(worker, [number])  # as a worker does that is frozen before its commit
        began = time.monotonic()
        tick(impatient)
        assert time.monotonic() - began < A_TICK_S


def test_a_domain_whose_commits_are_held_up_stops_no_other_clock(env: Environment) -> None:
    send(env, states.message(at(30), "running"), states.heartbeat(at(90)))
    env.pipeline.settle()
    number = DomainNumbers(env.pipeline.engine).numbers([states.DOMAIN.name])[states.DOMAIN.name]
    with connection(env.pipeline.engine) as worker, connection(env.pipeline.engine) as conn:
        lock_domain_commits(worker, [number + 1000])
        # Whose name comes first is advanced first.
        with pytest.raises(psycopg2.OperationalError):
            state_clock.advance(conn, {" held up": number + 1000, states.DOMAIN.name: number}, lock_wait_ms=200)
    assert env.pipeline.query("SELECT count(*) FROM state_clock") == [(1,)]


def test_a_clock_that_jumps_over_a_year_of_many_series_keeps_no_tick_waiting() -> None:
    begins = START - 8760 * HOUR
    first = {number: begins + HOUR * (number % 8760) for number in range(10_000)}
    began = time.monotonic()
    passed = state_clock._passed(first, begins, START)
    assert time.monotonic() - began < 1.0
    # The first day of each series that changes in it, and of every other one its first hour.
    assert len(passed) == 8760
    assert passed[begins + 2 * HOUR] == (0, 1, 2, 8760, 8761, 8762)
    assert passed[begins + 5000 * HOUR] == (5000,)
