"""Rows of master data as files tell them: read, and written by an import. Not here: what computations read of them.

Writing is ordinary SQL: the triggers of the tables turn it into pending work, as they do with any other edit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg2.extras import execute_values

from analytics_pipeline.master_data.changes import Changes
from analytics_pipeline.master_data.spec import MasterColumn, MasterTable, Row
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.master_data import PG_TYPES

#: Rows of one statement.
PAGE = 1000


def lock(connection: Connection, tables: Iterable[MasterTable]) -> None:
    """Lets nobody else edit these tables until this transaction ends; everybody may read them."""
    names = ", ".join(sorted(table.table_name for table in tables))
    with connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


def read_rows(connection: Connection, table: MasterTable) -> list[Row]:
    """Every row of a table, by column, as files have them, in the order of its key. A time of None: since ever."""
    names = [column.name for column in table.in_files]
    order = ", ".join(f'"{name}"' + _order(table.by_name[name]) for name in table.key)
    selected = ", ".join(_selected(column) for column in table.in_files)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {selected} FROM {table.table_name} ORDER BY {order}")
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _order(column: MasterColumn) -> str:
    return (' COLLATE "C"' if PG_TYPES[column.kind] == "text" else "") + " NULLS FIRST"


def _selected(column: MasterColumn) -> str:
    name = f'"{column.name}"'
    return f"nullif({name}, '-infinity')" if column.kind == "moment" else name


def write(connection: Connection, changes: Changes, edited_by: str) -> None:
    """Insert, change and delete, in the transaction of the caller."""
    table = changes.table
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('analytics_pipeline.edited_by', %s, true)", (edited_by,))
        _delete(cursor, table, changes.removed)
        _upsert(cursor, table, [*changes.added, *(one.after for one in changes.changed)])


def _upsert(cursor: Any, table: MasterTable, rows: Sequence[Row]) -> None:
    names = [column.name for column in table.in_files]
    listed = ", ".join(f'"{name}"' for name in names)
    key = ", ".join(f'"{name}"' for name in table.key)
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in table.key)
    execute_values(
        cursor,
        f"INSERT INTO {table.table_name} ({listed}) VALUES %s ON CONFLICT ({key}) DO UPDATE SET {updates}",
        [tuple(_stored(column, row[column.name]) for column in table.in_files) for row in rows],
        page_size=PAGE,
    )


def _delete(cursor: Any, table: MasterTable, rows: Sequence[Row]) -> None:
    columns = [table.by_name[name] for name in table.key]
    matches = " AND ".join(
        f't."{column.name}" IS NOT DISTINCT FROM v.c{at}::{PG_TYPES[column.kind]}' for at, column in enumerate(columns)
    )
    execute_values(
        cursor,
        f"DELETE FROM {table.table_name} t USING (VALUES %s) v ({', '.join(f'c{at}' for at in range(len(columns)))}) "
        f"WHERE {matches}",
        [tuple(_stored(column, row[column.name]) for column in columns) for row in rows],
        page_size=PAGE,
    )


def _stored(column: MasterColumn, value: Any) -> Any:
    if column.kind == "moment":
        return "-infinity" if value is None else value
    return json.dumps(value) if column.kind == "JSON object" else value


def hours_asked_for(connection: Connection) -> Mapping[str, int]:
    """By asset, how many hours of domains this transaction's edits ask for. Takes the lock that edits take at their
    commit: commit or roll back soon after."""
    with connection.cursor() as cursor:
        # So that what is pending besides is not read while edits and commits wait.
        cursor.execute("SELECT coalesce(max(work_id), 0) FROM pending_work")
        (last,) = cursor.fetchone()
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(
            "SELECT asset, count(DISTINCT (domain_id, hour)) FROM pending_work "
            "WHERE work_id > %s AND xmin = pg_current_xact_id()::xid GROUP BY asset ORDER BY asset",
            (last,),
        )
        return dict(cursor.fetchall())
