"""The series dimension: names on one side, a number on the other. Rows are added, never changed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import polars as pl
from sqlalchemy import Engine

from analytics_pipeline.domains.base import SeriesKey, SeriesTuple
from analytics_pipeline.storage.engine import Connection, connection

NAMES = SeriesKey._fields
#: Series by number: ``series_id`` and the names of `SeriesKey`.
SERIES_SCHEMA: dict[str, Any] = {"series_id": pl.Int64(), **dict.fromkeys(NAMES, pl.String())}

_COLUMNS = ", ".join(NAMES)

#: What names a machine, and one of them.
MACHINE = ("tenant_id", "factory_id", "machine_id")
Machine = tuple[str | None, str | None, str | None]
#: Each is a range of the unique index that stands in the statement as constants.
MACHINES_PER_STATEMENT = 200


@dataclass
class _Known:
    """What this process knows of one domain's series."""

    numbers: dict[SeriesTuple, int] = field(default_factory=dict)
    frame: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SERIES_SCHEMA))
    #: Rows that are not in the frame yet.
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    highest: int = 0

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        new = sorted(row for row in rows if row[1:] not in self.numbers)
        self.numbers.update((row[1:], row[0]) for row in new)
        self.rows += new
        self.highest = max([self.highest, *(row[0] for row in new[-1:])])

    def as_frame(self) -> pl.DataFrame:
        if self.rows:
            more = pl.DataFrame(self.rows, schema=SERIES_SCHEMA, orient="row")
            self.frame, self.rows = pl.concat([self.frame, more]), []
        return self.frame


class SeriesDirectory:
    """Finds the number of a series, adding it where it is new, and what a number stands for.

    A domain's series are loaded once, then only what was added since. New rows are committed at once, on a
    connection of their own: a series is a name, not a fact about data, and two runs that meet the same new name
    must not wait for each other's data. Both insert in one order, so that they cannot deadlock.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._domains: dict[int, _Known] = {}
        self._lock = Lock()

    def numbers(self, domain_id: int, keys: Sequence[SeriesTuple]) -> list[int]:
        """The numbers of some series of a domain, in their order."""
        with self._lock:
            known = self._domains.setdefault(domain_id, _Known())
            missing = [key for key in keys if key not in known.numbers]
            if missing:
                self._load_or_add(domain_id, known, missing)
            return [known.numbers[key] for key in keys]

    def count(self, domain_id: int) -> int:
        """How many series of a domain this process knows: at least those that it wrote itself."""
        with self._lock:
            known = self._domains.setdefault(domain_id, _Known())
            if not known.numbers:
                with connection(self._engine) as conn:
                    known.add(_read(conn, domain_id, above=0))
            return len(known.numbers)

    def frame(self, domain_id: int, series_ids: pl.Series) -> pl.DataFrame:
        """`SERIES_SCHEMA` of a domain: at least the given numbers, and whatever else is known."""
        with self._lock:
            known = self._domains.setdefault(domain_id, _Known())
            frame = known.as_frame()
            for above in (known.highest, 0):
                if series_ids.is_in(frame["series_id"].implode()).all():
                    break
                with connection(self._engine) as conn:
                    known.add(_read(conn, domain_id, above=above))
                frame = known.as_frame()
            return frame

    def _load_or_add(self, domain_id: int, known: _Known, missing: Sequence[SeriesTuple]) -> None:
        with connection(self._engine) as conn:
            known.add(_read(conn, domain_id, above=known.highest))
            new = sorted({tuple(key) for key in missing if key not in known.numbers}, key=_in_order)
            if new:
                known.add(_insert(conn, domain_id, new))
                conn.commit()
            # What another process added at the same moment, below a number that was known here already.
            rest = [key for key in new if key not in known.numbers]
            if rest:
                known.add(_read(conn, domain_id, above=0))


def read_machines(conn: Connection, domain_id: int, machines: Sequence[Machine]) -> pl.DataFrame:
    """`SERIES_SCHEMA` of every series of some machines, as this transaction sees them.

    Not from what a process knows: another one may have met a series of the machine first, and what is summed over a
    machine needs all of them.
    """
    frames = [pl.DataFrame(schema=SERIES_SCHEMA)]
    for at in range(0, len(machines), MACHINES_PER_STATEMENT):
        parts, values = [], []
        for machine in machines[at : at + MACHINES_PER_STATEMENT]:
            names = [
                f"{name} IS NULL" if value is None else f"{name} = %s"
                for name, value in zip(MACHINE, machine, strict=True)
            ]
            parts.append(
                f"SELECT series_id, {_COLUMNS} FROM measurement_series WHERE domain_id = %s AND " + " AND ".join(names)
            )
            values += [domain_id, *(value for value in machine if value is not None)]
        with conn.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(parts), values)
            frames.append(pl.DataFrame(cursor.fetchall(), schema=SERIES_SCHEMA, orient="row"))
    return pl.concat(frames)


def _in_order(key: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(part or "" for part in key)


def _read(conn: Connection, domain_id: int, *, above: int) -> list[tuple[Any, ...]]:
    """A domain's series above a number."""
    with conn.cursor() as cursor:
        cursor.execute(
            f"SELECT series_id, {_COLUMNS} FROM measurement_series WHERE domain_id = %s AND series_id > %s "
            "ORDER BY series_id",
            (domain_id, above),
        )
        return list(cursor.fetchall())


def _insert(conn: Connection, domain_id: int, keys: Sequence[tuple[str | None, ...]]) -> list[tuple[Any, ...]]:
    """Adds series; returns the rows that are new. One that another process adds meanwhile is not among them."""
    rows = pl.DataFrame(keys, schema=dict.fromkeys(NAMES, pl.String()), orient="row")
    with conn.cursor() as cursor:
        cursor.execute(
            f"CREATE TEMP TABLE IF NOT EXISTS new_series ({', '.join(f'{name} text' for name in NAMES)}) "
            "ON COMMIT DELETE ROWS"
        )
        cursor.execute("DELETE FROM new_series")
        cursor.copy_expert(
            f"COPY new_series ({_COLUMNS}) FROM STDIN (FORMAT csv)",
            io.BytesIO(rows.write_csv(include_header=False, quote_style="non_numeric").encode()),
        )
        order = ", ".join(f"coalesce({name}, '') COLLATE \"C\"" for name in NAMES)
        cursor.execute(
            f"INSERT INTO measurement_series (domain_id, {_COLUMNS}) SELECT %s, {_COLUMNS} FROM new_series "
            f"ORDER BY {order} ON CONFLICT DO NOTHING RETURNING series_id, {_COLUMNS}",
            (domain_id,),
        )
        return list(cursor.fetchall())
