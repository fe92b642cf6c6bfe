"""Master data as files against a real database: all or nothing, and no work for what does not change."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from analytics_pipeline.master_data.catalog import BY_NAME, MASTER_TABLES
from analytics_pipeline.settings import Settings, variable_names
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.integration.test_cli import refuse, succeed
from analytics_pipeline_tests.integration.test_migrate import fetch

ROWS = {
    "spec_limits": "('t', NULL, 'm-1', NULL, 'temp', NULL, 81.25, '-infinity', '°C', 'a, \"b\"')",
    "control_limits": "(NULL, NULL, 'm-1', NULL, 'temp', 20, 0.1, '2026-01-01 00:00:00.000001Z', NULL, NULL)",
    "calibration": "(NULL, NULL, NULL, 's-1', 'temp', 1e-7, -0.1, '2026-01-01Z', NULL)",
    "units": "('temp', 'K', '°C', 1, -273.15, NULL)",
    "counter_limits": "(NULL, NULL, NULL, NULL, 'count', 9007199254740993, NULL, '-infinity', NULL)",
    "detector_settings": "(NULL, NULL, NULL, NULL, 'temp', 'stuck', false, NULL, "
    "'{\"b\": 1.0, \"a\": []}', '-infinity', NULL)",
    "factories": "(NULL, 'f', 'Europe/Berlin', '06:00', '-infinity', NULL)",
    "equipment": "(NULL, 'f', 'l-1', 'line', NULL, 'plain', NULL, '-infinity', NULL)",
    "shifts": "(NULL, 'f', 'early', '12345', '06:00', '14:00', '-infinity', NULL)",
    "shift_exceptions": "(NULL, 'f', 'early', '2026-12-24', NULL, NULL, 'Christmas Eve')",
    "planned_stops": "(NULL, NULL, 'm-1', '2026-01-01 10:00Z', '2026-01-01 11:00Z', 'service', NULL)",
    "products": "('brick', 'Brick', NULL)",
    "planned_time": "(NULL, NULL, NULL, 'brick', 2.5, '-infinity', NULL)",
    "machine_run": "(NULL, 'f', 'm-1', 'brick', 'o-7', '2026-01-01 10:00Z', NULL)",
    "state_classes": "(NULL, 'RUN', 'production', '-infinity', NULL)",
    "stop_reasons": "('jam', NULL, NULL)",
    "stop_assignments": "(NULL, 'f', 'm-1', '2026-01-01 10:00:01.5Z', '2026-01-01 10:20Z', 'jam', 'ada', now(), NULL)",
    "targets": "(NULL, NULL, 'm-1', 'oee', 0.8, 'at_least', '-infinity', NULL)",
}


@pytest.fixture
def db(database_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An hour of one machine with two sensors, where the command line finds it."""
    values = database_settings.model_dump()
    for field in ("db_host", "db_port", "db_name", "db_user"):
        monkeypatch.setenv(variable_names(field)[0], str(values[field]))
    monkeypatch.setenv("DB_PASSWORD", database_settings.db_password.get_secret_value())
    fetch(
        database_settings,
        "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'sensor'); "
        "INSERT INTO measurement_series (domain_id, tenant_id, machine_id, sensor_id, metric) "
        "VALUES (1, 't-1', 'm-1', 's-1', 'temp'), (1, 't-1', 'm-1', 's-2', 'temp'); "
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) "
        "SELECT asset, '2026-01-01 10:00Z', 1, 1, 0, 'open' "
        "FROM unnest(ARRAY['normalized_measurements', 'window_aggregates']) asset",
    )
    return database_settings


@pytest.fixture
def filled(db: Settings) -> Settings:
    """A row in every table."""
    for name, row in ROWS.items():
        columns = ", ".join(f'"{column.name}"' for column in BY_NAME[name].in_files)
        fetch(db, f"INSERT INTO analytics_{name} ({columns}) VALUES {row}")
    fetch(db, "DELETE FROM pending_work")
    return db


def state(db: Settings) -> tuple[Any, ...]:
    """What an edit would change: the version, what is pending, and every row."""
    rows = [fetch(db, f"SELECT r::text FROM {table.table_name} r ORDER BY 1") for table in MASTER_TABLES]
    version = fetch(db, "SELECT version FROM input_version WHERE name = 'master_data'")
    return version, fetch(db, "SELECT count(*) FROM pending_work"), rows


def put(folder: Path, name: str, *lines: str) -> Path:
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_importing_what_was_exported_changes_nothing(filled: Settings, tmp_path: Path) -> None:
    assert ROWS.keys() == BY_NAME.keys()
    before = state(filled)
    assert f"exported: {len(ROWS)} rows of {len(ROWS)} tables" in succeed("master-data", "export", tmp_path / "files")
    assert succeed("master-data", "import", tmp_path / "files", "--prune") == "master data: nothing to change\n"
    assert succeed("master-data", "diff", tmp_path / "files") == "master data: nothing to change\n"
    assert state(filled) == before


def test_files_bring_a_database_to_where_another_was(filled: Settings, tmp_path: Path) -> None:
    succeed("master-data", "export", tmp_path)
    wanted = state(filled)[2]
    for table in MASTER_TABLES:
        fetch(filled, f"TRUNCATE {table.table_name} RESTART IDENTITY")
    succeed("master-data", "import", tmp_path)
    assert state(filled)[2] == wanted


def test_an_import_tells_what_it_changed_and_what_is_computed_again(db: Settings, tmp_path: Path) -> None:
    header = "sensor_id,metric,gain,valid_from"
    path = put(tmp_path, "calibration", header, "s-1,temp,2,2026-01-01T10:30:00Z", "s-3,temp,2,")
    shown = succeed("master-data", "import", path)
    assert shown == "calibration: 2 added, 0 changed, 0 removed\ncomputed again: 1 hour of window_aggregates\n"
    assert fetch(db, "SELECT asset, series, reason FROM pending_work") == [("window_aggregates", [1], "master_data")]
    put(tmp_path, "calibration", header, "s-1,temp,3,2026-01-01T10:30:00Z")
    assert "0 added, 1 changed, 0 removed" in succeed("master-data", "import", tmp_path)
    shown = json.loads(succeed("master-data", "import", path, "--prune", "--json"))
    assert shown["tables"] == {"calibration": {"added": 0, "changed": 0, "removed": 1, "same": 1}}
    assert fetch(db, 'SELECT sensor_id, gain, "offset" FROM analytics_calibration') == [("s-1", 3.0, 0.0)]


def test_a_diff_tells_the_same_and_changes_nothing(db: Settings, tmp_path: Path) -> None:
    fetch(db, "INSERT INTO analytics_calibration (sensor_id, metric, gain) VALUES ('s-1', 'temp', 2), ('s-9', 'x', 2)")
    fetch(db, "DELETE FROM pending_work")
    before = state(db)
    put(tmp_path, "calibration", "sensor_id,metric,gain,note", "s-1,temp,4,mended", "s-2,temp,5,")
    put(tmp_path, "products", "product_id,name", "brick,Brick")
    shown = succeed("master-data", "diff", tmp_path, "--prune")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["+", "sensor_id=s-2, metric=temp", "gain=5.0"] in rows
    assert ["~", "sensor_id=s-1, metric=temp", "gain=2.0 -> gain=4.0, note=mended"] in rows
    assert ["-", "sensor_id=s-9, metric=x", "gain=2.0"] in rows
    assert ["+", "product_id=brick", "name=Brick"] in rows
    assert shown.splitlines()[-1] == "an import would compute again: 1 hour of window_aggregates"
    assert state(db) == before


def test_one_wrong_cell_in_one_file_imports_nothing(db: Settings, tmp_path: Path) -> None:
    put(tmp_path, "products", "product_id", "brick")
    put(tmp_path, "calibration", "sensor_id,metric,gain", "s-1,temp,2", "s-2,temp,0")
    put(tmp_path, "units", "metric,unit,canonical_unit", "temp,furlong,°C")
    before = state(db)
    told = refuse("master-data", "import", tmp_path)
    assert told.splitlines()[0] == "master data: 2 problems, nothing was imported"
    assert f"{tmp_path / 'calibration.csv'}, line 3, column gain: got '0.0', takes a number other than 0" in told
    assert f"{tmp_path / 'units.csv'}, line 2, column factor: got ''" in told
    assert state(db) == before


def test_files_are_checked_beside_what_is_stored(db: Settings, tmp_path: Path) -> None:
    fetch(db, "INSERT INTO analytics_shifts VALUES (NULL, 'f', 'early', '1', '06:00', '14:00')")
    path = put(tmp_path, "shifts", "factory_id,shift,weekdays,begins,ends", "f,late,1,13:00,22:00")
    assert "takes a span that does not overlap early, 06:00 to 14:00" in refuse("master-data", "import", path)
    assert "1 added, 0 changed, 1 removed" in succeed("master-data", "import", path, "--prune")


def test_who_imports_stands_in_the_record_of_edits(db: Settings, tmp_path: Path) -> None:
    put(tmp_path, "stop_reasons", "reason", "jam")
    header = "machine_id,begins_at,ends_at,reason"
    put(tmp_path, "stop_assignments", header, "m-1,2026-01-01T10:00:00Z,2026-01-01T10:30:00Z,jam")
    succeed("master-data", "import", tmp_path, "--by", "ada")
    assert set(fetch(db, "SELECT edited_by FROM master_data_edit")) == {("ada",)}
    assigned = "SELECT assigned_by, assigned_at > now() - interval '1 minute' FROM analytics_stop_assignments"
    assert fetch(db, assigned) == [("ada", True)]
    assert succeed("master-data", "import", tmp_path, "--by", "bob") == "master data: nothing to change\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("limits.csv", b"metric\n", "no table is named 'limits'; takes calibration, control_limits"),
        ("products.csv", b"product_id\nb\xe9ton\n", "products.csv: byte 12 is no UTF-8"),
        ("notes.txt", b"", "no *.csv there; 'analytics-pipeline master-data export' writes files to begin with"),
    ],
)
def test_a_file_that_is_none_is_told(db: Settings, tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert told in refuse("master-data", "import", tmp_path)


def test_ten_thousand_rows_are_one_edit_within_seconds_and_commits_do_not_wait(db: Settings, tmp_path: Path) -> None:
    lines = [f"s-{n % 100},temp,{1 + n},2026-01-01T{n // 100 % 24:02d}:{n // 2400:02d}:00Z" for n in range(10_000)]
    path = put(tmp_path, "calibration", "sensor_id,metric,gain,valid_from", *lines)
    version = fetch(db, "SELECT version FROM input_version WHERE name = 'master_data'")[0][0]
    began = time.monotonic()
    succeed("master-data", "import", path)
    assert time.monotonic() - began < 10
    assert fetch(db, "SELECT version FROM input_version WHERE name = 'master_data'") == [(version + 1,)]
    assert fetch(db, "SELECT count(*) FROM analytics_calibration") == [(10_000,)]


def test_two_imports_at_once_follow_one_another(db: Settings, tmp_path: Path) -> None:
    """Each alone is right; together their shifts would overlap."""
    header = "factory_id,shift,weekdays,begins,ends"
    path = put(tmp_path, "shifts", header, "f,late,1,13:00,22:00")
    told: list[str] = []
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE analytics_shifts IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute("INSERT INTO analytics_shifts VALUES (NULL, 'f', 'early', '1', '06:00', '14:00')")
        other = threading.Thread(target=lambda: told.append(refuse("master-data", "import", path)))
        other.start()
        time.sleep(0.3)
        assert other.is_alive()
        conn.commit()
    other.join(30)
    assert "does not overlap early" in told[0]
