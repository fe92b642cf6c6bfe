"""The README's commands for one's own servers, taken from the README: a reading becomes KPIs."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg2
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from analytics_pipeline.embedded import ValkeyServer, choose_port
from analytics_pipeline.settings import known_variables
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.pipeline import reading, send

CHECKOUT = Path(__file__).resolve().parents[2]
TOPIC = "sensors.device.readings"
READY_TIMEOUT_S, FLOW_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 90.0, 15.0

_KPI = """
SELECT value FROM analytics.analytics_kpi WHERE machine_id = 'own-servers' AND kpi = 'messages' AND value > 0
"""


def readme_commands() -> list[str]:
    """The lines of the code block, without their comments."""
    section = (CHECKOUT / "README.md").read_text().split("## Running it on your own servers")[1]
    block = section.split("```")[1]
    return [line.split("  #")[0].strip() for line in block.strip().splitlines()]


@pytest.fixture
def folder(
    tmp_path: Path,
    postgres_server: DatabaseServer,
    database: str,
    kafka_broker: KafkaServer,
    valkey_server: ValkeyServer,
) -> Path:
    """A configured checkout: .env.example with the addresses filled in, and Dagster's two files."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    filled = {
        "DB_HOST": postgres_server.host,
        "DB_PORT": str(postgres_server.port),
        "DB_NAME": database,
        "DB_USER": postgres_server.user,
        "DB_PASSWORD": postgres_server.password,
        "KAFKA_BROKERS": kafka_broker.bootstrap_servers,
        "CELERY_BROKER_URL": valkey_server.url(4),
        "CELERY_RESULT_BACKEND": valkey_server.url(5),
    }
    text = (CHECKOUT / ".env.example").read_text()
    for name, value in filled.items():
        text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert found == 1, name
    (tmp_path / ".env").write_text(text)
    try:
        kafka_broker.create_topic(TOPIC, 2)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """That of a fresh terminal after ``. .venv/bin/activate``: nothing of ours, and no DAGSTER_HOME."""
    ours = {*known_variables(), "DAGSTER_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def running(command: str, folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The command until the end of the block, with all that it started; yields the file with what it says."""
    out_file = folder / f"{re.sub(r'[^a-z]+', '-', command)[-40:]}.out"
    with out_file.open("wb") as out:
        process = subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        yield out_file
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        for one in left:
            one.kill()
        process.wait(STOP_TIMEOUT_S)


def wait_until_said(words: str, out_file: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while words not in out_file.read_text():
        assert time.monotonic() < deadline, out_file.read_text()
        time.sleep(0.2)


@pytest.mark.timeout(READY_TIMEOUT_S + FLOW_TIMEOUT_S + 4 * STOP_TIMEOUT_S)
def test_the_commands_of_the_readme_make_kpis_of_a_reading(
    folder: Path,
    environment: dict[str, str],
    postgres_server: DatabaseServer,
    database: str,
    producer: Producer,
) -> None:
    first, migrate, doctor, dev, live, backfill = readme_commands()
    assert first.startswith("make venv")
    for command in (migrate, doctor):
        done = subprocess.run(
            command.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    home = {"DAGSTER_HOME": str(folder)}  # as the first line says; the workers' terminals may lack it
    port = choose_port(random.randrange(20_000, 30_000)).port
    with (
        running(live, folder, environment) as live_out,
        running(backfill, folder, environment) as backfill_out,
        running(f"{dev} --port {port}", folder, {**environment, **home}) as dev_out,
    ):
        wait_until_said("Serving dagster-webserver", dev_out)
        send(producer, TOPIC, [reading(datetime.now(UTC), machine_id="own-servers")])
        wait_for_kpi(postgres_server, database, dev_out)
        for queue, out_file in (("live", live_out), ("backfill", backfill_out)):
            assert f".> {queue} " in out_file.read_text()
            assert "Traceback" not in out_file.read_text()


def wait_for_kpi(server: DatabaseServer, database: str, dev_out: Path) -> None:
    connection = psycopg2.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, dbname=database
    )
    connection.autocommit = True
    deadline = time.monotonic() + FLOW_TIMEOUT_S
    try:
        with connection.cursor() as cursor:
            cursor.execute(_KPI)
            while cursor.fetchall() != [(1.0,)]:
                assert time.monotonic() < deadline, dev_out.read_text()[-5000:]
                time.sleep(0.2)
                cursor.execute(_KPI)
    finally:
        connection.close()
