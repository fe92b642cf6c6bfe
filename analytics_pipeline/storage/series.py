"""The series dimension: names on one side, a small number on the other. Rows are added, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from psycopg2.extras import execute_values
from sqlalchemy import Engine

from analytics_pipeline.domains.base import SeriesKey
from analytics_pipeline.storage.engine import Connection, connection

#: Joins a table that has a span of time as its first condition to the series of its rows. The sum keeps the
#: planner from going through the span once for each series, as it does where it expects few rows of it: with
#: 100 series that took 6 times as long, and it grows with their number.
BY_SERIES = "s.series_id = {}.series_id + 0"


class SeriesDirectory:
    """Finds the number of a series, adding it where it is new.

    New rows are committed at once, on a connection of their own: a series is a name, not a fact about data, and
    two runs that meet the same new name must not wait for each other's data. Numbers are remembered: they never
    change.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, SeriesKey], int] = {}
        self._lock = Lock()

    def numbers(self, domain: str, keys: Sequence[SeriesKey]) -> list[int]:
        """The numbers of some series, in their order."""
        with self._lock:
            missing = [key for key in keys if (domain, key) not in self._known]
            if missing:
                self._load(domain, missing)
            return [self._known[domain, key] for key in keys]

    def _load(self, domain: str, keys: Sequence[SeriesKey]) -> None:
        columns = ", ".join(SeriesKey._fields)
        rows = [(domain, *key) for key in keys]
        with connection(self._engine) as conn, conn.cursor() as cursor:
            execute_values(
                cursor,
                f"INSERT INTO measurement_series (domain, {columns}) VALUES %s ON CONFLICT DO NOTHING",
                rows,
            )
            conn.commit()
            found = execute_values(
                cursor,
                f"SELECT s.series_id, v.{columns.replace(', ', ', v.')} FROM (VALUES %s) v (domain, {columns}) "
                "JOIN measurement_series s ON s.domain = v.domain AND s.metric = v.metric "
                + " ".join(
                    f"AND s.{field} IS NOT DISTINCT FROM v.{field}"
                    for field in SeriesKey._fields
                    if field != "metric"
                ),
                rows,
                template=f"(%s{', %s::text' * len(SeriesKey._fields)})",
                fetch=True,
            )
            conn.rollback()
        for number, *key in found:
            self._known[domain, SeriesKey(*key)] = number


def by_number(connection: Connection, series_ids: Sequence[int]) -> list[tuple[int, SeriesKey]]:
    """What some numbers stand for."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT series_id, {', '.join(SeriesKey._fields)} FROM measurement_series "
            "WHERE series_id = ANY(%s) ORDER BY series_id",
            (list(series_ids),),
        )
        return [(number, SeriesKey(*key)) for number, *key in cursor.fetchall()]
