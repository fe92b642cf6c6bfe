"""Migrations on a real server: applied once, again when they change, by many at once, and by a mere owner."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from analytics_pipeline.cli.doctor import _database as examine_database
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.migrate import MigrationError, SqlFile, migrate, outdated, sql_files
from analytics_pipeline_tests.conftest import DatabaseServer

NAMES = [file.name for file in sql_files()]


def fetch(settings: Settings, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection(engine_for(settings)) as conn, conn.cursor() as cursor:
        cursor.execute(query, values or None)
        rows = cursor.fetchall() if cursor.description else []
        conn.commit()
        return rows


def test_every_file_is_applied_in_order_and_then_never_again(bare_settings: Settings) -> None:
    assert sorted(NAMES) == NAMES
    assert migrate(bare_settings) == NAMES
    assert migrate(bare_settings) == []
    assert fetch(bare_settings, "SELECT name FROM schema_migration ORDER BY name") == [(n,) for n in NAMES]


def test_every_file_can_be_applied_again_over_data(database_settings: Settings) -> None:
    insert_window(database_settings)
    files = [SqlFile(file.name, file.text + "\n-- changed\n") for file in sql_files()]
    assert migrate(database_settings, files=files) == NAMES
    assert fetch(database_settings, "SELECT count(*) FROM analytics_agg") == [(1,)]


def test_a_changed_file_is_applied_again_with_all_later_ones(database_settings: Settings) -> None:
    files = [SqlFile(f.name, f.text + "\n-- changed\n") if f.name.startswith("10") else f for f in sql_files()]
    assert migrate(database_settings, files=files) == [n for n in NAMES if n >= "10"]


def test_what_is_outdated_can_be_asked_without_applying_it(bare_settings: Settings) -> None:
    migrate(bare_settings, files=[])
    with connection(engine_for(bare_settings)) as conn:
        assert outdated(conn) == NAMES
    migrate(bare_settings)
    with connection(engine_for(bare_settings)) as conn:
        assert outdated(conn) == []


def test_many_migrations_at_once_apply_each_file_once(bare_settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda _: migrate(bare_settings), range(4)))
    assert sorted(name for names in applied for name in names) == NAMES


def test_a_file_that_fails_leaves_nothing_of_itself_and_names_the_line(bare_settings: Settings) -> None:
    files = [SqlFile("01_a.sql", "CREATE TABLE a ()"), SqlFile("02_b.sql", "CREATE TABLE b ();\nSELECT nonsense;")]
    with pytest.raises(MigrationError, match=r'02_b\.sql line 2: column "nonsense" does not exist'):
        migrate(bare_settings, files=files)
    there = fetch(bare_settings, "SELECT to_regclass('a') IS NOT NULL, to_regclass('b') IS NOT NULL")
    assert there == [(True, False)]


def test_a_database_of_the_first_version_is_refused_in_one_line_and_left_as_it_is(bare_settings: Settings) -> None:
    old = [SqlFile("01_analytics_core.sql", "CREATE TABLE pending_mark ()")]
    migrate(bare_settings, files=old)
    with pytest.raises(MigrationError, match=r"it applied 01_analytics_core\.sql.*DROP SCHEMA") as refused:
        migrate(bare_settings)
    assert "\n" not in str(refused.value)
    assert fetch(bare_settings, "SELECT name FROM schema_migration") == [("01_analytics_core.sql",)]


#: What a server shows whose licence went from Community back to Apache: compression itself is not to be had here.
COMPRESSED_UNDER_APACHE = """
CREATE SCHEMA timescaledb_information;
CREATE TABLE timescaledb_information.chunks (hypertable_schema text, hypertable_name text, is_compressed boolean);
INSERT INTO timescaledb_information.chunks
VALUES ('analytics', 'raw_events', true), ('analytics', 'raw_events', false), ('other', 'raw_events', true);
"""


def test_compressed_chunks_under_the_apache_licence_are_refused_with_the_remedy(
    bare_settings: Settings, postgres_server: DatabaseServer
) -> None:
    if postgres_server.embedded is None:
        pytest.skip("TimescaleDB has the real view, and in this edition nothing compressed")
    migrate(bare_settings)
    fetch(bare_settings, COMPRESSED_UNDER_APACHE)
    with postgres_server.embedded._session() as superuser:
        superuser.execute(f"ALTER DATABASE {bare_settings.db_name} SET timescaledb.license = 'apache'")
    engine_for(bare_settings).dispose()
    with pytest.raises(MigrationError, match=r"1 compressed chunks of raw_events .*'timescale'.*decompress_chunk"):
        migrate(bare_settings)
    (finding,) = (one for one in examine_database(bare_settings) if one.check == "TimescaleDB")
    assert finding.level == "fail"
    fetch(bare_settings, "UPDATE timescaledb_information.chunks SET is_compressed = false")
    assert migrate(bare_settings) is not None


def test_no_server_is_one_clear_line(bare_settings: Settings) -> None:
    with pytest.raises(MigrationError, match=r"127\.0\.0\.1:1 as .*check DB_HOST"):
        migrate(bare_settings.model_copy(update={"db_host": "127.0.0.1", "db_port": 1}))


def test_no_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no sql/NN_"):
        sql_files(tmp_path)


def test_settings_and_topics_are_in_the_database_for_its_views(bare_settings: Settings) -> None:
    migrate(bare_settings.model_copy(update={"allowed_lateness_s": 7}), {"sensor": ["a", "b"]})
    lateness = "SELECT value FROM pipeline_setting WHERE name = 'allowed_lateness_s'"
    assert fetch(bare_settings, lateness) == [("7",)]
    migrate(bare_settings, {"sensor": ["b"]})
    assert fetch(bare_settings, lateness) == [("60",)]
    assert fetch(bare_settings, "SELECT domain, topic FROM domain_topic") == [("sensor", "b")]
    migrate(bare_settings)
    assert fetch(bare_settings, "SELECT count(*) FROM domain_topic") == [(1,)]


@pytest.fixture
def plain_role(bare_settings: Settings) -> Iterator[Settings]:
    """A login that may connect and nothing else, in the test's own database."""
    name = f"plain_{uuid.uuid4().hex[:12]}"
    fetch(bare_settings, f"CREATE ROLE {name} LOGIN PASSWORD 'plain'")
    password = type(bare_settings.db_password)("plain")
    plain = bare_settings.model_copy(update={"db_user": name, "db_password": password})
    yield plain
    engine_for(plain).dispose()
    fetch(bare_settings, f"GRANT {name} TO current_user; DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_role_that_may_not_create_a_schema_is_told_what_to_ask_for(plain_role: Settings) -> None:
    with pytest.raises(MigrationError, match='CREATE SCHEMA "analytics" AUTHORIZATION'):
        migrate(plain_role)


def test_an_owner_without_other_rights_can_migrate(bare_settings: Settings, plain_role: Settings) -> None:
    fetch(bare_settings, f"GRANT {plain_role.db_user} TO current_user")
    for schema in ("analytics", "analytics_dagster"):
        fetch(bare_settings, f"CREATE SCHEMA {schema} AUTHORIZATION {plain_role.db_user}")
    assert migrate(plain_role) == NAMES
    assert migrate(plain_role) == []


def test_whoever_runs_the_pipeline_can_ask_what_is_outdated(
    database_settings: Settings, plain_role: Settings
) -> None:
    fetch(database_settings, f"GRANT analytics_writer TO {plain_role.db_user}")
    with connection(engine_for(plain_role)) as conn:
        assert outdated(conn) == []


def test_whoever_runs_the_pipeline_may_edit_master_data(
    database_settings: Settings, plain_role: Settings
) -> None:
    fetch(database_settings, f"GRANT analytics_writer TO {plain_role.db_user}")
    fetch(plain_role, "INSERT INTO analytics_spec_limits (metric, usl) VALUES ('temp', 80)")
    edits = fetch(plain_role, "SELECT table_name, edited_by, version IS NOT NULL FROM master_data_edit")
    assert edits == [("analytics_spec_limits", plain_role.db_user, True)]


def test_a_reader_sees_the_public_views_and_nothing_else(
    database_settings: Settings, plain_role: Settings
) -> None:
    insert_window(database_settings)
    fetch(database_settings, f"GRANT analytics_reader TO {plain_role.db_user}")
    assert fetch(plain_role, "SELECT count_n FROM analytics_agg") == [(3,)]
    views = fetch(
        database_settings,
        "SELECT relname FROM pg_class WHERE relnamespace = 'analytics'::regnamespace "
        "AND relkind IN ('r', 'v', 'p', 'm') AND has_table_privilege(%s, oid, 'SELECT')",
        plain_role.db_user,
    )
    assert {name for (name,) in views} == {
        "analytics_agg",
        "analytics_anomaly",
        "series_unit",
        "analytics_kpi",
        "analytics_event",
        "analytics_event_rollup",
        "analytics_state_duration",
        "ai_analytics_events",
        "iot_measurements",
        "lab_results",
        "recent_events",
        "analytics_counter",
        "worker_checkpoints",
        "topic_watermark",
        "domain_watermark",
        "pipeline_dead_letters",
        "partition_status",
        "ingest_hourly",
    }
    for statement in ("SELECT payload FROM raw_events", "DELETE FROM normalized_events", "CREATE TABLE t ()"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            fetch(plain_role, statement)


def insert_window(
    settings: Settings, count_n: int = 3, bucket_start: str = "2026-01-01 10:00Z", **more: Any
) -> None:
    """One series and one window of it."""
    columns = {
        "domain_id": 1, "bucket_start": bucket_start, "window_s": 60, "series_id": 1, "count_n": count_n,
        "avg_val": 2.0,
        "m2": 2.0, "min_val": 1.0, "max_val": 3.0, "first_val": 1.0, "first_time": bucket_start, "last_val": 3.0,
        "last_time": bucket_start, "p50": 2.0, "p95": 3.0, "p99": 3.0, "base_n": 1, "coverage": 1.0,
        "tw_integral": 120.0, "tw_covered_s": 60.0, "bad_n": 0, "uncertain_n": 0, "censored_n": 0, "late_n": 0,
        "ends_bad": False, "sketch": b"", **more,
    }  # fmt: skip
    fetch(
        settings,
        "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'sensor') ON CONFLICT DO NOTHING; "
        "INSERT INTO measurement_series (domain_id, tenant_id, factory_id, machine_id, sensor_id, metric) "
        "VALUES (1, 't1', 'f1', 'mc-01', 's-001', 'temp') ON CONFLICT DO NOTHING",
    )
    holes = ", ".join(["%s"] * len(columns))
    fetch(
        settings,
        f"INSERT INTO window_aggregates ({', '.join(columns)}) VALUES ({holes})",
        *columns.values(),
    )
