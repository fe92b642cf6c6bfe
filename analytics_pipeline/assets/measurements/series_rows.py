"""What payloads tell of series beside samples, column by column: changes of state, and readings of counters. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.measurements.taken import Ints, flattened
from analytics_pipeline.domains.base import SeriesKey, SeriesTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRows:
    """The rows of one kind of many payloads.

    Attributes:
        row: which payload a row came from, ascending.
        ordinal: its place in that payload, after those of the kinds that stand before.
        series: index into ``keys``.
        values: what was told, a row per row: `STATE` or `READING`.
        keys: the distinct series.
    """

    row: Ints
    ordinal: Ints
    series: Ints
    values: pl.DataFrame
    keys: list[SeriesKey]


#: Row, ordinal, series and values.
_Columns = tuple[Ints, Ints, Ints, pl.DataFrame]


@dataclass
class SeriesReader:
    """Reads the rows of one kind of payloads.

    Attributes:
        take: the domain's function, from a payload to (series, what is told of it).
        values: the columns of what is told; raises where one is of another type.
    """

    take: Callable[[Any], Sequence[tuple[SeriesTuple, Any]]]
    values: Callable[[Sequence[Any]], pl.DataFrame]
    index: dict[SeriesTuple, int] = field(default_factory=dict)
    parts: list[_Columns] = field(default_factory=list)

    def columns(self, taken: Sequence[Sequence[tuple[SeriesTuple, Any]]], first: int) -> _Columns:
        return self._columns(taken, first, self.index)

    def check(self, taken: Sequence[tuple[SeriesTuple, Any]]) -> None:
        self._columns([taken], 0, {})

    def add(self, columns: _Columns) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int], before: Ints) -> SeriesRows:
        """What was read, but for some payloads; ``before``: rows of other kinds in each payload, which stand first."""
        parts = self.parts or [self.columns([], 0)]
        row, ordinal, series = (np.concatenate([part[at] for part in parts]) for at in range(3))
        kept = ~np.isin(row, list(without))
        values = pl.concat([part[3] for part in parts]).filter(pl.Series(kept, dtype=pl.Boolean))
        return SeriesRows(
            row=row[kept],
            ordinal=(ordinal + before[row])[kept],
            series=series[kept],
            values=values,
            keys=[SeriesKey(*key) for key in self.index],
        )

    def _columns(
        self, taken: Sequence[Sequence[tuple[SeriesTuple, Any]]], first: int, index: dict[SeriesTuple, int]
    ) -> _Columns:
        row, ordinal, told = flattened(taken, first)
        if not told:
            return row, ordinal, np.zeros(0, np.int64), self.values(())
        keys, values = zip(*told, strict=True)
        frame = self.values(values)
        for key in dict.fromkeys(keys):
            index.setdefault(SeriesKey(*key), len(index))
        return row, ordinal, np.fromiter(map(index.__getitem__, keys), np.int64, len(keys)), frame


# ---------------------------------------------------------------------- states

STATE = ("state",)


def state_values(states: Sequence[str]) -> pl.DataFrame:
    """`STATE`."""
    return pl.DataFrame([pl.Series("state", states, pl.String())])


# ---------------------------------------------------------------------- readings of counters

#: ``reading`` is 0 where ``fault`` is not `SOUND`.
READING = ("reading", "fault")
SOUND, NOT_WHOLE, NOT_INT64 = range(3)

_INT64 = np.iinfo(np.int64)
#: Up to here a double stands for one whole number.
_EXACT_DOUBLE = 2.0**53


def reading_values(readings: Sequence[int | float]) -> pl.DataFrame:
    """`READING`: int64, exact, and what is wrong with those that are none.

    Raises:
        TypeError: one is no number.
    """
    if all(kind is int for kind in set(map(type, readings))):
        try:
            column = pl.Series("reading", readings, pl.Int64(), strict=True)
        except (TypeError, OverflowError):  # one of them is longer, than int64 or than any integer of Polars
            pass
        else:
            return column.to_frame().with_columns(pl.lit(SOUND, pl.Int8()).alias("fault"))
    told = [_reading(one) for one in readings]
    return pl.DataFrame(told, schema={"reading": pl.Int64(), "fault": pl.Int8()}, orient="row")


def _reading(told: int | float) -> tuple[int, int]:
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise TypeError(f"a reading is a number, not {told!r}")
    if isinstance(told, float):
        if not told.is_integer():  # NaN and infinity neither
            return 0, NOT_WHOLE
        if abs(told) > _EXACT_DOUBLE:
            return 0, NOT_INT64
    return (int(told), SOUND) if _INT64.min <= told <= _INT64.max else (0, NOT_INT64)
