"""Connections: one engine per process, the schema first on the search path, times in UTC. No tables here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, create_engine, event

from analytics_pipeline.settings import Settings

APPLICATION_NAME = "analytics-pipeline"

#: How soon the server notices, in the middle of a query, that the process at the other end was killed. Until
#: then a dead worker's session would hold the lock on its hour.
CLIENT_CHECK_MS = 5000

#: How soon this side notices that the server is out of reach: 20 s for what was sent and not acknowledged, and
#: 10 + 3 x 5 s of silence. Without them a connection through a network that swallows packets hangs for hours.
TCP_LIMITS: Mapping[str, int] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

#: A psycopg2 connection. COPY needs the driver itself, so that storage speaks psycopg2 and the engine pools.
Connection = Any


def make_engine(settings: Settings, *, database: str | None = None) -> Engine:
    """A pooled engine whose connections find the pipeline's schema first and speak UTC."""
    options = (
        f"-c search_path={settings.db_schema},public -c timezone=UTC "
        f"-c statement_timeout={settings.db_statement_timeout_s * 1000} "
        f"-c idle_in_transaction_session_timeout={settings.db_statement_timeout_s * 1000} "
        f"-c client_connection_check_interval={CLIENT_CHECK_MS} "
        # Rebuilding a compressed hour decompresses more rows than TimescaleDB's default limit. PostgreSQL without
        # TimescaleDB takes the name as a placeholder.
        "-c timescaledb.max_tuples_decompressed_per_dml_transaction=0"
    )
    limits = {"connect_timeout": 10, **TCP_LIMITS}
    engine = create_engine(
        settings.db_url(database),
        pool_size=settings.db_pool_size,
        max_overflow=settings.db_pool_size,
        pool_pre_ping=True,
        connect_args={"options": options, "application_name": APPLICATION_NAME, **limits},
    )

    event.listen(engine, "reset", _forget_session)
    return engine


def _forget_session(connection: Any, _record: Any, _state: Any) -> None:
    """Leave no transaction and no advisory lock on a connection that goes back to the pool.

    Nobody would wait for such a lock's owner: it is held for as long as the connection lives.
    """
    if connection.closed:
        return
    connection.rollback()
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock_all()")
    connection.autocommit = False


@lru_cache(maxsize=8)
def _engine_of_process(settings: Settings, _pid: int) -> Engine:
    return make_engine(settings)


def engine_for(settings: Settings) -> Engine:
    """This process's engine. Celery forks its workers: a pool must not cross the fork, hence the pid."""
    return _engine_of_process(settings, os.getpid())


@contextmanager
def connection(engine: Engine, *, autocommit: bool = False) -> Iterator[Connection]:
    """A psycopg2 connection of the pool. Rolls back whatever was not committed."""
    pooled = engine.raw_connection()
    driver: Any = pooled.driver_connection
    try:
        if autocommit:
            driver.autocommit = True
        yield driver
    finally:
        try:
            if not driver.closed:
                driver.rollback()
                driver.autocommit = False
        finally:
            pooled.close()
