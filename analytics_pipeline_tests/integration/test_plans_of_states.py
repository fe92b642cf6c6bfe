"""Plans that need no statistics, of what is stored of events and states: the statements of the derive path, of the
state clock and of retention read the hours that they are about, of one domain, and no others.

As in `test_plans`: on a database as the migration left it, never analyzed, with the rows of ten domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.records import HOUR, Mode
from analytics_pipeline.storage import retention, states_at_floor
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import Invalidation, Scope, add
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import open_domains, states
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.explained import Plans, explained
from analytics_pipeline_tests.integration.test_plans import (
    HOUR_ASKED,
    HOURS,
    NO_AUTOVACUUM,
    START,
    execute,
    give_to_others,
    roots,
)
from analytics_pipeline_tests.quick_gate import use_quick_gates

PLANT = replace(states.EVERYTHING, samples=None, counters=None)
DOMAINS = [replace(PLANT, name=f"plant{n}", topics=(f"plant{n}",)) for n in range(10)]
MACHINES, CHANGES = 100, 4

#: By table, the columns that a condition on an index may name: all of one of these.
OF_HOUR = {
    "normalized_events": [("domain_id", "event_time")],
    "event_identities": [("domain_id", "event_time"), ("domain_id", "identity")],
    "state_changes": [("domain_id", "event_time")],
    "event_rollups": [("domain_id", "bucket_start")],
    "state_durations": [("domain_id", "bucket_start")],
    "carried_states": [("domain_id", "bucket_start")],
    "state_clock": [("domain_id",)],
}
#: Retention is about all domains.
BELOW_FLOOR = {
    "normalized_events": [("event_time <",)],
    "event_identities": [("event_time <",), ("domain_id", "identity")],
    "state_changes": [("event_time <",)],
    "event_rollups": [("bucket_start <",)],
    "state_durations": [("bucket_start <",)],
    "carried_states": [("bucket_start <",)],
    "state_clock": [("domain_id",)],
}
FILLED = (
    "measurement_series",
    "raw_events",
    *(name for name in OF_HOUR if name != "state_clock"),
)

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with (
        pytest.MonkeyPatch.context() as patch,
        open_domains(postgres_server, kafka_broker.bootstrap_servers, DOMAINS, windows=[900, 3600]) as it,
    ):
        use_quick_gates(patch)
        execute(it, NO_AUTOVACUUM)
        it.send(
            states.message(START + HOUR / CHANGES * step, "on", f"m-{machine}", id=f"{step} {machine}")
            for step in range(HOURS * CHANGES)
            for machine in range(MACHINES)
        )
        it.drain()
        with connection(it.pipeline.engine) as conn:
            state_clock.advance(conn, {"plant0": 1})
        it.pipeline.settle()
        give_to_others(it, FILLED, MACHINES)
        execute(it, f"INSERT INTO state_clock SELECT n, '{START + HOUR * HOURS}' FROM generate_series(2, 400) n")
        execute(it, NO_AUTOVACUUM)
        assert it.pipeline.query("SELECT count(DISTINCT domain_id) FROM carried_states") == [(10,)]
        assert it.pipeline.query("SELECT count(*) FROM pg_stats WHERE tablename = ANY(%s)", [*FILLED]) == [(0,)]
        yield it


def assert_read(env: Environment, plans: Plans, ways: dict[str, list[tuple[str, ...]]], tables: set[str]) -> None:
    """These tables were read, each scan of one by an index and by what its condition may name."""
    of_chunk = roots(env)
    wrong, read = [], set()
    for scan in plans.scans:
        table = of_chunk.get(scan.table, scan.table)
        if table in ways:
            read.add(table)
            if scan.node == "Seq Scan" or not any(all(name in scan.by for name in way) for way in ways[table]):
                wrong.append(f"{scan.node} on {table} by ({scan.by}): {scan.statement[:300]}")
    assert not wrong, "\n".join(wrong)
    assert read >= tables


@pytest.mark.parametrize("mode", ["full", "incremental"])
@pytest.mark.parametrize(
    ("asset", "tables"),
    [
        ("normalized_measurements", {"normalized_events", "event_identities", "state_changes"}),
        (
            "window_aggregates",
            {
                "normalized_events",
                "state_changes",
                "event_rollups",
                "state_durations",
                "carried_states",
                "state_clock",
            },
        ),
    ],
)
def test_an_hour_of_events_and_states_is_computed_without_statistics(
    env: Environment, asset: str, tables: set[str], mode: Mode
) -> None:
    if mode == "incremental":
        with connection(env.pipeline.engine) as conn:
            scopes = [Scope(series=(1,), states=True), Scope(spans=((0, 900),))]
            for scope in scopes if asset == "window_aggregates" else [Scope(batches=(1,))]:
                add(conn, [Invalidation(asset=asset, domain_id=1, hour=HOUR_ASKED, reason="test", scope=scope)])  # type: ignore[arg-type]
            conn.commit()
    else:
        _spoil(env)
    with explained(env.pipeline.engine) as plans:
        done = env.pipeline.deriver.derive_hours(asset, [HOUR_ASKED], mode, "test", domains=["plant0"])  # type: ignore[arg-type]
    assert not done.errors
    assert_read(env, plans, OF_HOUR, tables)


def _spoil(env: Environment) -> None:
    """Rows that do not belong there, which the computation takes away."""
    for table, column, time in (
        ("normalized_events", "identity", "event_time"),
        ("event_identities", "identity", "event_time"),
        ("event_rollups", "event_type", "bucket_start"),
        ("state_durations", "state", "bucket_start"),
    ):
        execute(
            env,
            f"INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('{column}', 'gone'))).* "
            f"FROM {table} t WHERE domain_id = 1 AND {time} >= '{HOUR_ASKED}' AND {time} < '{HOUR_ASKED + HOUR}' "
            "ON CONFLICT DO NOTHING",
        )


def test_the_state_clock_is_advanced_without_statistics(env: Environment) -> None:
    execute(env, f"UPDATE state_clock SET until = '{START + HOUR * (HOURS - 2)}' WHERE domain_id = 1")
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        assert state_clock.advance(conn, {"plant0": 1}) == 2
    assert_read(env, plans, OF_HOUR, {"state_clock", "state_changes", "carried_states"})
    execute(env, "DELETE FROM state_clock WHERE domain_id = 1")
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        assert state_clock.advance(conn, {"plant0": 1})
    ways = OF_HOUR | {"state_changes": [("domain_id",)], "carried_states": [("domain_id",)]}  # since when at all
    assert_read(env, plans, ways, {"state_clock", "state_changes", "carried_states"})
    env.pipeline.settle()


def test_states_are_handed_on_without_statistics(env: Environment) -> None:
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        states_at_floor.hand_on(conn, START + HOUR)
    assert_read(env, plans, BELOW_FLOOR, {"state_changes", "carried_states"})


def test_retention_deletes_events_and_states_without_statistics(env: Environment) -> None:
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        retention.expire(conn, [one.name for one in DOMAINS], START + HOUR + timedelta(days=1), 1)
    # A chunk that ends where the hour does is dropped, and nothing of it is looked for.
    tables = {"event_identities"} if roots(env) else set(BELOW_FLOOR) - {"state_clock"}
    assert_read(env, plans, BELOW_FLOOR, tables)
