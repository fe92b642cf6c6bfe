"""What sample keys stand for, and attributes of series: written in the transaction of the rows.

Both are names: they are added or brought up to date, never taken back, whatever hour is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from psycopg2.extras import execute_values

from analytics_pipeline.assets.calculation import Context
from analytics_pipeline.assets.measurements.transform import Decoded
from analytics_pipeline.domains.base import SeriesKey
from analytics_pipeline.records import from_us
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.raw_events import StoredRows

_WRITE_NAMES = (
    "INSERT INTO sample_names (domain_id, sample_key, sample_id, replicate) VALUES %s ON CONFLICT DO NOTHING"
)
_POSITION = ("kafka_time", "log_id", '"offset"', "ordinal")
#: What is older than what is kept is left out before it could lock a row: an old hour that is computed again holds up
#: no live one. Whoever commits at the same moment is compared with as well.
_WRITE_ATTRIBUTES = (
    f"INSERT INTO series_attributes AS kept (domain_id, series_id, attributes, {', '.join(_POSITION)}) "
    f"SELECT * FROM (VALUES %s) said (domain_id, series_id, attributes, {', '.join(_POSITION)}) "
    "WHERE NOT EXISTS (SELECT FROM series_attributes known WHERE known.domain_id = said.domain_id "
    f"AND known.series_id = said.series_id AND ({', '.join(f'known.{name}' for name in _POSITION)}) "
    f">= ({', '.join(f'said.{name}' for name in _POSITION)})) "
    "ON CONFLICT (domain_id, series_id) DO UPDATE SET attributes = EXCLUDED.attributes, "
    f"{', '.join(f'{name} = EXCLUDED.{name}' for name in _POSITION)} "
    f"WHERE ({', '.join(f'EXCLUDED.{name}' for name in _POSITION)}) > "
    f"({', '.join(f'kept.{name}' for name in _POSITION)})"
)
_ATTRIBUTES_ROW = "(%s::int, %s::bigint, %s, %s::timestamptz, %s::int, %s::bigint, %s::int)"


#: Kafka time in microseconds, log, offset and ordinal: the later one is what was said last.
_Position = tuple[int, int, int, int]


@dataclass
class Said:
    """What the payloads of a slice say."""

    names: dict[tuple[int, int], tuple[str, str | None]] = field(default_factory=dict)
    attributes: dict[tuple[int, SeriesKey], tuple[_Position, str]] = field(default_factory=dict)

    def add(self, domain_id: int, raw: StoredRows, decoded: Decoded) -> None:
        """Also of payloads whose domain partition is refused later: what is written is what rows refer to."""
        for name in decoded.names:
            self.names[domain_id, name.sample_key] = (name.sample_id, name.replicate)
        if not decoded.attributes:
            return
        columns = (raw.kafka_time_us, raw.log_id, raw.offset, raw.ordinal)
        positions: list[_Position] = list(zip(*(column.tolist() for column in columns), strict=True))
        for one in decoded.attributes:
            key, position = (domain_id, one.series), positions[one.row]
            known = self.attributes.get(key)
            if known is None or known[0] < position:
                self.attributes[key] = (position, one.text)

    def write(self, context: Context, rows: pl.DataFrame) -> None:
        """Write what is said of some measurements. Sorted, so that two who write the same cannot deadlock."""
        if self.names:
            wanted = rows.filter(pl.col("sample_key") != 0).select("domain_id", "sample_key").unique().sort(pl.all())
            values = [(*key, *self.names[key]) for key in wanted.rows() if key in self.names]
            _write(context.connection, _WRITE_NAMES, values, "(%s, %s, %s, %s)")
        if self.attributes:
            _write(context.connection, _WRITE_ATTRIBUTES, sorted(self._of_series(context, rows)), _ATTRIBUTES_ROW)

    def _of_series(self, context: Context, rows: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
        stored = {tuple(row) for row in rows.select("domain_id", "series_id").unique().rows()}
        by_domain: dict[int, list[SeriesKey]] = {}
        for domain_id, series in self.attributes:
            by_domain.setdefault(domain_id, []).append(series)
        for domain_id, its in by_domain.items():
            known = _numbers(context, domain_id, rows.filter(pl.col("domain_id") == domain_id)["series_id"])
            for series in its:
                number = known.get(series)
                if number is not None and (domain_id, number) in stored:
                    position, text = self.attributes[domain_id, series]
                    yield domain_id, number, text, from_us(position[0]), *position[1:]


def _numbers(context: Context, domain_id: int, series: pl.Series) -> Mapping[SeriesKey, int]:
    """The numbers of some series by their names."""
    frame = context.series.frame(domain_id, series).join(series.unique().to_frame(), on="series_id")
    return {SeriesKey(*names): number for number, *names in frame.rows()}


def _write(conn: Connection, statement: str, values: Sequence[tuple[Any, ...]], row: str) -> None:
    if values:
        with conn.cursor() as cursor:
            execute_values(cursor, statement, values, template=row, page_size=1000)
