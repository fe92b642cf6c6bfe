"""Master data as computations read it: frames by table, kept by version. Not here: files and their import."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import polars as pl

from analytics_pipeline.master_data.catalog import BY_NAME
from analytics_pipeline.master_data.spec import Kind, MasterColumn, MasterTable
from analytics_pipeline.storage.engine import Connection

#: How PostgreSQL stores each kind, by the names in its catalogue.
PG_TYPES: Mapping[Kind, str] = {
    "text": "text",
    "number": "float8",
    "whole number": "int8",
    "yes or no": "bool",
    "moment": "timestamptz",
    "date": "date",
    "wall time": "time",
    "zone": "text",
    "JSON object": "jsonb",
}
_POLARS: Mapping[Kind, Any] = {
    "text": pl.String(),
    "number": pl.Float64(),
    "whole number": pl.Int64(),
    "yes or no": pl.Boolean(),
    "moment": pl.Int64(),
    "date": pl.Date(),
    "wall time": pl.Int64(),
    "zone": pl.String(),
    "JSON object": pl.String(),
}


def frame_name(column: MasterColumn) -> str:
    """In frames, moments are microseconds since the Unix epoch, null: since ever; wall times seconds after midnight."""
    return column.name + {"moment": "_us", "wall time": "_s"}.get(column.kind, "")


def frame_schema(table: MasterTable) -> dict[str, Any]:
    """The polars schema of a table's rows."""
    return {frame_name(column): _POLARS[column.kind] for column in table.columns if column.name != "note"}


class MasterDataDirectory:
    """The tables of master data as of a version: most computations read none that is new."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._frames: dict[str, pl.DataFrame] = {}
        self._lock = Lock()

    def rows(self, connection: Connection, version: int, name: str) -> pl.DataFrame:
        """A table as this snapshot, whose version is given, sees it: `frame_schema`, in the order of its key.

        Args:
            name: as in `catalog.BY_NAME`.
        """
        with self._lock:
            if version != self._version:
                self._frames, self._version = {}, version
            if name not in self._frames:
                self._frames[name] = _read(connection, BY_NAME[name])
            return self._frames[name]


def _read(connection: Connection, table: MasterTable) -> pl.DataFrame:
    columns = [column for column in table.columns if column.name != "note"]
    # Rows that tell nothing apart are taken in the order in which they were made.
    order = "spec_id" if "spec_id" in table.by_name else ", ".join(f'"{name}"' for name in table.key)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(_selected(column) for column in columns)} FROM {table.table_name} ORDER BY {order}"
        )
        return pl.DataFrame(cursor.fetchall(), schema=frame_schema(table), orient="row")


def _selected(column: MasterColumn) -> str:
    name = f'"{column.name}"'
    if column.kind == "moment":
        return f"(extract(epoch FROM nullif({name}, '-infinity')) * 1000000)::bigint"
    if column.kind == "wall time":
        return f"extract(epoch FROM {name})::bigint"
    return f"{name}::text" if column.kind == "JSON object" else name
