"""Which schedules run by themselves."""

from __future__ import annotations

from analytics_pipeline.orchestration.schedules import build_jobs, build_schedules


def test_every_schedule_runs_a_job_that_can_be_started_by_hand() -> None:
    names = {one.name for one in build_jobs()}
    assert {one.job_name for one in build_schedules(7)} == names
