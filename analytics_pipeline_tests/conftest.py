"""What every test may ask for: real servers, a fresh database, a topic of its own.

The servers are the embedded ones, started once a session. The same suite runs on other servers when these are
set (``.ci/kafka.sh`` and ``.ci/timescaledb.sh`` start such servers and print the exports):

* ``TEST_DB_HOST``, ``TEST_DB_PORT``, ``TEST_DB_USER``, ``TEST_DB_PASSWORD``: a PostgreSQL or TimescaleDB, and
  a role that may create databases and roles.
* ``TEST_KAFKA_BROKERS``: a Kafka, as ``host:port``.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine

from analytics_pipeline.domains import Registry, registry_for
from analytics_pipeline.embedded import (
    BrokerServer,
    PostgresServer,
    Supervisor,
    ValkeyServer,
    choose_port,
)
from analytics_pipeline.settings import Settings, load_settings
from analytics_pipeline.storage.engine import engine_for
from analytics_pipeline.storage.migrate import migrate

TEST_ROLE = "analytics_test"

# How long an example takes says how busy the machine is: three tests run at a time.
hypothesis_settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("busy machine")

#: A crash test kills processes, never the machine, so that the disk may lag behind: a suite makes and drops
#: hundreds of databases.
TEST_POSTGRES_SETTINGS = {"fsync": "off", "shared_buffers": "256MB", "min_wal_size": "80MB"}

DROP_TIMEOUT_S = 20.0


def quiet(bootstrap_servers: str) -> dict[str, str | int]:
    """A Kafka client's settings. Brokers that come and go are part of the tests: librdkafka's lines about it would
    drown what a test has to say; errors come back from calls."""
    return {"bootstrap.servers": bootstrap_servers, "log_level": 0}


@dataclass(frozen=True)
class DatabaseServer:
    """Where the tests' database server is. ``embedded`` is None when it was given from outside."""

    host: str
    port: int
    user: str
    password: str
    embedded: PostgresServer | None

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction, as the role that owns the tests' databases."""
        connection = psycopg2.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, dbname=database
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def drop(self, database: str) -> None:
        """Drop a database and end every session in it. A server's own background workers end by themselves."""
        deadline = time.monotonic() + DROP_TIMEOUT_S
        while True:
            try:
                self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
                return
            except psycopg2.errors.InsufficientPrivilege:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)


@dataclass(frozen=True)
class KafkaServer:
    """Where the tests' broker is. ``embedded`` is None when it was given from outside."""

    bootstrap_servers: str
    embedded: BrokerServer | None

    def admin(self) -> AdminClient:
        return AdminClient(quiet(self.bootstrap_servers))

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic and return when it exists."""
        admin = self.admin()  # held: its futures fail when it is collected
        for future in admin.create_topics([NewTopic(name, partitions, 1)]).values():
            future.result(timeout=20)


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """A folder for the servers of this session, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="analytics-pipeline-tests-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when the tests run as root
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def supervisor(state_dir: Path) -> Iterator[Supervisor]:
    """Ends every process that a test started through it."""
    it = Supervisor(state_dir / "logs")
    yield it
    it.close()


def _any_port() -> int:
    """A free port from a random start, so that two sessions on one machine rarely ask for the same."""
    return choose_port(random.randrange(20_000, 30_000)).port


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> DatabaseServer:
    """The database server of the session."""
    host = os.environ.get("TEST_DB_HOST")
    if host:
        user, password = os.environ.get("TEST_DB_USER", "postgres"), os.environ.get("TEST_DB_PASSWORD", "")
        return DatabaseServer(host, int(os.environ.get("TEST_DB_PORT", "5432")), user, password, None)
    server = PostgresServer(request.getfixturevalue("supervisor"), TEST_POSTGRES_SETTINGS)
    server.start(request.getfixturevalue("state_dir"), _any_port())
    server.ensure_role(TEST_ROLE, server.password, create_databases=True)
    return DatabaseServer(server.host, server.port, TEST_ROLE, server.password, server)


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest) -> KafkaServer:
    """The Kafka of the session."""
    brokers = os.environ.get("TEST_KAFKA_BROKERS")
    if brokers:
        return KafkaServer(brokers, None)
    server = BrokerServer(request.getfixturevalue("supervisor"))
    server.start(request.getfixturevalue("state_dir"), _any_port())
    return KafkaServer(server.bootstrap_servers, server)


@pytest.fixture(scope="session")
def valkey_server(supervisor: Supervisor, state_dir: Path) -> ValkeyServer:
    """The Valkey of the session; always the embedded one."""
    server = ValkeyServer(supervisor)
    server.start(state_dir, _any_port())
    return server


@pytest.fixture
def database(postgres_server: DatabaseServer) -> Iterator[str]:
    """The name of an empty database of this test's own."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield name
    postgres_server.drop(name)


@pytest.fixture
def make_topic(kafka_broker: KafkaServer) -> Callable[..., str]:
    """Creates a topic with a name that no other test has: ``make_topic(partitions=2)``."""

    def make(partitions: int = 2, prefix: str = "test.readings") -> str:
        name = f"{prefix}.{uuid.uuid4().hex[:12]}"
        kafka_broker.create_topic(name, partitions)
        return name

    return make


@pytest.fixture
def topic(make_topic: Callable[..., str]) -> str:
    """A topic of two partitions of this test's own; ``registry`` maps it to the sensor domain."""
    return make_topic()


@pytest.fixture
def bare_settings(postgres_server: DatabaseServer, database: str) -> Iterator[Settings]:
    """Settings of an empty database, without any table; at its Kafka address nobody listens."""
    values = load_settings(
        _env_file=None,
        db_host=postgres_server.host,
        db_port=postgres_server.port,
        db_user=postgres_server.user,
        db_password=postgres_server.password,
        db_name=database,
        kafka_brokers="127.0.0.1:1",
    )
    yield values
    engine_for(values).dispose()


@pytest.fixture
def database_settings(bare_settings: Settings) -> Settings:
    """Settings of a migrated database, for tests that need no Kafka."""
    migrate(bare_settings)
    return bare_settings


@pytest.fixture
def settings(bare_settings: Settings, kafka_broker: KafkaServer, topic: str) -> Iterator[Settings]:
    """Settings of a migrated database and of the test's own topic."""
    values = bare_settings.model_copy(
        update={"kafka_brokers": kafka_broker.bootstrap_servers, "kafka_topics": [topic]}
    )
    migrate(values, {"sensor": [topic]})
    yield values
    engine_for(values).dispose()


@pytest.fixture
def registry(settings: Settings, topic: str) -> Registry:
    """The domains as they are, with the sensor domain on the test's own topic."""
    return registry_for(settings).with_topics({topic: "sensor"})


@pytest.fixture
def engine(settings: Settings) -> Engine:
    """The engine of this process for ``settings``."""
    return engine_for(settings)


@pytest.fixture
def producer(kafka_broker: KafkaServer) -> Iterator[Producer]:
    """A producer; everything is flushed when the test ends."""
    it = Producer(quiet(kafka_broker.bootstrap_servers) | {"message.max.bytes": 20_971_520})
    yield it
    it.flush(10)
