"""Killed, cut off, out of reach: afterwards every invariant holds without a hand being lifted."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.assets.slice_protocol import SliceProtocol
from analytics_pipeline.embedded import BrokerServer, PostgresServer, Supervisor
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, hour_of
from analytics_pipeline.sources.kafka import BrokerUnreachableError
from analytics_pipeline.storage import batches
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.conftest import TEST_ROLE, DatabaseServer, KafkaServer
from analytics_pipeline_tests.crashing_processes import derive_and_die, drain_and_die
from analytics_pipeline_tests.environments import Environment, free_port, open_environment, run_process
from analytics_pipeline_tests.invariants import assert_invariants
from analytics_pipeline_tests.pipeline import reading

KILLED = -signal.SIGKILL
#: The issue's figure.
OUTAGE_S = 10.0


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    """Batches are small, so that a crash can hit one in the middle."""
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, drain_batch_messages=40) as it:
        yield it


def send_stream(env: Environment, minutes: range, sensors: int = 2) -> None:
    """A reading a minute and sensor, over two partitions, with an outlier and a bad payload here and there."""
    start = hour_of(datetime.now(UTC)) - 3 * HOUR
    for partition in range(2):
        values = [
            reading(
                start + timedelta(minutes=minute, seconds=sensor),
                20 + minute * 7 % 5 + 100 * (minute % 16 == 15),
                sensor_id=f"s-{sensor}-{partition}",
            )
            for minute in minutes
            for sensor in range(sensors)
        ]
        env.send(values, partition)
        env.send([b"bad"], partition, rejected=True)


def finish(env: Environment) -> None:
    """A fresh process continues, as the next tick and the next runs do."""
    env.renew()
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


# ---------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("at_batch", [1, 3])
@pytest.mark.parametrize("point", ["before the write", "between write and commit", "after the commit"])
def test_a_drain_that_is_killed_loses_and_doubles_nothing(env: Environment, point: str, at_batch: int) -> None:
    send_stream(env, range(50))
    env.pipeline.close()
    assert run_process(drain_and_die, env.settings, env.topics, point, at_batch) == KILLED

    committed = at_batch if point == "after the commit" else at_batch - 1
    env.renew()
    assert env.pipeline.count("ingest_batch") == committed
    assert len(env.waiting()) == len(env.sent) - 40 * committed
    env.drain()
    with connection(env.pipeline.engine) as conn:
        reports = batches.batches_after(conn, 0)
    # The sensor's cursor was still 0: what was committed before the crash is reported by the next tick.
    told = sum(hour.raw_rows + hour.dead_letters for report in reports for hour in report.hours)
    assert told == len(env.sent)
    finish(env)


@pytest.mark.parametrize("asset", DERIVED)
def test_a_worker_that_is_killed_inside_an_asset_leaves_it_whole(env: Environment, asset: DerivedName) -> None:
    send_stream(env, range(0, 90))
    env.drain()
    env.pipeline.settle()
    send_stream(env, range(30, 120), sensors=3)  # late, and in part the same identities again
    env.drain()
    before = env.pipeline.snapshot([asset])
    env.pipeline.close()

    assert run_process(derive_and_die, env.settings, env.topics, asset, "before the commit") == KILLED
    env.renew()
    assert env.pipeline.snapshot([asset]) == before
    env.pipeline.close()
    assert run_process(derive_and_die, env.settings, env.topics, asset, "after the commit") == KILLED
    env.renew()
    assert env.pipeline.snapshot([asset]) != before
    finish(env)


# ---------------------------------------------------------------------- PostgreSQL stops


@pytest.fixture
def own_postgres(state_dir: Path, supervisor: Supervisor) -> Iterator[PostgresServer]:
    """A server that this test may crash; always the embedded one, and durable as in production."""
    home = state_dir / "crashing"
    home.mkdir(mode=0o755, exist_ok=True)
    server = PostgresServer(supervisor, {"shared_buffers": "64MB"})
    server.start(home, free_port())
    server.ensure_role(TEST_ROLE, server.password, create_databases=True)
    yield server
    server.stop()


class Interrupted(Exception):
    """Something happened at a place that a test chose."""


def once_before_commit(target: Drain | SliceProtocol, happens: Callable[[], None]) -> None:
    """Lets something happen between write and commit, the first time only."""
    commit = target._commit

    def wrapped(conn: Any) -> None:
        target._commit = commit  # type: ignore[method-assign]
        happens()
        commit(conn)

    target._commit = wrapped  # type: ignore[method-assign]


def test_postgres_may_stop_at_once_during_drain_and_derive(
    own_postgres: PostgresServer, kafka_broker: KafkaServer
) -> None:
    server = DatabaseServer("127.0.0.1", own_postgres.port, TEST_ROLE, own_postgres.password, own_postgres)
    with open_environment(server, kafka_broker.bootstrap_servers) as env:
        send_stream(env, range(60))
        once_before_commit(env.pipeline.drain, own_postgres.crash)
        with pytest.raises(psycopg2.Error):
            env.pipeline.tick()
        with pytest.raises(Exception, match=r"(?i)connect"):  # it is still gone
            env.pipeline.tick()
        own_postgres.restart()
        env.drain()  # the same process continues

        for asset in DERIVED:
            env.pipeline.deriver.derive(asset, hour_of(datetime.now(UTC)) - 3 * HOUR, "incremental", "test")
            send_stream(env, range(60, 62))
            env.drain()
            once_before_commit(env.pipeline.deriver.protocol, own_postgres.crash)
            with pytest.raises(psycopg2.Error):
                env.pipeline.settle()
            own_postgres.restart()
        env.pipeline.settle()
        assert_invariants(env)
        finish(env)


# ---------------------------------------------------------------------- the broker is out of reach


@pytest.fixture
def own_broker(state_dir: Path, supervisor: Supervisor) -> Iterator[BrokerServer]:
    """A broker that this test may freeze; always the embedded one."""
    server = BrokerServer(supervisor)
    server.start(state_dir, free_port())
    yield server
    server.thaw()
    server.stop()


def test_a_broker_out_of_reach_for_ten_seconds_is_said_and_then_read_on(
    own_broker: BrokerServer, postgres_server: DatabaseServer
) -> None:
    with open_environment(postgres_server, own_broker.bootstrap_servers) as env:
        send_stream(env, range(30))
        env.drain()
        send_stream(env, range(30, 60))
        own_broker.freeze()
        frozen_at = time.monotonic()
        ticks = 0
        while time.monotonic() < frozen_at + OUTAGE_S:
            began = time.monotonic()
            with pytest.raises(BrokerUnreachableError, match=own_broker.bootstrap_servers):
                env.pipeline.tick()
            assert time.monotonic() - began < 15, "a tick must not hang: the sensor has 60 s"
            ticks += 1
            env.pipeline.settle()  # what is in the database is computed meanwhile
        assert ticks >= 1
        own_broker.thaw()
        env.drain()  # the same process continues
        env.pipeline.settle()
        assert_invariants(env)


def test_a_broker_that_falls_silent_between_two_reads_is_said_and_then_read_on(
    own_broker: BrokerServer, postgres_server: DatabaseServer
) -> None:
    with open_environment(postgres_server, own_broker.bootstrap_servers) as env:
        send_stream(env, range(30))
        reader = env.pipeline.drain._reader
        assign = reader.assign

        def freeze_before_reading(positions: Any) -> None:
            own_broker.freeze()
            assign(positions)

        reader.assign = freeze_before_reading  # type: ignore[method-assign]
        with pytest.raises(BrokerUnreachableError):
            env.pipeline.tick()
        reader.assign = assign  # type: ignore[method-assign]
        own_broker.thaw()
        env.drain()
        env.pipeline.settle()
        assert_invariants(env)


def test_a_process_that_ended_in_the_middle_leaves_no_lock_behind(env: Environment) -> None:
    send_stream(env, range(20))
    env.drain()
    env.pipeline.close()
    hour = hour_of(datetime.now(UTC)) - 3 * HOUR
    asset = "normalized_measurements"
    assert run_process(derive_and_die, env.settings, env.topics, asset, "before the commit") == KILLED
    began = time.monotonic()
    outcome = Deriver(env.settings, engine_for(env.settings), env.pipeline.registry).derive(
        asset, hour, "incremental", "test"
    )
    assert outcome.rows == 80
    assert time.monotonic() - began < 10
    finish(env)
