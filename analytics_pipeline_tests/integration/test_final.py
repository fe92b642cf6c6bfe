"""``final`` is said of what nothing can change any more; and what is not computed is shown, not asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours, live_items
from analytics_pipeline.storage.status import read_status
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, strict, topic_of
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.faulty import inject, mend
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 6 * HOUR


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, strict.DOMAIN]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    send(opened, START, START + 2 * HOUR)
    opened.pipeline.settle()
    assert states(opened, START) == {"final"}
    return opened


def send(env: Environment, *moments: datetime, value: float = 20.0, domain: str = "strict") -> None:
    """Its Kafka time moves the watermark on."""
    stamp = int((START + 4 * HOUR).timestamp() * 1000)
    env.send([reading(moment, value) for moment in moments], topic=topic_of(env, domain), timestamp=stamp)
    env.drain()


def states(env: Environment, hour: datetime) -> set[str]:
    rows = env.pipeline.query(
        "SELECT state FROM analytics_agg WHERE bucket_start >= %s AND bucket_end <= %s", hour, hour + HOUR
    )
    return {row[0] for row in rows}


def test_nothing_of_an_hour_is_final_while_what_was_drained_waits(env: Environment) -> None:
    send(env, START + timedelta(minutes=30), value=21.0)
    assert states(env, START) == {"provisional"}
    env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    assert states(env, START) == {"provisional"}
    assert states(env, START + 2 * HOUR) <= {"final", "provisional"}
    env.pipeline.settle()
    assert "provisional" not in states(env, START)


@pytest.mark.parametrize("asset", DERIVED[:2])
def test_nothing_of_an_hour_is_final_after_its_computation_failed(env: Environment, asset: str) -> None:
    send(env, START + timedelta(minutes=30), value=21.0)
    inject(env.pipeline.deriver, asset, "strict", "compute")
    for name in DERIVED:
        env.pipeline.deriver.derive_hours(name, [START], "incremental", "test")
    mend(env.pipeline.deriver)
    assert states(env, START) == {"provisional"}


def test_nothing_of_an_hour_is_final_while_a_series_of_it_is_withheld(env: Environment) -> None:
    send(env, START + timedelta(minutes=30), value=5000.0)
    env.pipeline.settle()
    assert states(env, START) == {"provisional"}


def test_another_domain_that_waits_keeps_nothing_from_being_final(env: Environment) -> None:
    send(env, START + timedelta(minutes=30), domain="press")
    assert states(env, START) == {"final"}


def test_work_of_a_disabled_domain_or_an_early_hour_is_shown_and_not_asked_for(env: Environment) -> None:
    send(env, START, domain="press")
    with connection(env.pipeline.engine) as conn:
        assert [one.hour for one in actionable_hours(conn, domains=["press"])] == [START]
        assert actionable_hours(conn, domains=["strict"]) == []
        assert live_items(conn, START, domains=["strict"]) == 0
        assert actionable_hours(conn, since=START + HOUR) == []
        assert live_items(conn, START + HOUR) == 0
    with connection(env.pipeline.engine) as conn:
        assert [one.asset for one in read_status(conn).pending] == ["normalized_measurements"]
