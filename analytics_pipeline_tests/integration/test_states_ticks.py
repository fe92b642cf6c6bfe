"""The state clock in Dagster: the sensor's tick advances it, and asks for what that makes stale."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2
import pytest
from dagster import DagsterInstance, SensorResult

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.orchestration import resources, sensors
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline_tests.domains import begin_anew, states
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_states import ALL, at, durations, send

pytestmark = pytest.mark.usefixtures("quick_gates")


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
