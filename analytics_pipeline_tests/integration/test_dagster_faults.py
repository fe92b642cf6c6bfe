"""Workers that die, queues that forget: what Dagster is told, and that the hour goes on by itself."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline_tests.dagster_ui import wait_for
from analytics_pipeline_tests.integration.conftest import World

pytestmark = pytest.mark.timeout(300)

#: What the design promises for a dead worker's run.
FAILED_WITHIN_S = 30


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run_of_hour(world: World, hour: datetime) -> str | None:
    """The run of the sensor that has begun to work on an hour."""
    for run in world.ui.runs({"dagster/partition": key_of(hour)}, limit=1):
        if run["status"] == "STARTED":
            return str(run["runId"])
    return None


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_killed_workers_run_is_failed_and_its_hour_goes_on(world: World, victim: str) -> None:
    hour = world.fresh_hours(1)[0]
    world.wait_until_idle()
    with world.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE kpis IN ACCESS EXCLUSIVE MODE")
        world.send_readings(hour, 20)
        run_id = wait_for(lambda: run_of_hour(world, hour), 30, "the start")
        time.sleep(1)  # so that it is inside the last asset
        worker = world.stack.workers["backfill"].pid
        died_at = time.monotonic()
        for child in children_of(worker):
            os.kill(child, signal.SIGKILL)
        if victim == "worker":
            os.kill(worker, signal.SIGKILL)
        assert world.ui.wait(run_id, timeout_s=FAILED_WITHIN_S)["status"] == "FAILURE"
        assert time.monotonic() - died_at < FAILED_WITHIN_S
        blocker.rollback()
    world.stack.revive()
    world.wait_until_settled(hour)
    assert world.counts(hour)["normalized_measurements"] == 20
    wait_for(lambda: not world.query("SELECT 1 FROM hour_claim WHERE hour = %s", hour), 30, "the end of the claim")


def test_runs_that_the_queue_forgot_are_failed_and_asked_for_again(world: World) -> None:
    first, second = world.fresh_hours(2)
    world.wait_until_idle()
    with world.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE kpis IN ACCESS EXCLUSIVE MODE")
        running = world.ui.materialize(["kpis"], key_of(first))
        wait_for(lambda: world.ui.run(running)["status"] == "STARTED", 20, "the start")
        queued = world.ui.materialize(["kpis"], key_of(second))
        port = world.stack.valkey.port
        world.stack.valkey.stop()
        world.stack.valkey.start(world.stack.state_dir, port)  # empty; signs of life come back by themselves
        assert world.ui.wait(queued, timeout_s=60)["status"] == "FAILURE"
        assert world.ui.run(running)["status"] == "STARTED"
        blocker.rollback()
    assert world.ui.wait(running)["status"] == "SUCCESS"
