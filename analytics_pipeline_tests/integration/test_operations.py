"""What keeps a pipeline running, and what tells that it does not: connections, ended runs, signs of life."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster_shared.error import SerializableErrorInfo
from typer.testing import CliRunner

from analytics_pipeline.cli import build_app
from analytics_pipeline.embedded import ValkeyServer
from analytics_pipeline.errors import RunEndedError
from analytics_pipeline.orchestration import heartbeat
from analytics_pipeline.orchestration.pooled_storage import with_schema_and_limits
from analytics_pipeline.orchestration.prune import prune
from analytics_pipeline.settings import Settings, variable_names
from analytics_pipeline.storage.dagster_tables import require_started_run
from analytics_pipeline.storage.engine import connection, engine_for, make_engine
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.conftest import _any_port
from analytics_pipeline_tests.integration.test_migrate import fetch

RUN = "0b1c7a52-7d0c-4a37-a9a4-5b8f6cf1f1aa"


# ---------------------------------------------------------------------- connections


def test_a_connection_leaves_no_advisory_lock_in_the_pool(bare_settings: Settings) -> None:
    one = make_engine(bare_settings.model_copy(update={"db_pool_size": 1}))
    with connection(one) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(42), pg_advisory_lock_shared(43)")
        conn.commit()
        pid = conn.info.backend_pid
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"
    assert fetch(bare_settings, held, pid) == [(0,)]
    with connection(one) as conn:
        assert conn.info.backend_pid == pid, "the connection was closed, which frees any lock"
    one.dispose()


def test_connections_notice_a_network_that_swallows_packets(bare_settings: Settings) -> None:
    with connection(engine_for(bare_settings)) as conn:
        opened = [socket.socket(fileno=os.dup(conn.fileno()))]
    migrate(bare_settings)
    url = with_schema_and_limits(bare_settings.db_url().render_as_string(hide_password=False), "any")
    of_dagster = psycopg2.connect(url.replace("+psycopg2", ""))
    opened.append(socket.socket(fileno=os.dup(of_dagster.fileno())))
    for one in opened:
        assert 0 < one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 0 < one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 30
        one.close()
    of_dagster.close()


def test_any_role_may_rewrite_compressed_hours(bare_settings: Settings) -> None:
    limit = "SHOW timescaledb.max_tuples_decompressed_per_dml_transaction"
    assert fetch(bare_settings, limit) == [("0",)]


# ---------------------------------------------------------------------- Dagster's tables


def test_two_schemas_in_one_database_do_not_share_dagsters_tables(bare_settings: Settings) -> None:
    migrate(bare_settings)
    migrate(bare_settings.model_copy(update={"db_schema": "other"}))
    found = fetch(bare_settings, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%dagster%' ORDER BY 1")
    assert found == [("analytics_dagster",), ("other_dagster",)]


def test_a_storage_with_a_search_path_of_its_own_keeps_it() -> None:
    url = "postgresql+psycopg2://u:p@h/d"
    assert "csearch_path%3Da_dagster" in with_schema_and_limits(url, "a_dagster")
    assert "other" in with_schema_and_limits(f"{url}?options=-csearch_path%3Dother", "a_dagster")
    assert "a_dagster" not in with_schema_and_limits(f"{url}?options=-csearch_path%3Dother", "a_dagster")


@pytest.fixture
def instance(database_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance on the pipeline's own storage, in the test's database."""
    monkeypatch.setenv("DB_SCHEMA", database_settings.db_schema)
    storage = {
        "module": "analytics_pipeline.orchestration.pooled_storage",
        "class": "PooledPostgresStorage",
        "config": {"postgres_url": database_settings.db_url().render_as_string(hide_password=False)},
    }
    with instance_for_test(overrides={"storage": {"custom": storage}}) as it:
        yield it
        it.run_storage._engine.dispose()  # type: ignore[attr-defined]


def test_a_run_that_failed_is_not_turned_to_success(instance: DagsterInstance) -> None:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    instance.report_run_failed(run, "given up")
    late = DagsterEvent(DagsterEventType.RUN_SUCCESS.value, run.job_name, message="done after all")
    instance.report_dagster_event(late, run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is DagsterRunStatus.FAILURE


@contextmanager
def snapshot(settings: Settings) -> Iterator[Any]:
    """A transaction whose snapshot is open, as that of a run which computes."""
    with connection(engine_for(settings)) as conn, conn.cursor() as cursor:
        conn.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT 1")
        yield conn
        conn.rollback()
        conn.set_session(isolation_level="DEFAULT")


def require(settings: Settings, conn: Any, run_id: str) -> None:
    require_started_run(conn, settings.dagster_schema, run_id)


def test_only_a_started_run_may_write(instance: DagsterInstance, database_settings: Settings) -> None:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    with snapshot(database_settings) as conn:
        require(database_settings, conn, run.run_id)
        require(database_settings, conn, "of no run that Dagster knows")
    instance.report_run_failed(run, "given up")
    with snapshot(database_settings) as conn, pytest.raises(RunEndedError, match="FAILURE, not STARTED"):
        require(database_settings, conn, run.run_id)


def test_a_run_that_is_given_up_while_it_computes_may_not_write(
    instance: DagsterInstance, database_settings: Settings
) -> None:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    with snapshot(database_settings) as conn:
        instance.report_run_failed(run, "given up")
        with pytest.raises(psycopg2.errors.SerializationFailure):
            require(database_settings, conn, run.run_id)


def test_a_run_cannot_be_given_up_between_its_check_and_its_commit(
    instance: DagsterInstance, database_settings: Settings
) -> None:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    giving_up = threading.Thread(target=lambda: instance.report_run_failed(run, "given up"))
    with snapshot(database_settings) as conn:
        require(database_settings, conn, run.run_id)
        giving_up.start()
        giving_up.join(1)
        assert giving_up.is_alive()
        conn.commit()
    giving_up.join(10)
    assert not giving_up.is_alive()


def test_where_dagster_keeps_its_runs_elsewhere_a_run_may_write(database_settings: Settings) -> None:
    with snapshot(database_settings) as conn:
        require(database_settings, conn, RUN)


def test_pruning_takes_the_events_of_a_run_that_a_person_deleted(
    instance: DagsterInstance, database_settings: Settings
) -> None:
    deleted, kept = (create_run_for_test(instance, status=DagsterRunStatus.STARTED) for _ in range(2))
    for run in (deleted, kept):
        instance.report_engine_event("working", run)
    # In Dagster's page: its worker continues, and reports events of a run that is no more.
    fetch(database_settings, "DELETE FROM analytics_dagster.runs WHERE run_id = %s", deleted.run_id)
    prune(instance, datetime.now(UTC) - timedelta(days=1))
    assert instance.all_logs(deleted.run_id)
    prune(instance, datetime.now(UTC) + timedelta(seconds=1))
    assert not instance.all_logs(deleted.run_id)
    assert instance.all_logs(kept.run_id)


# ---------------------------------------------------------------------- status


@pytest.fixture
def status(
    instance: DagsterInstance, database_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Any]:
    """Runs ``status`` after a tick with a status and an age."""
    values = database_settings.model_dump()
    for field in ("db_host", "db_port", "db_name", "db_user"):
        monkeypatch.setenv(variable_names(field)[0], str(values[field]))
    monkeypatch.setenv("DB_PASSWORD", database_settings.db_password.get_secret_value())

    def run(tick: str, age: str) -> Any:
        made = instance.create_tick(
            TickData(
                instigator_origin_id="origin",
                instigator_name="drain_kafka",
                instigator_type=InstigatorType.SENSOR,
                status=TickStatus(tick),
                timestamp=time.time(),
                run_ids=[],
                error=SerializableErrorInfo("boom", [], None) if tick == "FAILURE" else None,
            )
        )
        fetch(
            database_settings,
            "UPDATE analytics_dagster.job_ticks SET timestamp = t, update_timestamp = t "
            "FROM (SELECT (now() - %s::interval) AT TIME ZONE 'UTC' AS t) AS moment WHERE id = %s",
            age,
            made.tick_id,
        )
        return CliRunner().invoke(build_app(), ["status"])

    assert instance.get_runs_count() == 0
    return run


@pytest.mark.parametrize(("tick", "age"), [("SKIPPED", "4 s"), ("SUCCESS", "14 s"), ("STARTED", "50 s")])
def test_status_is_well_while_the_sensor_ticks(status: Callable[[str, str], Any], tick: str, age: str) -> None:
    result = status(tick, age)
    assert result.exit_code == 0, result.output
    said = re.search(r"last tick of drain_kafka: (\d+) s ago", result.stdout)
    assert said is not None, result.stdout
    assert 0 <= int(said[1]) - int(age.split(maxsplit=1)[0]) <= 10  # a busy machine takes a while to ask


@pytest.mark.parametrize(("tick", "age"), [("SKIPPED", "17 s"), ("STARTED", "80 s"), ("SUCCESS", "3 days")])
def test_status_fails_when_the_sensor_stopped_ticking(
    status: Callable[[str, str], Any], tick: str, age: str
) -> None:
    result = status(tick, age)
    assert result.exit_code == 1
    assert "check that the daemon and the code server run" in result.output


def test_ticks_that_fail_are_no_sign_of_life(status: Callable[[str, str], Any]) -> None:
    assert status("SUCCESS", "1 hour").exit_code == 1
    assert status("FAILURE", "1 s").exit_code == 1
    assert status("SKIPPED", "1 s").exit_code == 0


# ---------------------------------------------------------------------- signs of life


def test_a_thread_that_waits_longer_than_it_may_is_stalled() -> None:
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait()
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    assert thread.ident is not None
    progress = heartbeat.Progress(thread.ident, longest_wait_s=0.2)
    assert not progress.stalled()
    time.sleep(0.3)
    assert progress.stalled()
    go_on.set()
    time.sleep(0.3)
    working = not progress.stalled()
    done.set()
    thread.join()
    assert working


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as it:
        yield it
        it.kill()


def test_a_child_without_a_sign_of_life_is_killed_and_not_too_early(
    valkey_server: ValkeyServer, child: subprocess.Popen[bytes]
) -> None:
    client = heartbeat.connect(valkey_server.url(7))
    watch = heartbeat.ChildWatch(client)
    run = heartbeat.ChildRun("watched", child.pid)
    client.set(heartbeat._ALIVE + run.run_id, child.pid)
    assert watch.look([run], now=0) == []
    client.delete(heartbeat._ALIVE + run.run_id)
    assert watch.look([run], now=100) == []
    assert watch.look([run], now=109) == []
    os.kill(child.pid, signal.SIGSTOP)  # that is how it became silent, and no reason not to die
    assert watch.look([run], now=111) == [run]
    assert child.wait(5) == -signal.SIGKILL


def test_nobody_is_killed_for_silence_while_valkey_is_out_of_reach(child: subprocess.Popen[bytes]) -> None:
    watch = heartbeat.ChildWatch(heartbeat.connect(f"redis://127.0.0.1:{_any_port()}/0"))
    run = heartbeat.ChildRun("watched", child.pid)
    assert [watch.look([run], now) for now in (0, 100, 200)] == [[], [], []]


def test_a_process_whose_run_was_given_up_while_it_was_frozen_kills_itself(valkey_server: ValkeyServer) -> None:
    script = f"""
import time
from analytics_pipeline.orchestration import heartbeat
heartbeat.TIME_TO_LIVE_S, heartbeat.REFRESH_S = 1, 0.1
hooks = heartbeat.RunHooks(lambda: None, lambda: False, 60.0)
with heartbeat.signs_of_life(heartbeat.connect({valkey_server.url(7)!r}), "frozen", hooks):
    print("at work", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        time.sleep(2)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(10) == -signal.SIGKILL
