"""Specification limits as stored, kept by version: most computations read none that are new."""

from __future__ import annotations

from threading import Lock
from typing import Any

import polars as pl

from analytics_pipeline.records import to_us
from analytics_pipeline.storage.engine import Connection

#: Rows of ``analytics_spec_limits``; names that are null match any; times in microseconds, null: since ever.
LIMIT_ROWS: dict[str, Any] = {
    "spec_id": pl.Int64(),
    "tenant_id": pl.String(),
    "factory_id": pl.String(),
    "machine_id": pl.String(),
    "sensor_id": pl.String(),
    "metric": pl.String(),
    "lsl": pl.Float64(),
    "usl": pl.Float64(),
    "valid_from_us": pl.Int64(),
}


class LimitDirectory:
    """The rows of ``analytics_spec_limits`` as of a version of the master data."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._rows = pl.DataFrame(schema=LIMIT_ROWS)
        self._lock = Lock()

    def rows(self, connection: Connection, version: int) -> pl.DataFrame:
        """`LIMIT_ROWS` as this snapshot, whose version is given, sees them."""
        with self._lock:
            if version != self._version:
                self._rows, self._version = _read(connection), version
            return self._rows


def _read(connection: Connection) -> pl.DataFrame:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT spec_id, tenant_id, factory_id, machine_id, sensor_id, metric, lsl, usl, "
            "nullif(valid_from, '-infinity') FROM analytics_spec_limits ORDER BY spec_id"
        )
        rows = [(*row[:8], None if row[8] is None else to_us(row[8])) for row in cursor.fetchall()]
    return pl.DataFrame(rows, schema=LIMIT_ROWS, orient="row")
