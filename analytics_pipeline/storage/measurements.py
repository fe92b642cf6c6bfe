"""Rows of ``normalized_measurements``: replaced by the hour, or merged so that the later of an identity wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy.typing as npt
import psycopg2.errors

from analytics_pipeline.records import HOUR
from analytics_pipeline.storage.binary_copy import FixedTable, copy_in, copy_out
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.series import BY_SERIES

TABLE = FixedTable(
    (
        ("event_time", "timestamptz"),
        ("series_id", "int4"),
        ("sample_key", "int8"),
        ("value", "float8"),
        ("kafka_time", "timestamptz"),
        ("log_id", "int4"),
        ("partition", "int4"),
        ("offset", "int8"),
        ("ordinal", "int4"),
    )
)
_READ = FixedTable(
    (("event_time", "timestamptz"), ("series_id", "int4"), ("sample_key", "int8"), ("value", "float8"))
)
_NAMES = ", ".join(f'"{name}"' for name in TABLE.names)
_ORDER = ("kafka_time", "log_id", "partition", '"offset"', "ordinal")
_MERGE = (
    f"INSERT INTO normalized_measurements AS kept ({_NAMES}) SELECT {_NAMES} FROM incoming "
    "ON CONFLICT (event_time, series_id, sample_key) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in ("value", *_ORDER))
    + f" WHERE ({', '.join(f'EXCLUDED.{name}' for name in _ORDER)}) > "
    f"({', '.join(f'kept.{name}' for name in _ORDER)}) RETURNING (xmax = 0) AS is_new"
)
Columns = Mapping[str, npt.NDArray[Any]]
#: Half-open.
Span = tuple[datetime, datetime]


def merge(connection: Connection, columns: Columns) -> int:
    """Add rows, one an identity; where it exists, the later by (Kafka time, position) stays.

    Returns:
        How many identities are new.

    Nearly always all of them are: so the rows are copied straight in, and only if one exists already they are
    merged through a temporary table, at half the speed.
    """
    with connection.cursor() as cursor:
        cursor.execute("SAVEPOINT before_copy")
        try:
            rows = copy_in(connection, "normalized_measurements", TABLE, columns)
        except psycopg2.errors.UniqueViolation:
            cursor.execute("ROLLBACK TO SAVEPOINT before_copy")
        else:
            cursor.execute("RELEASE SAVEPOINT before_copy")
            return rows
        cursor.execute(
            "CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE normalized_measurements) ON COMMIT DELETE ROWS"
        )
        cursor.execute("DELETE FROM incoming")
        copy_in(connection, "incoming", TABLE, columns)
        cursor.execute(f"WITH merged AS ({_MERGE}) SELECT count(*) FILTER (WHERE is_new) FROM merged")
        return int(cursor.fetchone()[0])


def replace_hour(connection: Connection, domain: str, hour: datetime, columns: Columns) -> int:
    """All rows of a domain's hour become these; returns how many there were before."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM normalized_measurements m USING measurement_series s WHERE {BY_SERIES.format('m')} "
            "AND s.domain = %s AND m.event_time >= %s AND m.event_time < %s",
            (domain, hour, hour + HOUR),
        )
        removed = int(cursor.rowcount)
    copy_in(connection, "normalized_measurements", TABLE, columns)
    return removed


def read(connection: Connection, domain: str, spans: Sequence[Span]) -> dict[str, npt.NDArray[Any]]:
    """The measurements of a domain in spans of event time: ``event_time, series_id, sample_key, value``.

    The spans stand in the statement as constants, so that the planner sees how little they are of the table.
    """
    inside = " OR ".join(["(m.event_time >= %s AND m.event_time < %s)"] * len(spans))
    query = (
        "SELECT m.event_time, m.series_id, m.sample_key, m.value FROM normalized_measurements m "
        f"JOIN measurement_series s ON {BY_SERIES.format('m')} WHERE ({inside}) AND s.domain = %s"
    )
    bounds = [moment for span in spans for moment in span]
    return copy_out(connection, query, (*bounds, domain), _READ)
