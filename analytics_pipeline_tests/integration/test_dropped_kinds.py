"""A domain whose code yields a kind of rows no longer: a rebuild of an hour removes them from every table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.records import DERIVED, HOUR, HOUR_S
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, states, with_domain
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_states import ALL
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_settled

pytestmark = pytest.mark.usefixtures("quick_gates")

#: Rebuilt; the window of two hours that holds it begins in the hour before.
REBUILT = ALL[1]
#: What is computed of each kind.
TABLES = {
    "samples": ("normalized_measurements", "window_aggregates", "anomalies", "kpis"),
    "events": ("normalized_events", "event_identities", "event_rollups"),
    "states": ("state_changes", "state_durations", "carried_states"),
    "counters": ("counter_readings", "counter_increments"),
}


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    sizes = [300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [states.EVERYTHING], windows=sizes) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    opened.pipeline.query("SELECT 1")
    with connection(opened.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO analytics_spec_limits (metric, usl) VALUES ('gauge', 100)")
        conn.commit()
    opened.send(
        states.message(hour + timedelta(minutes=10 * number), "on", gauge=99.0 + number, id=f"{hour:%H}-{number}")
        for hour in ALL[:3]
        for number in range(6)
    )
    opened.send([states.heartbeat(ALL[3])])
    opened.drain()
    opened.pipeline.settle()
    with connection(opened.pipeline.engine) as conn:
        state_clock.advance(conn, DomainNumbers(opened.pipeline.engine).numbers(["everything"]))
    opened.pipeline.settle()
    return opened


def held(env: Environment) -> dict[str, int]:
    """How many rows each table has in the hour that is rebuilt."""
    times = {table.name: table.time_column for asset in ASSETS for table in asset.tables}
    found = {}
    for name in [table for tables in TABLES.values() for table in tables]:
        query = f"SELECT count(*) FROM {name} WHERE {times[name]} >= %s AND {times[name]} < %s"
        ((found[name],),) = env.pipeline.query(query, REBUILT, REBUILT + HOUR)
    return found


@pytest.mark.parametrize("assets", [DERIVED, DERIVED[:1]], ids=["each asset", "the first asset"])
@pytest.mark.parametrize("dropped", TABLES)
def test_a_rebuild_leaves_no_row_of_a_kind_that_is_yielded_no_longer(
    env: Environment, dropped: str, assets: tuple[str, ...]
) -> None:
    before = held(env)
    assert all(before.values()), before
    longer = longer_windows(env)
    changed = with_domain(env, replace(states.EVERYTHING, **{dropped: None}))  # type: ignore[arg-type]
    for asset in assets:
        assert not changed.deriver.derive_hours(asset, [REBUILT], "full", "test").errors  # type: ignore[arg-type]
    changed.settle()
    assert held(env) == {name: 0 if name in TABLES[dropped] else rows for name, rows in before.items()}
    assert longer_windows(env) == {
        kind: rows / 2 if kind == dropped else rows for kind, rows in longer.items()
    }, "the longer window that held the hour holds it no longer"
    assert_settled(changed)
    assert_content_is_counted(changed)
    changed.close()


def longer_windows(env: Environment) -> dict[str, float]:
    """What the window of two hours that begins in the hour before holds of each kind."""
    found = {}
    for kind, table, column in (
        ("samples", "window_aggregates", "count_n"),
        ("events", "event_rollups", "count_n"),
        ("states", "state_durations", "duration_us"),
        ("counters", "counter_increments", "readings"),
    ):
        query = f"SELECT sum({column})::float8 FROM {table} WHERE window_s = %s AND bucket_start = %s"
        ((found[kind],),) = env.pipeline.query(query, 2 * HOUR_S, ALL[0])
    return found
