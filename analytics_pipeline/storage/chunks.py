"""Chunks of TimescaleDB's hypertables, for retention: dropped whole. Plain tables have none. Not here: what expires."""

from __future__ import annotations

from datetime import datetime

from analytics_pipeline.storage.engine import Connection

_CHUNKS = (
    "FROM timescaledb_information.chunks WHERE hypertable_schema = current_schema() AND hypertable_name = %(table)s"
)


def has_chunks(conn: Connection) -> bool:
    """Whether this database has the extension."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
        return bool(cursor.fetchone()[0])


def drop_before(conn: Connection, table: str, time_column: str, before: datetime) -> int:
    """Drop the chunks that end at or before a moment; returns how many rows they held. The caller commits.

    A DELETE would decompress what it deletes, and leave the empty chunks behind.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            f"SELECT max(range_end) {_CHUNKS} AND range_end <= %(before)s", {"table": table, "before": before}
        )
        end = cursor.fetchone()[0]
        if end is None:
            return 0
        cursor.execute(f"SELECT count(*) FROM {table} WHERE {time_column} < %s", (end,))
        rows = int(cursor.fetchone()[0])
        cursor.execute(
            "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'timescaledb'"
        )
        schema = cursor.fetchone()[0]
        cursor.execute(f"SELECT {schema}.drop_chunks(%s::regclass, older_than => %s::timestamptz)", (table, end))
    return rows


def compressed_chunk_begin(conn: Connection, table: str, moment: datetime) -> datetime | None:
    """Where the compressed chunk that holds a moment begins; None where it is not compressed."""
    with conn.cursor() as cursor:
        cursor.execute(
            f"SELECT min(range_start) {_CHUNKS} AND is_compressed AND range_start < %(at)s AND range_end > %(at)s",
            {"table": table, "at": moment},
        )
        begin: datetime | None = cursor.fetchone()[0]
    return begin
