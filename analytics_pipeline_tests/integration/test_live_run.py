"""A live run on real PostgreSQL: lingers, wakes up, makes room; with LINGER_S=0, lost signals, a stepped clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, ExecuteInProcessResult, build_sensor_context
from dagster._core.test_utils import create_run_for_test

from analytics_pipeline.assets.raw_events.drain_loop import DrainLoop
from analytics_pipeline.definitions import build_defs
from analytics_pipeline.orchestration import live_run, sensors
from analytics_pipeline.orchestration.partitions import HourRange
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.tags import LIVE_QUEUE, MODE_TAG, QUEUE_TAG, REQUEST_TAG
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.storage import live_signal
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.locks import domain_partition_locks
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.pipeline import reading

#: Longer than any test waits for something to happen, so that a run that lingers does not end on its own.
LONG_S = 60.0
PATIENCE_S = 20.0
#: A lost notification may delay by a second, and the machine is busy.
SOON_S = 8.0

CURRENT = hour_of(datetime.now(UTC) - timedelta(minutes=1))
LIVE_TAGS = {QUEUE_TAG: LIVE_QUEUE, MODE_TAG: "incremental", REQUEST_TAG: "c"}


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def start(env: Environment, instance: DagsterInstance) -> Iterator[Callable[[float], Future[ExecuteInProcessResult]]]:
    """Starts the sensor's run of the current hour, with a time to linger."""
    with ThreadPoolExecutor(2) as threads:
        yield lambda linger_s: threads.submit(execute, env, instance, linger_s)
        say(env, "superseded")  # whatever still lingers ends now
        wait_as(instance, DagsterRunStatus.NOT_STARTED)


def execute(env: Environment, instance: DagsterInstance, linger_s: float) -> ExecuteInProcessResult:
    settings = env.settings.model_copy(update={"linger_s": linger_s})
    defs = build_defs({"pipeline": Pipeline(settings, env.pipeline.registry)})
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={key for key in defs.resolve_all_asset_keys() if key.to_user_string() != "raw_events"}
    )
    tags = {**LIVE_TAGS, **HourRange(CURRENT, CURRENT).tags}
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def land(env: Environment, second: int, hour: datetime = CURRENT) -> None:
    """A reading arrives, and is drained."""
    env.send([reading(hour + timedelta(seconds=second), 20.0)])
    env.drain()


def messages(env: Environment, hour: datetime = CURRENT) -> int:
    """Of an hour, as the KPI has it."""
    found = env.pipeline.query("SELECT value FROM kpis WHERE kpi = 'messages' AND bucket_start = %s", hour)
    return int(found[0][0]) if found else 0


def wait_until(answer: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not answer():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.02)


def say(env: Environment, signal: live_signal.Signal) -> None:
    with connection(env.pipeline.engine) as conn:
        live_signal.notify(conn, signal)
        conn.commit()


def wait_as(instance: DagsterInstance, status: DagsterRunStatus) -> None:
    """Another live run, that waits to begin."""
    create_run_for_test(instance, status=status, tags=LIVE_TAGS)


class Deaf(live_signal.Listener):
    """Every notification is lost."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        with conn.cursor() as cursor:
            cursor.execute("UNLISTEN *")


def test_a_notification_wakes_a_run_that_lingers(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_signal.Listener, "wait", partialmethod(live_signal.Listener.wait, LONG_S))
    land(env, 0)
    run = start(LONG_S)
    for number in (1, 2, 3):
        wait_until(lambda n=number: messages(env) == n)
        land(env, number)
    wait_until(lambda: messages(env) == 4)
    assert not run.done()
    say(env, "superseded")
    result = run.result(PATIENCE_S)
    assert result.success
    shown = [event for event in result.all_events if event.event_type is DagsterEventType.ASSET_MATERIALIZATION]
    assert len({event.asset_key for event in shown}) == len(shown)  # at its end, each hour and asset once


def test_lost_notifications_delay_work_by_about_a_second(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_signal, "Listener", Deaf)
    land(env, 0)
    run = start(LONG_S)
    for number in (1, 2):
        wait_until(lambda n=number: messages(env) == n, SOON_S)
        land(env, number)
    wait_until(lambda: messages(env) == 3, SOON_S)
    assert not run.done()


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING])
def test_a_run_that_was_not_told_of_its_successor_sees_it(
    env: Environment,
    instance: DagsterInstance,
    start: Callable[[float], Future[ExecuteInProcessResult]],
    monkeypatch: pytest.MonkeyPatch,
    status: DagsterRunStatus,
) -> None:
    monkeypatch.setattr(live_signal, "Listener", Deaf)
    land(env, 0)
    run = start(LONG_S)
    wait_until(lambda: messages(env) == 1)
    wait_as(instance, status)
    assert run.result(SOON_S).success


def test_what_was_committed_before_the_successor_was_asked_for_is_computed(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    land(env, 0)
    run = start(LONG_S)
    wait_until(lambda: messages(env) == 1)
    land(env, 1)
    say(env, "superseded")
    assert run.result(PATIENCE_S).success
    assert messages(env) == 2


def test_a_run_does_not_hear_what_was_said_to_the_one_before_it(env: Environment) -> None:
    """Connections are pooled. The one before ended for another reason and did not read its last notification."""
    engine = env.pipeline.engine
    with live_signal.listening(engine):
        say(env, "superseded")
    with ExitStack() as all_at_once:  # so that one of them has the connection of the one before
        successors = [all_at_once.enter_context(live_signal.listening(engine)) for _ in range(3)]
        assert [one.wait(0.2) for one in successors] == [set()] * 3
        say(env, "work")
        assert [one.wait(PATIENCE_S) for one in successors] == [{"work"}] * 3


def test_a_run_lingers_no_longer_than_it_may(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]]
) -> None:
    land(env, 0)
    began = time.monotonic()
    assert start(1.5).result(PATIENCE_S).success
    assert time.monotonic() - began >= 1.5


# ---------------------------------------------------------------------- LINGER_S=0


def test_without_lingering_a_run_takes_its_own_hours_once_and_hears_nothing(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "listening", lambda _: pytest.fail("nobody is to listen"))
    land(env, 0)
    land(env, 0, CURRENT - HOUR)
    assert start(0).result(PATIENCE_S).success
    assert (messages(env), messages(env, CURRENT - HOUR)) == (1, 0)


def test_without_lingering_a_run_waits_for_what_others_hold(
    env: Environment, start: Callable[[float], Future[ExecuteInProcessResult]]
) -> None:
    land(env, 0)
    held = [(1, CURRENT)]
    with (
        connection(env.pipeline.engine) as conn,
        domain_partition_locks(conn, "window_aggregates", held, wait=True),
    ):
        run = start(0)
        wait_until(lambda: env.pipeline.count("normalized_measurements") == 1)
        time.sleep(0.5)
        assert not run.done()
    assert run.result(PATIENCE_S).success
    assert messages(env) == 1


@pytest.mark.parametrize("linger_s", [0.0, LONG_S])
def test_a_tick_drains_between_ticks_only_where_runs_linger(
    env: Environment, instance: DagsterInstance, linger_s: float
) -> None:
    pipeline = Pipeline(env.settings.model_copy(update={"linger_s": linger_s}), env.pipeline.registry)
    env.send([reading(CURRENT, 20.0)])
    context = build_sensor_context(
        instance=instance, resources={"pipeline": pipeline}, last_sensor_start_time=time.time()
    )
    result = sensors._evaluate(context)
    assert env.pipeline.count("raw_events") == 1
    assert len(result.run_requests or ()) == 1
    env.send([reading(CURRENT + timedelta(seconds=1), 20.0)])
    drains_on = any(thread.name == "drain-loop" for thread in threading.enumerate())
    if drains_on:
        wait_until(lambda: env.pipeline.count("raw_events") == 2)
    pipeline.close()
    assert drains_on == (linger_s > 0)


def test_a_run_is_asked_for_while_a_long_pass_of_the_drain_brings_live_data(
    env: Environment, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches are committed one by one and computed at once, so that nothing is pending when the tick looks."""
    monkeypatch.setattr(DrainLoop, "keep_alive", lambda *_, **__: None)
    monkeypatch.setattr(DrainLoop, "take", lambda _: None)
    pipeline = Pipeline(env.settings.model_copy(update={"linger_s": LONG_S}), env.pipeline.registry)
    assert not sensors.tick(pipeline, instance, None, datetime.now(UTC), linger=True).run_requests
    land(env, 0)
    env.pipeline.settle()
    assert len(sensors.tick(pipeline, instance, None, datetime.now(UTC), linger=True).run_requests or ()) == 1
    pipeline.close()


# ---------------------------------------------------------------------- a clock that is stepped


@pytest.mark.parametrize("step", [3 * HOUR, -3 * HOUR, HOUR], ids=["ahead", "back", "over the hour"])
def test_a_run_keeps_its_own_hour_whatever_the_clock_says(
    env: Environment,
    start: Callable[[float], Future[ExecuteInProcessResult]],
    monkeypatch: pytest.MonkeyPatch,
    step: timedelta,
) -> None:
    off = [timedelta()]

    class Stepped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + off[0]

    monkeypatch.setattr(live_run, "datetime", Stepped)
    land(env, 0)
    start(LONG_S)
    wait_until(lambda: messages(env) == 1)
    off[0] = step
    land(env, 1)
    wait_until(lambda: messages(env) == 2)
