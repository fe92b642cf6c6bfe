"""A whole stack for the tests that use the pipeline through Dagster: started once, shared by their files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from confluent_kafka import Producer
from dagster import DagsterInstance

from analytics_pipeline.domains import registry_for
from analytics_pipeline.embedded import PreferredPorts, Stack, Supervisor
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings, load_settings
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.dagster_ui import Ui, wait_for
from analytics_pipeline_tests.domains import counters, events, open_domains, states
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment as PipelineEnvironment
from analytics_pipeline_tests.pipeline import reading, send
from analytics_pipeline_tests.quick_gate import use_quick_gates

CHECKOUT = Path(__file__).resolve().parents[2]
TOPIC = "sensors.device.readings"


@dataclass
class Environment:
    """A whole stack, and hands to use it with."""

    stack: Stack
    settings: Settings
    ui: Ui
    producer: Producer
    #: The hour that the next test takes, so that no test stumbles over another's partitions.
    next_hour: datetime = field(default_factory=lambda: hour_of(datetime.now(UTC)) - 1000 * HOUR)

    def fresh_hours(self, count: int) -> list[datetime]:
        """Hours that no other test uses, far enough in the past to run on the backfill queue."""
        hours = [self.next_hour + HOUR * step for step in range(count)]
        self.next_hour += HOUR * (count + 2)
        return hours

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def connect(self) -> Any:
        env = self.stack.environment
        return psycopg2.connect(
            host=env["DB_HOST"],
            port=env["DB_PORT"],
            dbname=env["DB_NAME"],
            user=env["DB_USER"],
            password=env["DB_PASSWORD"],
            options="-c search_path=analytics,analytics_dagster -c timezone=UTC",
        )

    def send_readings(self, hour: datetime, count: int, **more: Any) -> None:
        moments = [hour + timedelta(seconds=3600 * step / count) for step in range(count)]
        send(self.producer, TOPIC, [reading(moment, 20 + step % 7, **more) for step, moment in enumerate(moments)])

    def wait_until_settled(self, hour: datetime, timeout_s: float = 90) -> None:
        """Wait until the drain has the hour, and nothing of it is pending."""
        wait_for(
            lambda: (
                self.query("SELECT 1 FROM partition_state WHERE hour = %s AND asset = 'kpis'", hour)
                and not self.query("SELECT 1 FROM pending_work WHERE hour = %s LIMIT 1", hour)
            ),
            timeout_s,
            f"the pending work of {key_of(hour)}",
        )

    def wait_until_idle(self, timeout_s: float = 90) -> None:
        """Wait until nothing is pending and every run has ended."""
        wait_for(
            lambda: (
                not self.query("SELECT 1 FROM pending_work LIMIT 1")
                and not self.query(
                    "SELECT 1 FROM runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED') LIMIT 1"
                )
            ),
            timeout_s,
            "the end of all work",
        )

    def counts(self, hour: datetime) -> dict[str, int]:
        rows = self.query("SELECT asset, sum(rows)::bigint FROM partition_state WHERE hour = %s GROUP BY 1", hour)
        return dict(rows)


@pytest.fixture
def dagster_instance(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """Dagster as ``dagster.yaml`` sets it up, in the test's own database."""
    shutil.copyfile(CHECKOUT / "dagster.yaml", tmp_path / "dagster.yaml")
    for name, value in {
        "DB_HOST": settings.db_host,
        "DB_PORT": str(settings.db_port),
        "DB_NAME": settings.db_name,
        "DB_USER": settings.db_user,
        "DB_PASSWORD": settings.db_password.get_secret_value(),
    }.items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Servers, code server, daemon, webserver and workers, started once a session."""
    folder = tmp_path_factory.mktemp("stack")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)  # PostgreSQL runs as another user when the tests run as root
    supervisor = Supervisor(folder / "logs")
    first = random.randrange(20_000, 29_000, 50)  # so that two sessions on one machine rarely meet
    ports = PreferredPorts(
        postgres=first, broker=first + 10, valkey=first + 20, webserver=first + 30, code_server=first + 40
    )
    try:
        stack = Stack(supervisor, folder, CHECKOUT / "dagster.yaml", ports=ports)
        stack.start_servers()
        settings = load_settings(
            _env_file=None,
            db_host=stack.postgres.host,
            db_port=stack.postgres.port,
            db_name=stack.environment["DB_NAME"],
            db_user=stack.environment["DB_USER"],
            db_password=stack.environment["DB_PASSWORD"],
            celery_broker_url=stack.environment["CELERY_BROKER_URL"],
        )
        migrate(settings, registry_for(settings).domain_topics)
        KafkaServer(stack.broker.bootstrap_servers, stack.broker).create_topic(TOPIC, 2)
        stack.start_pipeline()
        producer = Producer({"bootstrap.servers": stack.broker.bootstrap_servers, "log_level": 0})
        yield Environment(stack, settings, Ui(stack.web_url), producer)
    finally:
        supervisor.close()


@pytest.fixture
def quick_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations is not what this test is about: see `quick_gate`."""
    use_quick_gates(monkeypatch)


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[PipelineEnvironment]:
    """A database and a topic of one domain for a module, which begins each test with `begin_anew`; modules that need
    other domains have one of their own."""
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS]) as it:
        yield it


@pytest.fixture(scope="module")
def opened_states(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[PipelineEnvironment]:
    """As `opened`: a domain of states beside one of samples."""
    domains, sizes = [states.DOMAIN, PRESS], [300, 900, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, domains, windows=sizes) as it:
        yield it


@pytest.fixture(scope="module")
def opened_counters(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[PipelineEnvironment]:
    """As `opened`: a domain of counters beside one of samples."""
    domains, sizes = [counters.DOMAIN, PRESS], [60, 300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, domains, windows=sizes) as it:
        yield it


@pytest.fixture(scope="module")
def opened_events(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[PipelineEnvironment]:
    """As `opened`: a domain of events beside one of samples, on topics of two partitions."""
    domains, sizes = [events.DOMAIN, PRESS], [60, 300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, domains, windows=sizes, partitions=2) as it:
        yield it
