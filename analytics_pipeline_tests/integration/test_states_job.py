"""The state clock in Dagster: a tick of its schedule asks for a run of the job, and the job advances the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from dagster import DagsterInstance, DefaultScheduleStatus, build_schedule_context

from analytics_pipeline.definitions import build_defs
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline_tests.domains import begin_anew, states
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_states import ALL, at, durations, send

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_states: Environment) -> Environment:
    begin_anew(opened_states)
    return opened_states


def tick(env: Environment, instance: DagsterInstance) -> int:
    """What the daemon does each minute; returns how many hours the run says that it asked for."""
    defs = build_defs({"pipeline": Pipeline(env.settings, env.pipeline.registry)})
    schedule = defs.resolve_schedule_def("state_clock_job_schedule")
    assert schedule.default_status == DefaultScheduleStatus.RUNNING
    context = build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    job = defs.resolve_job_def(schedule.job_name)
    done = job.execute_in_process(instance=instance, run_config=request.run_config, tags=request.tags)
    assert done.success
    (output,) = (event.event_specific_data for event in done.all_events if event.is_successful_output)
    return int(output.metadata["hours"].value)  # type: ignore[union-attr]


def test_a_tick_of_the_schedule_lets_states_last_up_to_the_watermark(env: Environment) -> None:
    send(env, states.message(at(30), "running"), states.heartbeat(at(90)))
    env.pipeline.settle()
    assert durations(env) == []
    with DagsterInstance.ephemeral() as instance:
        assert tick(env, instance) == 2
        env.pipeline.settle()
        assert durations(env) == [(ALL[0], "running", 1800), (ALL[1], "running", 1800)]
        assert tick(env, instance) == 0, "no time has passed"
        send(env, states.heartbeat(at(100)))
        assert tick(env, instance) == 1
    env.pipeline.settle()
    assert durations(env) == [(ALL[0], "running", 1800), (ALL[1], "running", 2400)]


def test_the_job_runs_where_no_domain_has_states(env: Environment) -> None:
    registry = env.pipeline.registry
    press = [domain for domain in registry.domains if not domain.states]
    pipeline = Pipeline(env.settings, type(registry)(tuple(press), press[0].topics))
    defs = build_defs({"pipeline": pipeline})
    assert defs.resolve_schedule_def("state_clock_job_schedule").default_status == DefaultScheduleStatus.STOPPED
    with DagsterInstance.ephemeral() as instance:
        assert defs.resolve_job_def("state_clock_job").execute_in_process(instance=instance).success
