"""Which figures an edit of each table makes stale: of whom, when, and of which assets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.integration.test_migrate import fetch

#: Series by number: two machines of one factory, one of another.
SERIES = {1: ("f-1", "m-1", "s-1", "temp"), 2: ("f-1", "m-1", None, "state"), 3: ("f-1", "m-2", "s-2", "temp"),
          4: ("f-2", "m-3", "s-3", "speed")}  # fmt: skip
ALL_DAY = range(6, 13)


@pytest.fixture
def db(database_settings: Settings) -> Settings:
    """Measurements and windows in the hours 06 to 12 of one day."""
    fetch(database_settings, "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'machine')")
    for names in SERIES.values():
        fetch(
            database_settings,
            "INSERT INTO measurement_series (domain_id, tenant_id, factory_id, machine_id, sensor_id, metric) "
            "VALUES (1, 't-1', %s, %s, %s, %s)",
            *names,
        )
    fetch(
        database_settings,
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) "
        "SELECT asset, '2026-01-01Z'::timestamptz + h * interval '1 hour', 1, 1, 0, 'open' "
        "FROM generate_series(6, 12) h, unnest(ARRAY['normalized_measurements', 'window_aggregates']) asset",
    )
    return database_settings


def stale(db: Settings) -> dict[str, tuple[list[int], list[int]]]:
    """By asset, the series and the hours that are asked for; the pending work is taken away."""
    rows = fetch(
        db,
        "WITH taken AS (DELETE FROM pending_work RETURNING *) SELECT asset, array_agg(DISTINCT one ORDER BY one), "
        "array_agg(DISTINCT extract(hour FROM hour)::int) FROM taken, unnest(series) one "
        "WHERE reason = 'master_data' GROUP BY asset",
    )
    return {asset: (series, hours) for asset, series, hours in rows}


def version(db: Settings) -> int:
    return int(fetch(db, "SELECT version FROM input_version WHERE name = 'master_data'")[0][0])


@pytest.mark.parametrize(
    ("edit", "assets", "series", "hours"),
    [
        (
            "analytics_calibration (sensor_id, metric, gain, valid_from) "
            "VALUES ('s-1', 'temp', 2, '2026-01-01 09:30Z')",
            {"window_aggregates"},
            [1],
            range(9, 13),
        ),
        (
            "analytics_control_limits (metric, centre, sigma) VALUES ('temp', 20, 1)",
            {"anomalies"},
            [1, 3],
            ALL_DAY,
        ),
        (
            "analytics_units (metric, unit, canonical_unit, factor) VALUES ('speed', 'm/min', 'm/s', 0.0166)",
            {"window_aggregates", "anomalies", "kpis"},
            [4],
            ALL_DAY,
        ),
        (
            "analytics_planned_stops (machine_id, begins_at, ends_at) "
            "VALUES ('m-1', '2026-01-01 07:30Z', '2026-01-01 09:00Z')",
            {"kpis"},
            [1, 2],
            range(7, 9),
        ),
        (
            "analytics_machine_run (factory_id, machine_id, product_id, valid_from) "
            "VALUES ('f-1', 'm-2', 'brick', '2026-01-01 11:00Z')",
            {"kpis"},
            [3],
            range(11, 13),
        ),
        (
            "analytics_planned_time (product_id, pri_s) VALUES ('brick', 2.5)",
            {"kpis"},
            [1, 2, 3, 4],
            ALL_DAY,
        ),
        (
            "analytics_factories (factory_id, zone, valid_from) VALUES ('f-2', 'Asia/Kolkata', '2026-01-01 10:00Z')",
            {"kpis"},
            [4],
            range(10, 13),
        ),
        (
            "analytics_detector_settings (metric, detector, enabled) VALUES ('state', 'stuck', false)",
            {"anomalies"},
            [2],
            ALL_DAY,
        ),
        (
            "analytics_state_classes (state, state_class) VALUES ('RUN', 'production')",
            {"kpis"},
            [1, 2, 3, 4],
            ALL_DAY,
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_an_edit_makes_stale_what_its_row_is_about(
    db: Settings, edit: str, assets: set[str], series: list[int], hours: range
) -> None:
    before = version(db)
    fetch(db, f"INSERT INTO {edit}")
    assert stale(db) == {asset: (series, list(hours)) for asset in assets}
    assert version(db) == before + 1
    fetch(db, f"DELETE FROM {edit.split(maxsplit=1)[0]}")
    assert stale(db) == {asset: (series, list(hours)) for asset in assets}


def test_a_class_of_a_type_of_machine_touches_machines_of_that_type(db: Settings) -> None:
    fetch(
        db,
        "INSERT INTO analytics_equipment (factory_id, equipment_id, kind, machine_type) "
        "VALUES ('f-1', 'm-2', 'machine', 'kiln'), ('f-2', 'm-3', 'machine', 'press')",
    )
    stale(db)
    fetch(db, "INSERT INTO analytics_state_classes VALUES ('kiln', 'HEATING', 'setup')")
    assert stale(db) == {"kpis": ([3], [*ALL_DAY])}


def test_an_exception_touches_its_day_and_the_next_in_the_zone_of_the_factory(db: Settings) -> None:
    """2026-01-01 in Kolkata begins at 18:30 UTC the day before, and its shifts end by the end of the next day."""
    fetch(db, "INSERT INTO analytics_factories (factory_id, zone) VALUES ('f-2', 'Asia/Kolkata')")
    fetch(
        db,
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) "
        "SELECT 'window_aggregates', hour, 1, 1, 0, 'open' "
        "FROM generate_series('2025-12-31 12:00Z'::timestamptz, '2026-01-03 12:00Z', interval '1 hour') hour "
        "ON CONFLICT DO NOTHING",
    )
    stale(db)
    fetch(
        db, "INSERT INTO analytics_shift_exceptions (factory_id, shift, on_date) VALUES ('f-2', 'early', '2026-01-01')"
    )
    hours = fetch(db, "SELECT min(hour), max(hour), count(*) FROM pending_work WHERE series = '{4}'")
    ends = (datetime.fromisoformat("2025-12-31T18:00Z"), datetime.fromisoformat("2026-01-02T18:00Z"))
    assert hours == [(*ends, 49)]


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE analytics_calibration SET note = 'seen'",
        "UPDATE analytics_calibration SET gain = gain",
        "UPDATE analytics_calibration SET gain = 9 WHERE sensor_id = 'nobody'",
        "DELETE FROM analytics_calibration WHERE sensor_id = 'nobody'",
    ],
)
def test_an_edit_that_changes_no_figure_raises_no_version(db: Settings, edit: str) -> None:
    fetch(db, "INSERT INTO analytics_calibration (sensor_id, metric, gain) VALUES ('s-1', 'temp', 2)")
    stale(db)
    before = version(db)
    fetch(db, edit)
    assert (version(db), stale(db)) == (before, {})


def test_edits_of_several_tables_in_one_transaction_are_one_version(db: Settings) -> None:
    before = version(db)
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO analytics_calibration (sensor_id, metric, gain) VALUES ('s-1', 'temp', 2)")
        cursor.execute("INSERT INTO analytics_targets (machine_id, kpi, target) VALUES ('m-2', 'oee', 0.8)")
        cursor.execute("UPDATE analytics_targets SET target = 0.7")
        conn.commit()
    assert version(db) == before + 1
    assert stale(db) == {"window_aggregates": ([1], [*ALL_DAY]), "kpis": ([3], [*ALL_DAY])}
    assert not fetch(db, "SELECT * FROM master_data_commit")


def test_an_edit_is_kept_with_who_made_it_and_what_stood_there_before(db: Settings) -> None:
    fetch(db, "INSERT INTO analytics_targets (machine_id, kpi, target) VALUES ('m-2', 'oee', 0.8)")
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT set_config('analytics_pipeline.edited_by', 'ada', true)")
        cursor.execute("UPDATE analytics_targets SET target = 0.7")
        conn.commit()
    edits = fetch(
        db,
        "SELECT version, edited_by, rows_before->0->'target', rows_after->0->'target' "
        "FROM master_data_edit ORDER BY edit_id",
    )
    last = version(db)
    assert edits == [(last - 1, db.db_user, None, 0.8), (last, "ada", 0.8, 0.7)]


def test_an_edit_in_a_transaction_that_keeps_its_snapshot_is_refused(db: Settings) -> None:
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(Exception, match="analytics_products: this transaction is repeatable read"):
            cursor.execute("INSERT INTO analytics_products (product_id) VALUES ('brick')")


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("calibration", {"sensor_id": "s", "metric": "temp", "gain": 0}),
        ("calibration", {"metric": "temp", "gain": 1}),
        ("calibration", {"sensor_id": "s", "metric": "temp", "offset": float("nan")}),
        ("calibration", {"sensor_id": "", "machine_id": "m", "metric": "temp"}),
        ("control_limits", {"metric": "temp", "centre": 1, "sigma": 0}),
        ("control_limits", {"metric": "temp", "centre": float("inf"), "sigma": 1}),
        ("units", {"metric": "temp", "unit": "K", "canonical_unit": "°C", "factor": -1}),
        ("units", {"metric": "temp", "unit": "°C", "canonical_unit": "°C", "factor": 2}),
        ("counter_limits", {"metric": "count"}),
        ("detector_settings", {"metric": "temp", "detector": "stuck", "parameters": "[1]"}),
        ("factories", {"factory_id": "f", "zone": "Mars/Olympus"}),
        ("equipment", {"factory_id": "f", "equipment_id": "m", "kind": "machine", "parent_id": "m"}),
        ("equipment", {"factory_id": "f", "equipment_id": "m", "kind": "machine", "role": "counting"}),
        ("shifts", {"factory_id": "f", "shift": "a", "weekdays": "21", "begins": "06:00", "ends": "14:00"}),
        ("shifts", {"factory_id": "f", "shift": "a", "weekdays": "", "begins": "06:00", "ends": "14:00"}),
        ("shift_exceptions", {"factory_id": "f", "shift": "a", "on_date": "2026-01-01", "begins": "06:00"}),
        ("planned_stops", {"machine_id": "m", "begins_at": "2026-01-01Z", "ends_at": "2026-01-01Z"}),
        ("planned_time", {"product_id": "p", "pri_s": 0}),
        ("machine_run", {"machine_id": "m", "valid_from": "-infinity"}),
        ("state_classes", {"state": "RUN", "state_class": "unknown"}),
        ("targets", {"kpi": "oee", "target": 1, "direction": "up"}),
    ],
)
def test_the_database_refuses_what_a_file_is_refused_for(db: Settings, table: str, values: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(["%s"] * len(values))
    with pytest.raises(Exception, match=r"violates check constraint|not recognized"):
        fetch(db, f"INSERT INTO analytics_{table} ({names}) VALUES ({marks})", *values.values())
