"""The servers that a benchmark runs against, and a fresh database and broker for each measurement.

Two stacks: ``embedded`` (PostgreSQL from pip) and ``timescaledb`` (the server that TEST_DB_* name, or the one
that .ci/timescaledb.sh starts). The broker is the embedded one for both, so that only the database differs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
from pydantic import SecretStr

from analytics_pipeline.embedded import BrokerServer, PostgresServer, Supervisor, choose_port
from analytics_pipeline.settings import Settings, load_settings
from benchmarks.kafka import create_topic

ROOT = Path(__file__).resolve().parents[1]
SERVERS = ("embedded", "timescaledb")
#: Where the search for free ports begins.
POSTGRES_PORT, BROKER_PORT = 27432, 27092
DROP_TIMEOUT_S = 30.0
TIMESCALEDB_SCRIPT = ROOT / ".ci" / "timescaledb.sh"
TEST_VARIABLES = ("TEST_DB_HOST", "TEST_DB_PORT", "TEST_DB_USER", "TEST_DB_PASSWORD")


class ServerMissingError(Exception):
    """The stack cannot be had here; says why."""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on which databases may be created."""

    host: str
    port: int
    user: str
    password: str

    def dsn(self, database: str) -> dict[str, Any]:
        """What ``psycopg2.connect`` takes."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": database,
        }


class Stack:
    """One running stack. Make it with ``running``."""

    def __init__(self, name: str, server: Server, supervisor: Supervisor, state_dir: Path) -> None:
        self.name = name
        self.server = server
        self.supervisor = supervisor
        self.state_dir = state_dir

    @contextmanager
    def broker(self) -> Iterator[str]:
        """An empty broker with the topic; its address. Everything in it is gone afterwards."""
        server = BrokerServer(self.supervisor)
        server.start(self.state_dir, choose_port(BROKER_PORT).port)
        try:
            create_topic(server.bootstrap_servers)
            yield server.bootstrap_servers
        finally:
            server.stop()

    @contextmanager
    def database(self, name: str = "benchmark") -> Iterator[dict[str, Any]]:
        """An empty database (with TimescaleDB where the server has it); what ``psycopg2.connect`` takes."""
        self._drop(name)
        self._execute("postgres", f"CREATE DATABASE {name}")
        try:
            if self.name == "timescaledb":
                self._execute(name, "CREATE EXTENSION IF NOT EXISTS timescaledb")
            self.checkpoint()
            yield self.server.dsn(name)
        finally:
            self._drop(name)

    def settings(self, database: dict[str, Any], brokers: str, **more: Any) -> Settings:
        """The pipeline's settings for that database and broker, whatever the environment says."""
        return load_settings(
            _env_file=None,
            db_host=database["host"],
            db_port=database["port"],
            db_user=database["user"],
            db_password=SecretStr(database["password"]),
            db_name=database["dbname"],
            kafka_brokers=brokers,
            # Measured is all that the events ask for, in one go.
            **{"windows_lag_s": 0, **more},
        )

    def checkpoint(self) -> None:
        """Begin each measurement with nothing left to write from the one before."""
        self._execute("postgres", "CHECKPOINT")

    def version(self) -> str:
        """What the server says that it is."""
        with self.database() as database, psycopg2.connect(**database) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('server_version')")
                text = f"PostgreSQL {cursor.fetchone()[0].split()[0]}"
                cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
                extension = cursor.fetchone()
            connection.commit()
        return f"{text}, TimescaleDB {extension[0]} (Apache licence)" if extension else text

    def _drop(self, name: str) -> None:
        """Drop a database and every session in it, but for TimescaleDB's own, which end by themselves."""
        deadline = time.monotonic() + DROP_TIMEOUT_S
        while True:
            try:
                return self._execute("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            except psycopg2.errors.InsufficientPrivilege:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def _execute(self, database: str, *statements: str) -> None:
        connection = psycopg2.connect(**self.server.dsn(database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()


@contextmanager
def running(name: str, state_dir: Path) -> Iterator[Stack]:
    """Start the stack's servers in ``state_dir`` and stop those that were started.

    Raises:
        ServerMissingError: TimescaleDB cannot be had on this machine.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(state_dir / "log")
    try:
        if name == "timescaledb":
            server = _timescaledb()
        else:
            postgres = PostgresServer(supervisor)
            postgres.start(state_dir, choose_port(POSTGRES_PORT).port)
            server = Server(postgres.host, postgres.port, postgres.user, postgres.password)
        yield Stack(name, server, supervisor, state_dir)
    finally:
        supervisor.close()


def _timescaledb() -> Server:
    values = {name: os.environ.get(name, "") for name in TEST_VARIABLES}
    if not all(values.values()):
        done = subprocess.run([str(TIMESCALEDB_SCRIPT), "start"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise ServerMissingError(
                f".ci/timescaledb.sh start failed (see above): name a server in {', '.join(TEST_VARIABLES)}"
            )
        values = dict(word.split("=", 1) for word in shlex.split(done.stdout) if "=" in word)
    host, port, user, password = (values[name] for name in TEST_VARIABLES)
    return Server(host, int(port), user, password)
