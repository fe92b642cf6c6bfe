"""The lock of one (asset, hour): whoever computes it, live, by hand or in a backfill, holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from psycopg2.extensions import ISOLATION_LEVEL_DEFAULT, ISOLATION_LEVEL_REPEATABLE_READ

from analytics_pipeline.records import HOUR_S, AssetName
from analytics_pipeline.storage.engine import Connection


@contextmanager
def hour_lock(conn: Connection, asset: AssetName, hour: datetime) -> Iterator[None]:
    """Holds (asset, hour) for this session, and only then lets the snapshot open.

    An advisory lock of the session, not of the transaction: waiting for the latter would already take the
    snapshot, and the run would not see what the run before it committed. It goes with the connection.
    """
    hours = int(hour.timestamp()) // HOUR_S
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtext(current_schema() || %s), %s)", (asset, hours))
    try:
        conn.autocommit = False
        conn.set_session(isolation_level=ISOLATION_LEVEL_REPEATABLE_READ)
        yield
    finally:
        if not conn.closed:
            conn.rollback()
            conn.set_session(isolation_level=ISOLATION_LEVEL_DEFAULT)
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtext(current_schema() || %s), %s)", (asset, hours))
            conn.autocommit = False
