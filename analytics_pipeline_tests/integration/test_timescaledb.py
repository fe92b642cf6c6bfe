"""What TimescaleDB adds, where the server has it: hypertables of empty and filled tables, keys that hold."""

from __future__ import annotations

import psycopg2
import pytest

from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import migrate as migrations
from analytics_pipeline.storage.migrate import SqlFile, migrate, sql_files
from analytics_pipeline_tests.integration.test_migrate import NAMES, fetch, insert_window

HYPERTABLES = {
    "raw_events",
    "normalized_measurements",
    "window_aggregates",
    "anomalies",
    "kpis",
    "normalized_events",
    "state_changes",
    "event_rollups",
    "state_durations",
    "carried_states",
    "counter_readings",
    "counter_increments",
}
KPI = (
    "INSERT INTO kpis (bucket_start, window_s, domain_id, kpi, value, unit) "
    "VALUES ('2026-01-01 10:00Z', 3600, 1, 'messages', %s, '1') "
)


@pytest.fixture(autouse=True)
def _needs_timescaledb(bare_settings: Settings) -> None:
    if not fetch(bare_settings, "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"):
        pytest.skip("no TimescaleDB on this server; .ci/timescaledb.sh starts one")


def hypertables(settings: Settings) -> set[str]:
    rows = fetch(settings, "SELECT hypertable_name FROM timescaledb_information.hypertables")
    return {name for (name,) in rows}


def test_migrate_adds_the_extension_and_makes_hypertables(bare_settings: Settings) -> None:
    migrate(bare_settings)
    assert hypertables(bare_settings) == HYPERTABLES
    assert migrate(bare_settings) == []


def test_tables_that_were_filled_before_become_hypertables_and_keep_every_row(
    bare_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(migrations, "_try_timescaledb", lambda *_: None)
        migrate(bare_settings)
    fetch(
        bare_settings,
        "INSERT INTO raw_events SELECT 't', 1, 0, n, 0, 1, NULL, NULL, now(), "
        "'2026-01-01Z'::timestamptz + n * interval '1 h', now(), 1, 'abc' FROM generate_series(1, 200) n",
    )
    insert_window(bare_settings)
    fetch(bare_settings, KPI, 1.0)
    assert migrate(bare_settings) == NAMES  # the server can do more than when they were applied
    assert hypertables(bare_settings) == HYPERTABLES
    counts = "SELECT (SELECT count(*) FROM raw_events), (SELECT count(*) FROM ONLY raw_events), count(*) FROM kpis"
    assert fetch(bare_settings, counts) == [(200, 0, 1)]
    assert fetch(bare_settings, "SELECT count_n FROM analytics_agg") == [(3,)]
    chunks = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'raw_events'"
    assert fetch(bare_settings, chunks)[0][0] > 5


def test_a_key_with_nulls_is_unique_on_a_hypertable_too(database_settings: Settings) -> None:
    fetch(database_settings, KPI, 1.0)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        fetch(database_settings, KPI, 2.0)
    key = "domain_id, bucket_start, window_s, tenant_id, factory_id, machine_id, kpi"
    fetch(database_settings, KPI + f"ON CONFLICT ({key}) DO UPDATE SET value = EXCLUDED.value", 3.0)
    assert fetch(database_settings, "SELECT value FROM kpis") == [(3.0,)]


def test_under_the_apache_licence_ingest_hourly_is_a_plain_view(database_settings: Settings) -> None:
    if fetch(database_settings, "SELECT current_setting('timescaledb.license')") != [("apache",)]:
        pytest.skip("this server's licence offers continuous aggregates")
    kind = "SELECT relkind FROM pg_class WHERE oid = 'ingest_hourly'::regclass"
    assert fetch(database_settings, kind) == [("v",)]


def test_what_the_licence_refuses_is_a_notice_and_no_failed_migration(bare_settings: Settings) -> None:
    believed = "coalesce(current_setting('timescaledb.license', true), '')"
    files = [SqlFile(file.name, file.text.replace(believed, "'timescale'")) for file in sql_files()]
    said: list[str] = []
    assert migrate(bare_settings, files=files, on_notice=said.append) == NAMES
    if fetch(bare_settings, "SELECT current_setting('timescaledb.license')") != [("apache",)]:
        pytest.skip("this server's licence refuses nothing")
    assert any("the continuous aggregate ingest_hourly was refused" in text for text in said)
    assert any("compression of raw_events was refused" in text for text in said)
    assert fetch(bare_settings, "SELECT * FROM ingest_hourly") == []
