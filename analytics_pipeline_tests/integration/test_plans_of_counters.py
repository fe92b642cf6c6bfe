"""Plans that need no statistics, of what is stored of counters: one series' last window before a time, and the first
one after it, are found by one descent of an index each, in however long a history.

As in `test_plans`: on a database as the migration left it, never analyzed, with the rows of ten domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from analytics_pipeline.assets.windows import counter_lookups
from analytics_pipeline.records import HOUR, Mode, to_us
from analytics_pipeline.storage import readings_at_floor, retention
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import Invalidation, Scope, add
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import counters, open_domains
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.explained import Plans, explained
from analytics_pipeline_tests.integration.test_plans import (
    HOUR_ASKED,
    HOURS,
    NO_AUTOVACUUM,
    START,
    execute,
    give_to_others,
)
from analytics_pipeline_tests.integration.test_plans_of_states import assert_read
from analytics_pipeline_tests.quick_gate import use_quick_gates

DOMAINS = [replace(counters.DOMAIN, name=f"hall{n}", topics=(f"hall{n}",)) for n in range(10)]
LINES, COUNTS = 100, 4

#: By table, the columns that a condition on an index may name: all of one of these.
OF_HOUR = {
    "counter_readings": [("domain_id", "event_time")],
    "counter_increments": [("domain_id", "window_s", "bucket_start")],
    "carried_readings": [("domain_id", "series_id")],
    "counter_floor": [("domain_id",)],
}
BY_SERIES = {"counter_increments": [("domain_id", "window_s", "series_id = asked.series_id", "bucket_start")]}
BELOW_FLOOR = {
    "counter_readings": [("event_time <",)],
    "counter_increments": [("bucket_start <",), ("domain_id", "window_s", "series_id", "bucket_start >=")],
    "carried_readings": [("domain_id", "series_id")],
    "counter_floor": [("domain_id",)],
}
FILLED = ("measurement_series", "raw_events", *OF_HOUR)

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
            counters.message(START + HOUR / COUNTS * step, 7 * step, f"l-{line}", "coins")
            for step in range(HOURS * COUNTS)
            for line in range(LINES)
        )
        it.drain()
        it.pipeline.settle()
        # Something was carried once, and every domain has a floor.
        execute(it, "INSERT INTO carried_readings SELECT DISTINCT 1, series_id, '2020-01-01Z'::timestamptz, 3 "
                    "FROM counter_readings")  # fmt: skip
        execute(it, "INSERT INTO counter_floor SELECT 1, '2020-01-02Z'")
        give_to_others(it, FILLED, LINES)
        execute(it, "INSERT INTO counter_floor SELECT n, '2020-01-02Z' FROM generate_series(11, 400) n")
        execute(it, NO_AUTOVACUUM)
        assert it.pipeline.query("SELECT count(DISTINCT domain_id) FROM counter_increments") == [(10,)]
        assert it.pipeline.query("SELECT count(*) FROM pg_stats WHERE tablename = ANY(%s)", [*FILLED]) == [(0,)]
        yield it


@pytest.mark.parametrize("mode", ["full", "incremental"])
@pytest.mark.parametrize(
    ("asset", "tables"),
    [
        ("normalized_measurements", {"counter_readings"}),
        ("window_aggregates", {"counter_readings", "counter_increments", "counter_floor"}),
    ],
)
def test_an_hour_of_counters_is_computed_without_statistics(
    env: Environment, asset: str, tables: set[str], mode: Mode
) -> None:
    if mode == "incremental":
        with connection(env.pipeline.engine) as conn:
            scopes = [Scope(series=(1,), spans=((0, 900),))] if asset == "window_aggregates" else [Scope(batches=(1,))]
            for scope in scopes:
                add(conn, [Invalidation(asset=asset, domain_id=1, hour=HOUR_ASKED, reason="test", scope=scope)])  # type: ignore[arg-type]
            conn.commit()
    else:
        execute(env, f"UPDATE counter_increments SET last_reading = 0 WHERE domain_id = 1 AND series_id < 50 "
                     f"AND bucket_start >= '{HOUR_ASKED}' AND bucket_start < '{HOUR_ASKED + HOUR}'")  # fmt: skip
    with explained(env.pipeline.engine) as plans:
        done = env.pipeline.deriver.derive_hours(asset, [HOUR_ASKED], mode, "test", domains=["hall0"])  # type: ignore[arg-type]
    assert not done.errors
    assert_read(env, plans, OF_HOUR, tables)
    env.pipeline.settle()


@pytest.mark.parametrize("series", [1, LINES])
def test_what_stands_beside_a_time_is_looked_up_by_series(env: Environment, series: int) -> None:
    asked = pl.DataFrame({"series_id": range(1, series + 1), "moment_us": [to_us(HOUR_ASKED)] * series})
    for lookup in (counter_lookups.last_before, counter_lookups.first_after):
        with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
            assert lookup(conn, 1, 900, asked).height == series
        assert_read(env, plans, OF_HOUR | BY_SERIES, {"counter_increments"})
        assert_by_series(plans)


def test_what_was_carried_is_looked_up_by_series(env: Environment) -> None:
    asked = pl.DataFrame({"series_id": range(1, LINES + 1), "moment_us": [to_us(START)] * LINES})
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        assert set(counter_lookups.last_before(conn, 1, 900, asked)["last_reading"]) == {3}
    assert_read(env, plans, OF_HOUR | BY_SERIES, {"counter_increments", "carried_readings", "counter_floor"})
    assert_by_series(plans)


def assert_by_series(plans: Plans) -> None:
    """By the index that leads with the series: the key has the same columns, and would read all that lies between."""
    used = {scan.index for scan in plans.scans if scan.index and "LATERAL" in scan.statement}
    assert used, "nothing was looked up"
    assert all(index.endswith("counter_increments_series") for index in used), used


@pytest.mark.parametrize("pending", [False, True])
def test_readings_are_carried_and_deleted_without_statistics(env: Environment, *, pending: bool) -> None:
    floor = START + HOUR * (2 if pending else 1)
    if pending:
        with connection(env.pipeline.engine) as conn:
            add(conn, [Invalidation(asset="window_aggregates", domain_id=1, hour=START + HOUR, reason="test")])
            conn.commit()
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        readings_at_floor.carry(conn, floor)
    assert_read(env, plans, BELOW_FLOOR, {"counter_readings", "counter_increments"})
    with explained(env.pipeline.engine) as plans, connection(env.pipeline.engine) as conn:
        retention.expire(conn, [one.name for one in DOMAINS], floor + timedelta(days=1), 1)
    assert_read(env, plans, BELOW_FLOOR, set())
    env.pipeline.settle()
