"""The tests' own servers: what would make a clean-up fail now and then is not left to chance."""

from __future__ import annotations

import psycopg2
import pytest

from analytics_pipeline.settings import Settings
from analytics_pipeline_tests.conftest import DatabaseServer
from analytics_pipeline_tests.integration.test_migrate import fetch

#: TimescaleDB starts its scheduler within a second of CREATE EXTENSION.
_SESSIONS_OF_OTHERS = """
SELECT pg_sleep(1), array(SELECT backend_type FROM pg_stat_activity
                          WHERE datname = current_database() AND backend_type <> 'client backend'
                              AND backend_type NOT IN ('autovacuum worker', 'parallel worker'))
"""


def test_no_background_worker_holds_a_test_database(database_settings: Settings) -> None:
    assert fetch(database_settings, _SESSIONS_OF_OTHERS)[0][1] == []


def test_a_database_is_dropped_with_the_sessions_in_it(
    postgres_server: DatabaseServer, database_settings: Settings
) -> None:
    connection = psycopg2.connect(database_settings.db_url().render_as_string(False).replace("+psycopg2", ""))
    postgres_server.drop(database_settings.db_name)
    with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        fetch(database_settings, "SELECT 1")
