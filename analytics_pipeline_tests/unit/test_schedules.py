"""Which schedules run by themselves."""

from __future__ import annotations

import pytest
from dagster import DefaultScheduleStatus

from analytics_pipeline.orchestration.schedules import STATE_CLOCK_CRON, build_jobs, build_schedules


@pytest.mark.parametrize("states", [False, True])
def test_the_clock_of_states_ticks_where_a_domain_has_states(states: bool) -> None:
    (clock,) = (one for one in build_schedules(0, states=states) if one.cron_schedule == STATE_CLOCK_CRON)
    assert clock.default_status == (DefaultScheduleStatus.RUNNING if states else DefaultScheduleStatus.STOPPED)


def test_every_schedule_runs_a_job_that_can_be_started_by_hand() -> None:
    names = {one.name for one in build_jobs()}
    assert {one.job_name for one in build_schedules(7, states=True)} == names
