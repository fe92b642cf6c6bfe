"""An edit of specification limits makes those hours pending whose anomalies and KPIs it may change, and no others."""

from __future__ import annotations

import pytest

from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.integration.test_migrate import fetch

LIMIT = "INSERT INTO analytics_spec_limits (machine_id, metric, usl, valid_from) VALUES (%s, %s, 9, %s)"


@pytest.fixture
def db(database_settings: Settings) -> Settings:
    """Windows of the sensor domain in the hours 06 to 12 of one day."""
    fetch(
        database_settings,
        "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'sensor'); "
        "INSERT INTO measurement_series (domain_id, tenant_id, machine_id, metric) VALUES (1, 't1', 'mc-01', 'temp'), "
        "(1, 't1', 'mc-02', 'temp'), (1, 't1', 'm', 'temp'); "
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) "
        "SELECT asset, '2026-01-01Z'::timestamptz + h * interval '1 hour', 1, 1, 0, 'open' "
        "FROM generate_series(6, 12) h, unnest(ARRAY['window_aggregates', 'kpis']) asset",
    )
    return database_settings


def at(clock: str) -> str:
    return f"2026-01-01 {clock}Z"


def pending_hours(db: Settings) -> dict[str, list[int]]:
    """Hours that are asked for, by asset; the pending work is taken away."""
    rows = fetch(
        db,
        "WITH taken AS (DELETE FROM pending_work RETURNING *) "
        "SELECT asset, array_agg(DISTINCT extract(hour FROM hour)::int) FROM taken "
        "WHERE reason = 'master_data' AND domain_id = 1 GROUP BY asset",
    )
    return dict(rows)


def both(*hours: int) -> dict[str, list[int]]:
    return {"anomalies": list(hours), "kpis": list(hours)} if hours else {}


def test_a_new_limit_invalidates_from_its_hour_on(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", at("09:30"))
    assert pending_hours(db) == both(9, 10, 11, 12)


def test_a_limit_without_a_beginning_invalidates_everything(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", "-infinity")
    assert pending_hours(db) == both(6, 7, 8, 9, 10, 11, 12)


def test_a_limit_invalidates_until_the_next_limit_of_the_same_target(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", at("10:00"))
    fetch(db, LIMIT, "mc-02", "temp", at("08:00"))  # another target does not end it
    pending_hours(db)
    fetch(db, LIMIT, "mc-01", "temp", at("07:00"))
    assert pending_hours(db) == both(7, 8, 9)


def test_an_edit_invalidates_where_it_was_and_where_it_is(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", at("07:00"))
    fetch(db, LIMIT, "mc-01", "temp", at("12:00"))
    pending_hours(db)
    fetch(db, "UPDATE analytics_spec_limits SET valid_from = %s WHERE valid_from = %s", at("10:00"), at("07:00"))
    assert pending_hours(db) == both(7, 8, 9, 10, 11)


def test_a_changed_value_invalidates_its_own_span(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", at("07:00"))
    fetch(db, LIMIT, "mc-01", "temp", at("09:00"))
    pending_hours(db)
    fetch(db, "UPDATE analytics_spec_limits SET usl = 10 WHERE valid_from = %s", at("07:00"))
    assert pending_hours(db) == both(7, 8)


def test_a_deleted_limit_invalidates_the_span_that_it_leaves(db: Settings) -> None:
    fetch(db, LIMIT, None, "temp", at("07:00"))
    fetch(db, LIMIT, None, "temp", at("09:00"))
    fetch(db, LIMIT, None, "temp", at("11:00"))
    pending_hours(db)
    fetch(db, "DELETE FROM analytics_spec_limits WHERE valid_from = %s", at("09:00"))
    assert pending_hours(db) == both(9, 10)


def test_two_edits_in_one_transaction_cover_every_moment_that_changed(db: Settings) -> None:
    fetch(db, LIMIT, "mc-01", "temp", at("07:00"))
    fetch(db, LIMIT, "mc-01", "temp", at("10:00"))
    pending_hours(db)
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute(
            "UPDATE analytics_spec_limits SET valid_from = %s WHERE valid_from = %s", (at("11:00"), at("07:00"))
        )
        cursor.execute(
            "UPDATE analytics_spec_limits SET valid_from = %s WHERE valid_from = %s", (at("08:00"), at("10:00"))
        )
        conn.commit()
    assert pending_hours(db) == both(7, 8, 9, 10, 11, 12)


def test_a_rolled_back_edit_invalidates_nothing(db: Settings) -> None:
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute(LIMIT, ("mc-01", "temp", at("07:00")))
        conn.rollback()
    assert pending_hours(db) == both()


def test_hours_below_the_retention_floor_are_not_invalidated(db: Settings) -> None:
    fetch(db, "INSERT INTO retention_floor VALUES ('sensor', 'window_aggregates', %s)", at("11:00"))
    fetch(db, LIMIT, "mc-01", "temp", "-infinity")
    assert pending_hours(db) == both(11, 12)


def test_an_edit_without_the_search_path_finds_its_tables(db: Settings) -> None:
    with connection(engine_for(db)) as conn, conn.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = public")
        cursor.execute(
            LIMIT.replace("analytics_spec_limits", "analytics.analytics_spec_limits"), ("m", "temp", at("12:00"))
        )
        conn.commit()
    assert pending_hours(db) == both(12)
