"""Plans that need no statistics: one domain's hour is found by the key or by BRIN, among ten domains' rows.

On a database as the migration left it: never analyzed, autovacuum off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.records import DERIVED, HOUR, Mode, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import Invalidation, Scope, add
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import open_domains
from analytics_pipeline_tests.domains.copies import copy
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.explained import Plans, explained
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.quick_gate import use_quick_gates

DOMAINS = [copy(f"line{number}") for number in range(10)]
HOURS, SENSORS, SAMPLES = 12, 5, 60
START = hour_of(datetime.now(UTC)) - (HOURS + 3) * HOUR
HOUR_ASKED = START + 6 * HOUR

NO_AUTOVACUUM = """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'r' AND (
            c.relnamespace = current_schema()::regnamespace OR c.oid IN (
                SELECT inhrelid FROM pg_inherits JOIN pg_class p ON p.oid = inhparent
                WHERE p.relnamespace = current_schema()::regnamespace))
        LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', name); END LOOP;
    END $$
"""
#: What the first domain's rows are in nine others.
OTHERS = range(1, len(DOMAINS))
FILLED = ("measurement_series", "raw_events", "normalized_measurements", "window_aggregates", "anomalies", "kpis")


def give_to_others(env: Environment, tables: Sequence[str], series: int) -> None:
    """Everything that the first domain has in some tables, nine times more.

    Args:
        series: how many it has; their numbers begin with 1.
    """
    shifted = {
        "domain_id": "t.domain_id + n",
        "series_id": f"t.series_id + {series} * n",
        "topic": "t.topic || n",
    }
    for table in (*tables, "partition_state"):
        names = [
            row[0]
            for row in env.pipeline.query(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() "
                "AND table_name = %s AND is_identity = 'NO'",
                table,
            )
        ]
        listed = ", ".join(f'"{name}"' for name in names)
        selected = ", ".join(shifted.get(name, f't."{name}"') for name in names)
        order = "ORDER BY n, t.series_id" if table == "measurement_series" else ""
        execute(
            env,
            f"INSERT INTO {table} ({listed}) SELECT {selected} FROM {table} t, generate_series(1, {len(OTHERS)}) n "
            f"WHERE t.domain_id = 1 {order} ON CONFLICT DO NOTHING",
        )


#: What a condition on an index must name, so that no other domain's rows are read: a series is of one domain.
KEYS = dict.fromkeys(FILLED, ("domain_id", "series_id =")) | {"raw_events": ("event_time",)}


pytestmark = pytest.mark.usefixtures("quick_gates")


def execute(env: Environment, statement: str) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(statement)
        conn.commit()


@pytest.fixture(scope="module")
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with (
        pytest.MonkeyPatch.context() as patch,
        open_domains(postgres_server, kafka_broker.bootstrap_servers, DOMAINS) as it,
    ):
        use_quick_gates(patch)
        execute(it, NO_AUTOVACUUM)
        step = timedelta(hours=1) / SAMPLES
        it.send(
            reading(START + HOUR * hour + step * sample, 20 + 300 * (sample == 40), sensor_id=f"s-{sensor}")
            for hour in range(HOURS)
            for sample in range(SAMPLES)
            for sensor in range(SENSORS)
        )
        it.drain()
        it.pipeline.settle()
        give_to_others(it, FILLED, SENSORS)
        execute(it, NO_AUTOVACUUM)
        assert it.pipeline.query("SELECT count(DISTINCT domain_id) FROM window_aggregates") == [(10,)]
        assert it.pipeline.query("SELECT count(*) FROM pg_stats WHERE tablename = ANY(%s)", [*FILLED]) == [(0,)]
        assert it.pipeline.query("SELECT domain_id FROM domain_number WHERE domain = 'line0'") == [(1,)]
        yield it


def roots(env: Environment) -> dict[str, str]:
    """A chunk's hypertable, where there are any."""
    return dict(
        env.pipeline.query(
            "SELECT c.relname::text, p.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "JOIN pg_class p ON p.oid = i.inhparent"
        )
    )


def tables_read(env: Environment, plans: Plans, keys: dict[str, tuple[str, ...]]) -> set[str]:
    """The large tables that were read; sees that each scan of them is by an index and names what it must."""
    of_chunk = roots(env)
    wrong, read = [], set()
    for scan in plans.scans:
        table = of_chunk.get(scan.table, scan.table)
        if table in keys:
            read.add(table)
            if scan.node == "Seq Scan" or not any(name in scan.by for name in keys[table]):
                wrong.append(f"{scan.node} on {table} by ({scan.by}): {scan.statement[:300]}")
    assert not wrong, "\n".join(wrong)
    return read


#: What makes another row of one that is stored, which the next computation takes away.
SPOILED = {
    "normalized_measurements": ("sample_key", "sample_key + 9"),
    "window_aggregates": ("series_id", "4242"),
    "anomalies": ("detector", "'gone'"),
    "kpis": ("kpi", "'gone'"),
}


def hour_in(env: Environment, table: str) -> int:
    return int(env.pipeline.query(f"SELECT count(*) FROM {table} WHERE {hour_of_table(table)}")[0][0])


def hour_of_table(table: str) -> str:
    time = "event_time" if table == "normalized_measurements" else "bucket_start"
    return f"domain_id = 1 AND {time} >= '{HOUR_ASKED}' AND {time} < '{HOUR_ASKED + HOUR}'"


def spoil(env: Environment, table: str) -> None:
    """Add to the hour what does not belong there."""
    column, value = SPOILED[table]
    record = f"jsonb_populate_record(t, jsonb_build_object('{column}', {value}))"
    execute(
        env,
        f"INSERT INTO {table} SELECT ({record}).* FROM {table} t WHERE {hour_of_table(table)} ON CONFLICT DO NOTHING",
    )


@pytest.mark.parametrize("mode", ["full", "incremental"])
@pytest.mark.parametrize("asset", DERIVED)
def test_an_hour_of_one_domain_is_computed_without_statistics(env: Environment, asset: str, mode: Mode) -> None:
    if mode == "incremental":
        with connection(env.pipeline.engine) as conn:
            some = Scope(series=(1,), spans=((0, 60),))
            scope = some if asset != "normalized_measurements" else Scope(batches=(1,))
            add(conn, [Invalidation(asset=asset, domain_id=1, hour=HOUR_ASKED, reason="test", scope=scope)])
            conn.commit()
    rows = hour_in(env, asset)
    if mode == "full":
        spoil(env, asset)
        assert hour_in(env, asset) > rows
    with explained(env.pipeline.engine) as plans:
        done = env.pipeline.deriver.derive_hours(asset, [HOUR_ASKED], mode, "test", domains=["line0"])
    assert not done.errors
    assert hour_in(env, asset) == rows > 0
    assert mode == "incremental" or any(scan.statement.startswith(f"DELETE FROM {asset} ") for scan in plans.scans)
    read = {"normalized_measurements": "raw_events", "window_aggregates": "normalized_measurements"}
    assert tables_read(env, plans, KEYS) >= {asset, read.get(asset, "window_aggregates")}


def test_an_hour_of_raw_events_is_rebuilt_without_statistics(env: Environment) -> None:
    with explained(env.pipeline.engine) as plans:
        rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, HOUR_ASKED, "test")
    by_position = ("event_time", '"offset"')
    assert "raw_events" in tables_read(env, plans, {"raw_events": by_position})


OF_DOMAIN = "SELECT * FROM {view} WHERE domain = 'line3' AND bucket_start >= '{hour}' AND bucket_start < '{next_hour}'"
OF_ALL = "SELECT * FROM {view} WHERE bucket_start >= '{hour}' AND bucket_start < '{next_hour}'"


@pytest.mark.parametrize(
    ("view", "table"),
    [("analytics_agg", "window_aggregates"), ("analytics_anomaly", "anomalies"), ("analytics_kpi", "kpis")],
)
def test_a_view_reads_an_hour_without_statistics(env: Environment, view: str, table: str) -> None:
    hours = {"hour": HOUR_ASKED, "next_hour": HOUR_ASKED + HOUR}
    for query, keys in ((OF_DOMAIN, ("domain_id", "series_id =")), (OF_ALL, ("bucket_start",))):
        with explained(env.pipeline.engine) as plans:
            rows = env.pipeline.query(query.format(view=view, **hours))
        assert rows
        assert tables_read(env, plans, {table: keys}) == {table}
