"""The changes of state that payloads tell, column by column. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.measurements.taken import Ints, flattened
from analytics_pipeline.domains.base import SeriesKey, SeriesTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The changes of state of many payloads.

    Attributes:
        row: which payload a change came from, ascending.
        ordinal: its place in that payload, after the samples and the events.
        series: index into ``keys``.
        state: a text per change.
        keys: the distinct series.
    """

    row: Ints
    ordinal: Ints
    series: Ints
    state: pl.Series
    keys: list[SeriesKey]


#: Row, ordinal, series and state.
_Columns = tuple[Ints, Ints, Ints, pl.Series]
_NO_STATE = pl.Series("state", [], pl.String())


@dataclass
class StateReader:
    """Reads the changes of state of payloads."""

    take: Callable[[Any], Sequence[tuple[SeriesTuple, str]]]
    index: dict[SeriesTuple, int] = field(default_factory=dict)
    parts: list[_Columns] = field(default_factory=list)

    def columns(self, taken: Sequence[Sequence[tuple[SeriesTuple, str]]], first: int) -> _Columns:
        return _columns(taken, first, self.index)

    def check(self, taken: Sequence[tuple[SeriesTuple, str]]) -> None:
        _columns([taken], 0, {})

    def add(self, columns: _Columns) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int], before: Ints) -> States:
        """What was read, but for some payloads; ``before``: rows of other kinds in each payload, which stand first."""
        parts = self.parts or [_columns([], 0, {})]
        row, ordinal, series = (np.concatenate([part[at] for part in parts]) for at in range(3))
        kept = ~np.isin(row, list(without))
        state = pl.concat([part[3] for part in parts]).filter(pl.Series(kept, dtype=pl.Boolean))
        return States(
            row=row[kept],
            ordinal=(ordinal + before[row])[kept],
            series=series[kept],
            state=state,
            keys=[SeriesKey(*key) for key in self.index],
        )


def _columns(
    taken: Sequence[Sequence[tuple[SeriesTuple, str]]], first: int, index: dict[SeriesTuple, int]
) -> _Columns:
    row, ordinal, changes = flattened(taken, first)
    if not changes:
        return row, ordinal, np.zeros(0, np.int64), _NO_STATE
    keys, states = zip(*changes, strict=True)
    state = pl.Series("state", states, pl.String())
    for key in dict.fromkeys(keys):
        index.setdefault(SeriesKey(*key), len(index))
    return row, ordinal, np.fromiter(map(index.__getitem__, keys), np.int64, len(keys)), state
