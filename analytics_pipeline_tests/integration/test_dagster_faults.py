"""Workers that die, queues that forget: what Dagster is told, and that the hour continues automatically."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline_tests.dagster_ui import FINISHED, wait_for
from analytics_pipeline_tests.integration.conftest import Environment

pytestmark = pytest.mark.timeout(300)

#: What the design promises for a dead worker's run.
FAILED_WITHIN_S = 30


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def keep_alive(env: Environment, seconds: float, answer: Callable[[], Any], what: str) -> Any:
    """Wait for an answer while the stack is looked after, as ``analytics-pipeline up`` does."""

    def look() -> Any:
        env.stack.revive()
        return answer()

    return wait_for(look, seconds, what)


def run_of_hour(env: Environment, hour: datetime) -> str | None:
    """The run of the sensor that has begun to work on an hour."""
    for run in env.ui.runs({"dagster/partition": key_of(hour)}, limit=1):
        if run["status"] == "STARTED":
            return str(run["runId"])
    return None


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_killed_workers_run_is_failed_and_its_hour_continues(env: Environment, victim: str) -> None:
    hour = env.fresh_hours(1)[0]
    env.wait_until_idle()
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        env.send_readings(hour, 20)
        run_id = wait_for(lambda: run_of_hour(env, hour), 30, "the start")
        time.sleep(1)  # so that it is inside the last asset
        worker = env.stack.workers["backfill"].pid
        died_at = time.monotonic()
        for child in children_of(worker):
            os.kill(child, signal.SIGKILL)
        if victim == "worker":
            os.kill(worker, signal.SIGKILL)
        assert env.ui.wait(run_id, timeout_s=FAILED_WITHIN_S)["status"] == "FAILURE"
        assert time.monotonic() - died_at < FAILED_WITHIN_S
        blocker.rollback()
    env.stack.revive()
    env.wait_until_settled(hour)
    assert env.counts(hour)["normalized_measurements"] == 20
    wait_for(lambda: not env.query("SELECT 1 FROM run_request WHERE hour = %s", hour), 30, "the end of the run request")


def test_runs_that_the_queue_forgot_are_failed_and_asked_for_again(env: Environment) -> None:
    first, second = env.fresh_hours(2)
    env.wait_until_idle()
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        running = env.ui.materialize(["kpis"], key_of(first))
        wait_for(lambda: env.ui.run(running)["status"] == "STARTED", 20, "the start")
        queued = env.ui.materialize(["kpis"], key_of(second))
        wait_for(lambda: env.ui.run(queued)["status"] == "STARTING", 20, "its place behind the other")
        port = env.stack.valkey.port
        env.stack.valkey.stop()
        env.stack.valkey.start(env.stack.state_dir, port)  # empty; signs of life come back by themselves
        assert env.ui.wait(queued, timeout_s=60)["status"] == "FAILURE"
        assert env.ui.run(running)["status"] == "STARTED"
        blocker.rollback()
    assert env.ui.wait(running)["status"] == "SUCCESS"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_live_data_flows_again_after_the_code_server_was_killed_or_frozen(env: Environment, number: int) -> None:
    env.wait_until_idle()
    serving = next(child for child in env.stack.supervisor.children if child.name == "code-server")
    for child in children_of(serving.pid):
        os.kill(child, number)
    os.kill(serving.pid, number)
    hour = env.fresh_hours(1)[0]
    env.send_readings(hour, 20)
    keep_alive(
        env,
        120,
        lambda: env.query("SELECT 1 FROM partition_state WHERE hour = %s AND asset = 'kpis'", hour),
        "the hour's KPIs",
    )
    env.wait_until_settled(hour)
    assert env.ui.last_tick()["status"] != "FAILURE"


def test_a_frozen_child_is_killed_and_its_replacement_runs(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    env.wait_until_idle()
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        env.send_readings(hour, 20)
        run_id = wait_for(lambda: run_of_hour(env, hour), 30, "the start")
        time.sleep(1)  # so that it is inside the last asset
        (child,) = children_of(env.stack.workers["backfill"].pid)
        freeze(child)
        assert env.ui.wait(run_id, timeout_s=FAILED_WITHIN_S)["status"] == "FAILURE"
        wait_for(lambda: not Path(f"/proc/{child}").exists(), 20, "the end of the frozen process")
        blocker.rollback()
    env.wait_until_settled(hour)
    assert env.ui.run(run_id)["status"] == "FAILURE"


def test_a_thawed_worker_does_not_turn_its_failed_run_to_success(env: Environment) -> None:
    hour = env.fresh_hours(1)[0]
    env.wait_until_idle()
    worker = env.stack.workers["backfill"].pid
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        env.send_readings(hour, 20)
        run_id = wait_for(lambda: run_of_hour(env, hour), 30, "the start")
        time.sleep(1)
        (child,) = children_of(worker)
        freeze(worker)
        freeze(child)
        assert env.ui.wait(run_id, timeout_s=FAILED_WITHIN_S)["status"] == "FAILURE"
        blocker.rollback()
    os.kill(child, signal.SIGCONT)  # its query is answered at once: it could end before anybody kills it
    time.sleep(5)
    os.kill(worker, signal.SIGCONT)
    env.wait_until_settled(hour)
    assert env.ui.run(run_id)["status"] == "FAILURE"
    env.wait_until_idle()  # nothing continues for ever


def test_a_canceled_backfill_of_200_hours_ends_all_its_runs_soon(env: Environment) -> None:
    env.wait_until_idle()
    newest = env.fresh_hours(200)
    with env.connect() as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE window_aggregates IN ACCESS EXCLUSIVE MODE")
        backfill = env.ui.backfill(["kpis"], [key_of(hour) for hour in newest])
        wait_for(lambda: len(env.ui.runs({"dagster/backfill": backfill})) == 9, 60, "all runs")
        wait_for(
            lambda: any(run["status"] == "STARTED" for run in env.ui.runs({"dagster/backfill": backfill})),
            30,
            "the first start",
        )
        assert env.ui.cancel_backfill(backfill) == "CancelBackfillSuccess"
        wait_for(lambda: all_ended(env, backfill), 60, "the end of the backfill's runs")
        blocker.rollback()
    assert {run["status"] for run in env.ui.runs({"dagster/backfill": backfill})} == {"CANCELED"}
    assert env.ui.wait_backfill(backfill) == "CANCELED"


def all_ended(env: Environment, backfill: str) -> bool:
    return all(run["status"] in FINISHED for run in env.ui.runs({"dagster/backfill": backfill}))
