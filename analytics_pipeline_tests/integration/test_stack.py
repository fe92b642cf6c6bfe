"""The stack on one machine: what it starts again, what it says, and how it sees that its code server serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from analytics_pipeline.cli.up import _progress
from analytics_pipeline.embedded import PostgresServer, Stack, Supervisor, forget_connections, stack
from analytics_pipeline.embedded.code_health import serves_definitions
from analytics_pipeline.errors import EmbeddedServerError
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import engine_for
from analytics_pipeline_tests.conftest import _any_port

CHECKOUT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


# ---------------------------------------------------------------------- the stack on one machine


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Stack]:
    """A stack of one process that ends as soon as it starts."""
    supervisor = Supervisor(tmp_path / "logs")
    it = Stack(supervisor, tmp_path, CHECKOUT / "dagster.yaml")
    script = "import os; print('the reason, from', os.getpid()); raise SystemExit(3)"
    it._start_restartable("crashing", lambda: supervisor.start("crashing", [sys.executable, "-c", script]))
    yield it
    supervisor.close()


def crash(it: Stack) -> None:
    wait_until(lambda: bool(it.supervisor.died()), 10)
    it.revive()


def test_what_ends_again_and_again_ends_the_stack_with_its_log(crashing: Stack) -> None:
    for _ in range(stack.MAX_RESTARTS):
        crash(crashing)
    with pytest.raises(EmbeddedServerError, match=r"crashing ended with code 3(?s:.*)the reason"):
        crash(crashing)


def test_what_ends_now_and_then_is_started_again_for_ever(
    crashing: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "RESTARTS_WITHIN_S", 0.0)
    for _ in range(2 * stack.MAX_RESTARTS):
        crash(crashing)


def test_the_log_of_a_crash_outlives_the_restart(crashing: Stack) -> None:
    crash(crashing)
    wait_until(lambda: bool(crashing.supervisor.died()), 10)
    text = (crashing.supervisor.log_dir / "crashing.log").read_text()
    assert text.count("the reason, from") == 2
    assert "started again at" in text
    Supervisor(crashing.supervisor.log_dir).start("crashing", [sys.executable, "-c", ""])
    assert (crashing.supervisor.log_dir / "crashing.log.1").read_text() == text


def test_a_role_has_a_password_of_its_own(tmp_path: Path) -> None:
    server = PostgresServer(None)  # type: ignore[arg-type]
    server._home = tmp_path
    server._password_file.write_text("the superuser's")
    password = server.role_password("analytics")
    assert password not in ("the superuser's", server.role_password("other"))
    assert server.role_password("analytics") == password
    assert (tmp_path / "analytics.password").stat().st_mode & 0o777 == 0o600


def test_progress_says_in_a_line_that_the_database_does_not_answer(bare_settings: Settings) -> None:
    away = bare_settings.model_copy(update={"db_port": _any_port()})
    text, pending = _progress(SimpleNamespace(engine=engine_for(away)))  # type: ignore[arg-type]
    assert text.startswith("the database does not answer: ")
    assert "\n" not in text
    assert pending is None


def test_variables_that_a_stack_ignores_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(stack.CONNECTION_PREFIXES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DB_SCHEMA", "other")
    monkeypatch.setenv("KAFKA_BROKERS", "elsewhere:9092")
    monkeypatch.setenv("RETENTION_DAYS", "3")
    assert forget_connections() == ["DB_SCHEMA", "KAFKA_BROKERS"]
    assert "DB_SCHEMA" not in os.environ
    assert os.environ["RETENTION_DAYS"] == "3"


# ---------------------------------------------------------------------- the code server


def start_code_server(supervisor: Supervisor, folder: Path, code: str) -> int:
    (folder / "definitions_of_test.py").write_text(code)
    port = _any_port()
    command = ("-m", "dagster", "api", "grpc", "-f", str(folder / "definitions_of_test.py"), "--host", "127.0.0.1")
    supervisor.start("code", [sys.executable, *command, "--port", str(port), "--lazy-load-user-code"], cwd=folder)
    return port


@pytest.mark.parametrize(
    ("code", "healthy"),
    [
        ("import dagster; defs = dagster.Definitions()", True),
        ("raise RuntimeError('this code cannot be loaded')", False),
    ],
)
def test_a_code_server_is_healthy_only_while_it_serves_definitions(
    tmp_path: Path, code: str, healthy: bool
) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    try:
        port = start_code_server(supervisor, tmp_path, code)
        wait_until(lambda: _answers(port), 60)
        assert serves_definitions("127.0.0.1", port) is healthy
        command = [sys.executable, "-m", "analytics_pipeline.embedded.code_health", "127.0.0.1", str(port)]
        assert subprocess.run(command, check=False, timeout=30).returncode == (0 if healthy else 1)
        (server,) = supervisor.children
        os.kill(server.pid, signal.SIGSTOP)
        assert not serves_definitions("127.0.0.1", port, timeout_s=0.5)
        supervisor.kill(server)
        assert not serves_definitions("127.0.0.1", port, timeout_s=0.5)
    finally:
        supervisor.close()


def _answers(port: int) -> bool:
    """Dagster's own health check, which passes whatever the server serves."""
    from dagster._grpc.client import DagsterGrpcClient

    return DagsterGrpcClient(port=port, host="127.0.0.1").health_check_query() == "SERVING"
