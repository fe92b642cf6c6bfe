"""The whole stack on one machine: embedded servers, workers, code server, daemon, webserver.

Starts the pipeline's processes by their command lines alone; imports nothing of them, and knows no data.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analytics_pipeline.embedded.broker import BrokerServer
from analytics_pipeline.embedded.code_health import serves_definitions
from analytics_pipeline.embedded.ports import LOOPBACK, choose_port
from analytics_pipeline.embedded.postgres import PostgresServer
from analytics_pipeline.embedded.processes import TIER_CLIENT, TIER_DRIVER, Managed, Supervisor
from analytics_pipeline.embedded.valkey import ValkeyServer
from analytics_pipeline.errors import EmbeddedServerError
from analytics_pipeline.settings import known_variables

DATABASE = "sensor_cloud_db"
OWNER = "analytics"
CODE_MODULE = "analytics_pipeline.definitions"
CELERY_APP = "analytics_pipeline.orchestration.celery_app"
PREPARE_MODULE = "analytics_pipeline.cli._prepare_dagster"

#: One slot each. The live queue has a worker of its own, so that no backfill stands in its way.
QUEUES = ("live", "backfill")

CONNECTION_PREFIXES = ("DB_", "TIMESCALE_", "KAFKA_", "CELERY_")

#: Five processes import Dagster at once; a machine with one slow core takes a minute for that.
READY_TIMEOUT_S = 180.0

#: A process that ends so often within so long is broken, and starting it once more mends nothing.
MAX_RESTARTS = 5
RESTARTS_WITHIN_S = 600.0

#: A code server that serves nothing for so long is started anew. Loading the code may take READY_TIMEOUT_S.
CODE_SERVER_SILENT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredPorts:
    """Where each server goes if nobody is there already."""

    postgres: int = 55432
    broker: int = 59092
    valkey: int = 56379
    webserver: int = 3300
    code_server: int = 54000


class Stack:
    """Starts everything in order and knows the environment that all of it shares.

    Args:
        state_dir: keeps the database, DAGSTER_HOME and the logs of every process.
        dagster_yaml: the instance's configuration.
        say: told, in words for a person, what happens.
        extra_env: for the pipeline's processes, for example other drain limits.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        state_dir: Path,
        dagster_yaml: Path,
        *,
        ports: PreferredPorts | None = None,
        say: Callable[[str], None] = lambda _text: None,
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        self.supervisor = supervisor
        self.state_dir = state_dir.resolve()
        self.postgres = PostgresServer(supervisor)
        self.broker = BrokerServer(supervisor)
        self.valkey = ValkeyServer(supervisor)
        self.workers: dict[str, Managed] = {}
        self.web_url = ""
        self._dagster_yaml = dagster_yaml
        self._preferred = ports or PreferredPorts()
        self._say = say
        self._extra_env = dict(extra_env or {})
        self._restart: dict[str, Callable[[], Managed]] = {}
        self._restarts: dict[str, list[float]] = {}
        self._code: Managed | None = None
        self._code_served_at = 0.0

    def start_servers(self) -> None:
        """PostgreSQL with the pipeline's database and owner, the broker, and Valkey."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.postgres.start(self.state_dir, self._port("PostgreSQL", self._preferred.postgres))
        self.postgres.ensure_role(OWNER, self.postgres.role_password(OWNER))
        self.postgres.ensure_database(DATABASE, OWNER)
        self.broker.start(self.state_dir, self._port("the Kafka broker", self._preferred.broker))
        self.valkey.start(self.state_dir, self._port("Valkey", self._preferred.valkey))

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every process of the pipeline finds the servers."""
        return {
            **self._database_environment(),
            "KAFKA_BROKERS": self.broker.bootstrap_servers,
            "CELERY_BROKER_URL": self.valkey.url(0),
            "CELERY_RESULT_BACKEND": self.valkey.url(1),
            "DAGSTER_HOME": str(self.dagster_home),
            "DAGSTER_EVENT_BATCH_SIZE": "1000",  # a range run of 168 hours writes its events in 4 s, not 9
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "GX_ANALYTICS_ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
            **self._extra_env,
        }

    def _database_environment(self) -> dict[str, str]:
        """Nothing where the database is another one, which the caller names."""
        if "DB_PASSWORD" in self._extra_env:
            return {}
        return {
            "DB_HOST": self.postgres.host,
            "DB_PORT": str(self.postgres.port),
            "DB_NAME": DATABASE,
            "DB_USER": OWNER,
            "DB_PASSWORD": self.postgres.role_password(OWNER),
        }

    def write_environment(self) -> Path:
        """The environment as a file, for commands that are to find this stack; it holds the password."""
        path = self.state_dir / "environment"
        path.touch(mode=0o600)
        lines = (f"{name}={shlex.quote(value)}\n" for name, value in self.environment.items())
        path.write_text("".join(lines), encoding="utf-8")
        return path

    @property
    def dagster_home(self) -> Path:
        return self.state_dir / "dagster"

    def start_pipeline(self) -> None:
        """Workers, code server, daemon and webserver; returns when the web page answers."""
        self._make_dagster_home()
        self._prepare_dagster()
        for queue in QUEUES:
            self._start_restartable(f"worker-{queue}", partial(self._start_worker, queue))
        code = self._start_code_server()
        self.supervisor.wait_ready(code, self._code_serves, READY_TIMEOUT_S)
        self._start_restartable("daemon", self._start_daemon)
        web = self._start_webserver()
        self.supervisor.wait_ready(web, lambda: _answers_http(f"{self.web_url}/server_info"), READY_TIMEOUT_S)
        for worker in self.workers.values():
            self.supervisor.wait_ready(worker, partial(_says_ready, worker), READY_TIMEOUT_S)

    def revive(self) -> None:
        """Start again what ended, or serves nothing any more, as a service manager would.

        Raises:
            EmbeddedServerError: a server ended, and the rest cannot go on without it; or one ended too often.
        """
        for child in self.supervisor.died():
            self._start_again(child, f"ended with code {child.process.returncode}")
        if self._code is not None and self._code.running and self._code_is_silent():
            self._start_again(self._code, "serves no definitions any more")

    def _start_again(self, child: Managed, what: str) -> None:
        start = self._restart.get(child.name)
        if start is None or self._restarted_too_often(child.name):
            raise EmbeddedServerError(f"{child.name} {what}. The end of {child.log_file}:\n{child.log_tail()}")
        self._say(f"{child.name} {what}: starting it again; its log: {child.log_file}")
        self.supervisor.kill(child)
        start()

    def _restarted_too_often(self, name: str) -> bool:
        now = time.monotonic()
        recent = [at for at in self._restarts.get(name, []) if now - at < RESTARTS_WITHIN_S]
        self._restarts[name] = [*recent, now]
        return len(recent) >= MAX_RESTARTS

    def _code_serves(self) -> bool:
        served = serves_definitions(LOOPBACK, self._code_port)
        if served:
            self._code_served_at = time.monotonic()
        return served

    def _code_is_silent(self) -> bool:
        return not self._code_serves() and time.monotonic() - self._code_served_at > CODE_SERVER_SILENT_S

    def _start_restartable(self, name: str, start: Callable[[], Managed]) -> None:
        self._restart[name] = start
        start()

    def _start_worker(self, queue: str) -> Managed:
        worker = self._python(
            f"worker-{queue}",
            *("-m", "celery", "-A", CELERY_APP, "worker", "-Q", queue, "-n", f"{queue}@{socket.gethostname()}"),
            *("--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle"),
        )
        self.workers[queue] = worker
        return worker

    def _start_code_server(self) -> Managed:
        self._code_port = self._port("the code server", self._preferred.code_server, quiet=True)
        self._restart["code-server"] = self._launch_code_server
        return self._launch_code_server()

    def _launch_code_server(self) -> Managed:
        # Not "code-server start": that is a proxy which lives on when the process that serves the code is killed,
        # and nobody starts another one.
        self._code = self._python(
            "code-server",
            *("-m", "dagster", "api", "grpc", "-m", CODE_MODULE, "--location-name", "analytics_pipeline"),
            *("--host", LOOPBACK, "--port", str(self._code_port), "--use-python-environment-entry-point"),
        )
        self._code_served_at = time.monotonic() + READY_TIMEOUT_S  # it has so long to load the code
        return self._code

    def _start_daemon(self) -> Managed:
        arguments = ("-m", "dagster._daemon", "run", "-w", str(self._workspace()))
        return self._python("daemon", *arguments, tier=TIER_DRIVER)

    def _start_webserver(self) -> Managed:
        port = self._port("the web page", self._preferred.webserver)
        self.web_url = f"http://{LOOPBACK}:{port}"
        arguments = ("-m", "dagster_webserver", "-w", str(self._workspace()), "--host", LOOPBACK)
        self._restart["webserver"] = lambda: self._python("webserver", *arguments, "--port", str(port))
        return self._restart["webserver"]()

    def _workspace(self) -> Path:
        path = self.dagster_home / "workspace.yaml"
        path.write_text(
            f"load_from:\n  - grpc_server: {{host: {LOOPBACK}, port: {self._code_port}, "
            "location_name: analytics_pipeline}\n",
            encoding="utf-8",
        )
        return path

    def _make_dagster_home(self) -> None:
        self.dagster_home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._dagster_yaml, self.dagster_home / "dagster.yaml")

    def _prepare_dagster(self) -> None:
        """Dagster's tables are made once, before its processes would all make them at once."""
        child = self._python("prepare-dagster", "-m", PREPARE_MODULE)
        child.stopping = True
        code = child.process.wait()
        if code != 0:
            raise EmbeddedServerError(f"preparing Dagster ended with code {code}:\n{child.log_tail()}")
        self.supervisor.stop(child)

    def _python(self, name: str, *arguments: str, tier: int = TIER_CLIENT) -> Managed:
        argv = [sys.executable, *arguments]
        return self.supervisor.start(name, argv, env=self.environment, cwd=self.state_dir, tier=tier)

    def _port(self, what: str, preferred: int, *, quiet: bool = False) -> int:
        choice = choose_port(preferred)
        if choice.moved and not quiet:
            self._say(f"port {preferred} is taken: {what} goes to {choice.port}")
        return choice.port


def forget_connections() -> list[str]:
    """Take addresses and credentials out of this process: a stack of its own must reach its own servers.

    Returns the names of the variables that were set, in order.
    """
    names = sorted(name for name in known_variables() if name.startswith(CONNECTION_PREFIXES))
    return [name for name in names if os.environ.pop(name, None) is not None]


def _says_ready(worker: Managed) -> bool:
    """Celery's own word, after it imported everything and reached its broker."""
    return " ready." in worker.log_file.read_text(encoding="utf-8", errors="replace")


def _answers_http(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
