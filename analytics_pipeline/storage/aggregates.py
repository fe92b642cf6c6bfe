"""Rows of ``window_aggregates``: read as frames, replaced so that only what changed is touched and told."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from analytics_pipeline.records import from_us, to_us
from analytics_pipeline.stages.windows import WINDOW_SCHEMA
from analytics_pipeline.storage.binary_copy import FixedTable, PgType, copy_out, copy_out_with_payload
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.series import BY_SERIES

_TYPES: dict[str, PgType] = {
    "bucket_start": "timestamptz",
    "window_s": "int4",
    "series_id": "int4",
    "count_n": "int8",
    "avg_val": "float8",
    "m2": "float8",
    "min_val": "float8",
    "max_val": "float8",
    "first_val": "float8",
    "first_time": "timestamptz",
    "last_val": "float8",
    "last_time": "timestamptz",
    "p50": "float8",
    "p95": "float8",
    "p99": "float8",
    "base_n": "int4",
    "coverage": "float8",
    "tw_integral": "float8",
    "tw_covered_s": "float8",
}
_TABLE = FixedTable(tuple(_TYPES.items()))
_JUDGED = FixedTable(
    tuple(
        (name, _TYPES[name])
        for name in ("bucket_start", "window_s", "series_id", "count_n", "avg_val", "min_val", "max_val")
    )
)
_HISTORY = FixedTable(tuple((name, _TYPES[name]) for name in ("bucket_start", "series_id", "avg_val")))
_KEY = ("window_s", "bucket_start", "series_id")
_VALUES = tuple(name for name in (*_TYPES, "sketch") if name not in _KEY)
_NAMES = ", ".join((*_TYPES, "sketch"))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Windows of one size, by their starts in microseconds: what a recomputation stands for."""

    window_s: int
    starts_us: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a replacement changed: windows by (window_s, start in microseconds), rows added and removed."""

    changed: frozenset[tuple[int, int]]
    added: int
    removed: int


def _us_columns(frame: pl.DataFrame) -> pl.DataFrame:
    times = ("bucket_start", "first_time", "last_time")
    return frame.rename({name: f"{name}_us" for name in times if name in frame.columns})


def read_children(
    connection: Connection, domain: str, child_s: int, parents: Buckets, without: Iterable[int]
) -> pl.DataFrame:
    """Stored windows of ``child_s`` inside some larger windows, without those that begin at ``without``."""
    starts = [from_us(start) for start in parents.starts_us]
    query = (
        f"SELECT {', '.join(f'w.{name}' for name in (*_TYPES, 'sketch'))} FROM window_aggregates w "
        f"JOIN measurement_series s ON {BY_SERIES.format('w')} WHERE s.domain = %s AND w.window_s = %s AND ("
        + " OR ".join(["(w.bucket_start >= %s AND w.bucket_start < %s)"] * len(starts))
        + ") AND NOT (w.bucket_start = ANY(%s::timestamptz[]))"
    )
    length = timedelta(seconds=parents.window_s)
    bounds = [moment for start in starts for moment in (start, start + length)]
    known = [from_us(start) for start in without]
    columns, sketches = copy_out_with_payload(connection, query, (domain, child_s, *bounds, known), _TABLE)
    frame = _us_columns(pl.DataFrame(dict(columns)))
    return frame.with_columns(pl.Series("sketch", sketches, pl.Binary)).cast(WINDOW_SCHEMA)  # type: ignore[arg-type]


def read_judged(
    connection: Connection, domain: str, window_s: int, begins: datetime, ends: datetime
) -> pl.DataFrame:
    """What detectors and KPIs see of the windows of one size that begin in a span."""
    query = (
        f"SELECT {', '.join(f'w.{name}' for name in _JUDGED.names)} FROM window_aggregates w "
        f"JOIN measurement_series s ON {BY_SERIES.format('w')} "
        "WHERE s.domain = %s AND w.window_s = %s AND w.bucket_start >= %s AND w.bucket_start < %s"
    )
    return _us_columns(pl.DataFrame(copy_out(connection, query, (domain, window_s, begins, ends), _JUDGED)))


def read_history(
    connection: Connection,
    series_ids: Sequence[int],
    window_s: int,
    before: datetime,
    look_back: timedelta,
    windows: int,
) -> pl.DataFrame:
    """The last windows of each series before a time, at most so many and not older than the look-back."""
    query = (
        f"SELECT {', '.join(f'w.{name}' for name in _HISTORY.names)} FROM unnest(%s::int[]) wanted (series_id) "
        "CROSS JOIN LATERAL (SELECT * FROM window_aggregates a WHERE a.series_id = wanted.series_id "
        "AND a.window_s = %s AND a.bucket_start < %s AND a.bucket_start >= %s "
        "ORDER BY a.bucket_start DESC LIMIT %s) w"
    )
    parameters = (list(series_ids), window_s, before, before - look_back, windows)
    return _us_columns(pl.DataFrame(copy_out(connection, query, parameters, _HISTORY)))


def replace(
    connection: Connection,
    domain: str,
    frame: pl.DataFrame,
    scope: Sequence[Buckets],
    final_until: datetime | None,
) -> Replaced:
    """The windows of a scope become those of the frame.

    A row whose figures are the same is not touched. One that differs counts a revision if its window was final:
    its end is not after ``final_until``.
    """
    _fill_incoming(connection, frame)
    differs = (
        f"({', '.join(f'kept.{name}' for name in _VALUES)}) IS DISTINCT FROM "
        f"({', '.join(f'EXCLUDED.{name}' for name in _VALUES)})"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO window_aggregates AS kept ({_NAMES}) SELECT {_NAMES} FROM incoming_windows "
            f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
            + ", ".join(f"{name} = EXCLUDED.{name}" for name in _VALUES)
            + ", updated_at = clock_timestamp(), revision = kept.revision + "
            "(kept.bucket_start + make_interval(secs => kept.window_s) "
            "<= coalesce(%s, '-infinity'::timestamptz))::int "
            f"WHERE {differs} RETURNING window_s, bucket_start, (xmax = 0)",
            (final_until,),
        )
        written = cursor.fetchall()
        cursor.execute(
            "DELETE FROM window_aggregates w USING measurement_series s, "
            "unnest(%s::int[], %s::timestamptz[]) scope (window_s, bucket_start) "
            "WHERE w.window_s = scope.window_s AND w.bucket_start = scope.bucket_start "
            "AND s.series_id = w.series_id AND s.domain = %s AND NOT EXISTS (SELECT FROM incoming_windows i "
            f"WHERE {' AND '.join(f'i.{name} = w.{name}' for name in _KEY)}) RETURNING w.window_s, w.bucket_start",
            (
                [part.window_s for part in scope for _ in part.starts_us],
                [from_us(start) for part in scope for start in part.starts_us],
                domain,
            ),
        )
        removed = cursor.fetchall()
    changed = {(size, to_us(start)) for size, start, *_ in (*written, *removed)}
    return Replaced(frozenset(changed), sum(1 for row in written if row[2]), len(removed))


def _fill_incoming(connection: Connection, frame: pl.DataFrame) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE IF NOT EXISTS incoming_windows "
            "(LIKE window_aggregates INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
        )
        cursor.execute("DELETE FROM incoming_windows")
        text = frame.with_columns(
            pl.concat_str(pl.lit("\\x"), pl.col("sketch").bin.encode("hex")).alias("sketch"),
            *(
                pl.from_epoch(pl.col(f"{name}_us"), time_unit="us").dt.strftime("%Y-%m-%d %H:%M:%S%.6f+00")
                for name in ("bucket_start", "first_time", "last_time")
            ),
        )
        columns = ", ".join(name.removesuffix("_us") for name in frame.columns)
        cursor.copy_expert(
            f"COPY incoming_windows ({columns}) FROM STDIN (FORMAT csv)",
            io.BytesIO(text.write_csv(include_header=False).encode()),
        )


def final_until(connection: Connection, domain: str) -> datetime | None:
    """Windows of a domain that end until then are final. None: nothing was seen of it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT final_until FROM domain_watermark WHERE domain = %s", (domain,))
        row = cursor.fetchone()
    return row[0] if row else None
