"""Rows of derived tables as frames: read by region, and replaced so that only what differs is written.

One way for every table: its columns come from its `TableSpec`. No asset is known here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from analytics_pipeline.records import Region, from_us, to_us
from analytics_pipeline.storage.binary_copy import FixedTable, copy_in, copy_out, copy_out_with_payload
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.tables import Column, TableSpec, schema_of

#: Statements put together at most; more regions are read in several goes.
REGIONS_PER_STATEMENT = 500
#: PostgreSQL's text form of a time, as polars writes it.
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S%.6f+00"


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a replacement wrote, as frames of the table's key columns.

    Attributes:
        changed: rows that are new or differ, and rows that are gone: what depends on them is stale.
        added, removed: rows that the table holds more, and those that it holds no longer.
        written: new and changed rows.
    """

    changed: pl.DataFrame
    added: pl.DataFrame
    removed: pl.DataFrame
    written: int


# ---------------------------------------------------------------------- reading


def read_regions(
    connection: Connection,
    table: TableSpec,
    regions: Sequence[Region],
    *,
    names: Sequence[str] | None = None,
    window_s: int | None = None,
    series_range: tuple[int, int] | None = None,
) -> pl.DataFrame:
    """The rows of some regions, as a frame of the table's columns or of those named; of one window size and a
    half-open range of series, where these are given.

    Each region is a range of the primary key that stands in the statement as constants: the plan hangs on no
    statistics, and reads no row of another domain.
    """
    columns = table.subset(names)
    frames = [
        _read(connection, table, columns, regions[at : at + REGIONS_PER_STATEMENT], window_s, series_range)
        for at in range(0, len(regions), REGIONS_PER_STATEMENT)
    ]
    return pl.concat(frames) if frames else table.empty(names)


def _read(
    connection: Connection,
    table: TableSpec,
    columns: Sequence[Column],
    regions: Sequence[Region],
    window_s: int | None,
    series_range: tuple[int, int] | None,
) -> pl.DataFrame:
    selected = ", ".join(f'"{column.name}"' for column in columns)
    parts: list[str] = []
    parameters: list[Any] = []
    for region in regions:
        condition, values = _condition(table, region, window_s, series_range)
        parts.append(f"SELECT {selected} FROM {table.name} WHERE {condition}")
        parameters += values
    return read_query(connection, " UNION ALL ".join(parts), parameters, columns)


def read_query(
    connection: Connection, query: str, parameters: Sequence[Any], columns: Sequence[Column]
) -> pl.DataFrame:
    """The result of a query, whose columns are these in order, as a frame."""
    types = schema_of(columns)
    if all(column.is_fixed for column in columns):
        found = copy_out(connection, query, parameters, _fixed(columns))
        return pl.DataFrame({c.frame_name: found[c.name] for c in columns}, schema=types)
    if columns[-1].type == "bytea" and all(column.is_fixed for column in columns[:-1]):
        found, payloads = copy_out_with_payload(connection, query, parameters, _fixed(columns[:-1]))
        frame = pl.DataFrame({c.frame_name: found[c.name] for c in columns[:-1]})
        return frame.with_columns(pl.Series(columns[-1].frame_name, payloads, pl.Binary)).cast(types)  # type: ignore[arg-type]
    return _read_text(connection, query, parameters, columns)


def _read_text(
    connection: Connection, query: str, parameters: Sequence[Any], columns: Sequence[Column]
) -> pl.DataFrame:
    """As `read_query`, of columns that may be texts or NULL: as CSV, in which texts are quoted and NULL is not."""
    quoted = ", ".join(f'"{column.name}"' for column in columns if column.type == "text")
    selected = ", ".join(
        f'(extract(epoch FROM "{c.name}") * 1000000)::bigint' if c.type == "timestamptz" else f'"{c.name}"'
        for c in columns
    )
    names = ", ".join(f'"{column.name}"' for column in columns)
    stream = io.BytesIO()
    with connection.cursor() as cursor:
        statement = cursor.mogrify(query, parameters).decode()
        force = f", FORCE_QUOTE ({quoted})" if quoted else ""
        cursor.copy_expert(
            f"COPY (SELECT {selected} FROM ({statement}) found ({names})) TO STDOUT (FORMAT csv{force})", stream
        )
    if not stream.tell():
        return pl.DataFrame(schema=schema_of(columns))
    stream.seek(0)
    return pl.read_csv(stream, has_header=False, schema=schema_of(columns))


def _fixed(columns: Sequence[Column]) -> FixedTable:
    return FixedTable(tuple((column.name, column.type) for column in columns))  # type: ignore[misc]


def _condition(
    table: TableSpec, region: Region, window_s: int | None = None, series_range: tuple[int, int] | None = None
) -> tuple[str, list[Any]]:
    time = f'"{table.time_column}"'
    parts = ["domain_id = %s", f"{time} >= %s", f"{time} < %s"]
    values: list[Any] = [region.domain_id, from_us(region.begins_us), from_us(region.ends_us)]
    if window_s is not None:
        parts.append("window_s = %s")
        values.append(window_s)
    if region.series is not None:
        parts.append("series_id = ANY(%s)")
        values.append(list(region.series))
    if series_range is not None:
        parts.append("series_id >= %s AND series_id < %s")
        values += series_range
    return " AND ".join(parts), values


# ---------------------------------------------------------------------- replacing


@dataclass(frozen=True, slots=True)
class Difference:
    """Attributes:
    differs: rows of what is wanted that are new or differ.
    is_new: of each of these, whether its key is not stored.
    gone: stored rows whose key is not wanted.
    """

    differs: pl.DataFrame
    is_new: pl.Series
    gone: pl.DataFrame


def difference(table: TableSpec, stored: pl.DataFrame, wanted: pl.DataFrame) -> Difference:
    """What tells the wanted rows from those stored. Every column of the table counts but those of bookkeeping.

    Matched by key and then compared column by column: a join on all columns would write each row, its sketch too, into
    one long key.
    """
    if stored.is_empty():
        return Difference(wanted, pl.repeat(True, wanted.height, dtype=pl.Boolean, eager=True), stored)
    key = list(table.frame_key)
    numbered = stored.select(key).with_row_index("stored row")
    at = wanted.select(key).join(numbered, on=key, how="left", nulls_equal=True, maintain_order="left")["stored row"]
    same, row = at.is_not_null(), at.fill_null(0)
    for name in table.schema():
        if name not in key:
            same &= wanted[name].eq_missing(stored[name].gather(row))
    gone = stored.join(wanted.select(key), on=key, how="anti", nulls_equal=True)
    return Difference(wanted.filter(~same), at.filter(~same).is_null(), gone)


def replace(connection: Connection, table: TableSpec, stored: pl.DataFrame, wanted: pl.DataFrame) -> Replaced:
    """The stored rows of a scope, which were read under its lock, become those wanted; the same are not touched."""
    key = list(table.frame_key)
    found = difference(table, stored, wanted)
    differs, gone = found.differs, found.gone
    delete_keys(connection, table, gone)
    if found.is_new.all():
        copy_frame(connection, table.name, table, differs)
    else:
        upsert(connection, table, differs)
    return Replaced(
        changed=pl.concat([differs.select(key), gone.select(key)]),
        added=differs.filter(found.is_new).select(key),
        removed=gone.select(key),
        written=differs.height,
    )


def copy_frame(connection: Connection, target: str, table: TableSpec, frame: pl.DataFrame) -> None:
    """COPY a frame into a table that has the columns of the spec; all rows are new."""
    if not frame.height:
        return
    columns = [column for column in table.by_name.values() if column.frame_name in frame.columns]
    if all(column.is_fixed for column in columns):
        values = {column.name: frame[column.frame_name].to_numpy() for column in columns}
        copy_in(connection, target, _fixed(columns), values)
        return
    text = frame.select(_as_text(column) for column in columns)
    names = ", ".join(f'"{column.name}"' for column in columns)
    with connection.cursor() as cursor:
        cursor.copy_expert(
            f"COPY {target} ({names}) FROM STDIN (FORMAT csv)",
            io.BytesIO(text.write_csv(include_header=False, quote_style="non_numeric").encode()),
        )


def _as_text(column: Column) -> pl.Expr:
    value = pl.col(column.frame_name)
    if column.type == "bytea":
        return pl.concat_str(pl.lit("\\x"), value.bin.encode("hex")).alias(column.name)
    if column.type == "timestamptz":
        return pl.from_epoch(value, time_unit="us").dt.strftime(_TIME_FORMAT).alias(column.name)
    return value


def upsert(connection: Connection, table: TableSpec, frame: pl.DataFrame) -> None:
    """Insert rows, or put them in the place of those with the same key."""
    if not frame.height:
        return
    names = [column.name for column in table.by_name.values() if column.frame_name in frame.columns]
    listed = ", ".join(f'"{name}"' for name in names)
    incoming = f"incoming_{table.name}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS {incoming} (LIKE {table.name} INCLUDING DEFAULTS) ON COMMIT DROP"
        )
        cursor.execute(f"TRUNCATE {incoming}")
        copy_frame(connection, incoming, table, frame)
        updates = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in names if name not in table.key)
        key = ", ".join(f'"{name}"' for name in table.key)
        cursor.execute(
            f"INSERT INTO {table.name} ({listed}) SELECT {listed} FROM {incoming} "
            f"ON CONFLICT ({key}) DO UPDATE SET {updates}{table.touched_sql}"
        )


def delete_keys(connection: Connection, table: TableSpec, keys: pl.DataFrame) -> pl.DataFrame:
    """Delete rows by key; returns domain and time of those that were there. The first and the last time stand in the
    statement, so that chunks are left out."""
    returned = table.subset(("domain_id", table.time_column))
    if not keys.height:
        return pl.DataFrame(schema=schema_of(returned))
    columns = [table.by_name[name] for name in table.key]
    gone = f"gone_{table.name}"
    typed = ", ".join(f'"{column.name}" {column.type}' for column in columns)
    matches = " AND ".join(
        f't."{c.name}" {"IS NOT DISTINCT FROM" if c.nullable else "="} g."{c.name}"' for c in columns
    )
    times = keys[table.frame_time]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {gone} ({typed}) ON COMMIT DROP")
        cursor.execute(f"TRUNCATE {gone}")
        copy_frame(connection, gone, table, keys.select(table.frame_key))
        cursor.execute(
            f"DELETE FROM {table.name} t USING {gone} g "
            # Said again as constants: a join alone may be planned as a look through every domain's keys.
            f'WHERE {matches} AND t.domain_id = ANY(%s) '
            f'AND t."{table.time_column}" >= %s AND t."{table.time_column}" <= %s '
            f'RETURNING t.domain_id, t."{table.time_column}"',
            (
                keys["domain_id"].unique(maintain_order=True).to_list(),
                from_us(int(times.min())),  # type: ignore[arg-type]
                from_us(int(times.max())),  # type: ignore[arg-type]
            ),
        )
        deleted = [(domain_id, to_us(moment)) for domain_id, moment in cursor.fetchall()]
    return pl.DataFrame(deleted, schema=schema_of(returned), orient="row")


def delete_regions(connection: Connection, table: TableSpec, regions: Iterable[Region]) -> int:
    """Delete every row of some regions; returns how many there were."""
    removed = 0
    with connection.cursor() as cursor:
        for region in regions:
            condition, values = _condition(table, region)
            cursor.execute(f"DELETE FROM {table.name} WHERE {condition}", values)
            removed += int(cursor.rowcount)
    return removed
