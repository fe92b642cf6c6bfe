"""Rows of ``anomalies`` and ``kpis``: a scope's rows are replaced when they differ. Master data that they need."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl
from psycopg2.extras import execute_values

from analytics_pipeline.domains.base import SeriesKey
from analytics_pipeline.records import from_us, to_us
from analytics_pipeline.stages.anomalies import ANOMALY_SCHEMA
from analytics_pipeline.stages.kpis import KPI_SCHEMA
from analytics_pipeline.storage.engine import Connection

LIMIT_SCHEMA: dict[str, pl.DataType] = {
    "series_id": pl.Int32(),
    "valid_from_us": pl.Int64(),
    "valid_to_us": pl.Int64(),
    "lsl": pl.Float64(),
    "usl": pl.Float64(),
}
_ANOMALIES = ("bucket_start", *tuple(ANOMALY_SCHEMA)[1:])
_KPI_VALUES = ["domain" if name == "domain_id" else name for name in KPI_SCHEMA if name != "bucket_start_us"]
_KPIS = ("bucket_start", *_KPI_VALUES)


def read_anomalies(connection: Connection, domain: str, begins: datetime, ends: datetime) -> pl.DataFrame:
    """The anomalies of a domain whose windows begin in a span, as `stages.anomalies.detect` gives them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT a.bucket_start, a.window_s, a.series_id, a.detector, a.anomaly_id::text, a.severity, a.value, "
            "a.score, a.detail::text FROM anomalies a JOIN measurement_series s USING (series_id) "
            "WHERE s.domain = %s AND a.bucket_start >= %s AND a.bucket_start < %s "
            "ORDER BY a.bucket_start, a.series_id, a.detector",
            (domain, begins, ends),
        )
        rows = [(to_us(row[0]), *row[1:]) for row in cursor.fetchall()]
    return pl.DataFrame(rows, schema=ANOMALY_SCHEMA, orient="row")


def replace_anomalies(
    connection: Connection, domain: str, begins: datetime, ends: datetime, frame: pl.DataFrame
) -> bool:
    """The anomalies of a span become those of the frame; returns whether any differs."""
    compared = [name for name in ANOMALY_SCHEMA if name != "detail"]
    stored = read_anomalies(connection, domain, begins, ends)
    if stored.select(compared).equals(frame.select(compared)):
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM anomalies a USING measurement_series s WHERE s.series_id = a.series_id "
            "AND s.domain = %s AND a.bucket_start >= %s AND a.bucket_start < %s",
            (domain, begins, ends),
        )
        execute_values(
            cursor,
            f"INSERT INTO anomalies ({', '.join(_ANOMALIES)}) VALUES %s",
            [(from_us(start), *rest) for start, *rest in frame.select(list(ANOMALY_SCHEMA)).iter_rows()],
            page_size=1000,
        )
    return True


def count_anomalies(connection: Connection, domain: str, begins: datetime, ends: datetime) -> int:
    """How many anomalies a span holds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM anomalies a JOIN measurement_series s USING (series_id) "
            "WHERE s.domain = %s AND a.bucket_start >= %s AND a.bucket_start < %s",
            (domain, begins, ends),
        )
        return int(cursor.fetchone()[0])


def replace_kpis(connection: Connection, domain: str, hour: datetime, frame: pl.DataFrame) -> bool:
    """The KPIs of an hour become those of the frame; returns whether any differs."""
    rows = [(hour, *row) for row in frame.select(_KPI_VALUES).iter_rows()]
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(_KPIS)} FROM kpis WHERE bucket_start = %s AND domain = %s", (hour, domain)
        )
        if set(cursor.fetchall()) == set(rows):
            return False
        cursor.execute("DELETE FROM kpis WHERE bucket_start = %s AND domain = %s", (hour, domain))
        execute_values(cursor, f"INSERT INTO kpis ({', '.join(_KPIS)}) VALUES %s", rows, page_size=1000)
    return True


def series_frame(series: Sequence[tuple[int, SeriesKey]]) -> pl.DataFrame:
    """The series dimension as a frame."""
    schema = {"series_id": pl.Int32(), **dict.fromkeys(SeriesKey._fields, pl.String())}
    return pl.DataFrame([(number, *key) for number, key in series], schema=schema, orient="row")


def spec_limits(connection: Connection, series: Sequence[tuple[int, SeriesKey]]) -> pl.DataFrame:
    """The limits in force for each series: `LIMIT_SCHEMA`, spans of one series never overlap.

    Of the rows that match a series, those that name the most win; among these each holds from its
    ``valid_from`` until the next one's.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT metric, tenant_id, factory_id, machine_id, sensor_id, lsl, usl, "
            "nullif(valid_from, '-infinity') FROM analytics_spec_limits ORDER BY valid_from"
        )
        limits = cursor.fetchall()
    rows: list[tuple[object, ...]] = []
    for number, key in series:
        rows += [(number, *span) for span in _spans(key, limits)]
    return pl.DataFrame(rows, schema=LIMIT_SCHEMA, orient="row")


def _spans(key: SeriesKey, limits: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """(valid_from_us, valid_to_us, lsl, usl) of one series, in time order."""
    names = (key.tenant_id, key.factory_id, key.machine_id, key.sensor_id)
    matching = [
        (sum(wanted is not None for wanted in row[1:5]), row)
        for row in limits
        if row[0] == key.metric and all(w is None or w == n for w, n in zip(row[1:5], names, strict=True))
    ]
    # From each instant on at which some row begins, the most specific row that has begun is in force.
    instants = sorted({row[7] for _, row in matching if row[7] is not None})  # type: ignore[type-var]
    spans: list[tuple[object, ...]] = []
    for at, until in zip([None, *instants], [*instants, None], strict=True):
        begun = [(named, row) for named, row in matching if row[7] is None or (at is not None and row[7] <= at)]  # type: ignore[operator]
        if begun:
            row = max(enumerate(begun), key=lambda one: (one[1][0], one[0]))[1][1]
            spans.append((_us(at), _us(until), row[5], row[6]))
    return spans


def _us(moment: object) -> int | None:
    return to_us(moment) if isinstance(moment, datetime) else None
