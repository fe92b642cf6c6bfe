"""The samples of payloads, column by column. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.measurements.taken import Ints, flattened
from analytics_pipeline.assets.raw_events.transform import Rejection
from analytics_pipeline.domains.base import SeriesKey, SeriesTuple

#: Row, ordinal, sample key, series, value.
_Columns = tuple[Ints, Ints, Ints, Ints, npt.NDArray[np.float64]]
_NONE = np.zeros(0, np.int64)
_NO_SAMPLES: _Columns = (_NONE, _NONE, _NONE, _NONE, np.zeros(0, np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of many payloads, column by column.

    Attributes:
        row: which payload a sample came from, ascending.
        ordinal: its place among the samples of that payload.
        series: index into ``keys``.
        keys: the distinct series, in the order in which they appear.
        rejections: payloads that could not be read, by row; they have no samples.
    """

    row: Ints
    ordinal: Ints
    sample_key: Ints
    series: Ints
    value: npt.NDArray[np.float64]
    keys: list[SeriesKey]
    rejections: Mapping[int, Rejection]

    def names_frame(self) -> pl.DataFrame:
        """The names of the series, a row per series."""
        return names_of(self.keys)

    def gate_frame(self) -> pl.DataFrame:
        """What the gate validates: ``value`` and the names of the series, a row per sample."""
        names = self.names_frame()
        return pl.DataFrame(
            {"value": self.value, **{name: names[name].gather(self.series) for name in names.columns}}
        )


def names_of(keys: Sequence[SeriesKey]) -> pl.DataFrame:
    """The names of some series, a row per series."""
    return pl.DataFrame(keys, schema=dict.fromkeys(SeriesKey._fields, pl.String()), orient="row")


@dataclass
class SampleReader:
    """Reads the samples of payloads."""

    take: Callable[[Any], Sequence[tuple[SeriesTuple, float, int]]]
    index: dict[SeriesTuple, int] = field(default_factory=dict)
    parts: list[_Columns] = field(default_factory=list)

    def columns(self, taken: Sequence[Sequence[tuple[SeriesTuple, float, int]]], first: int) -> _Columns:
        return _columns(taken, first, self.index)

    def check(self, taken: Sequence[tuple[SeriesTuple, float, int]]) -> None:
        _columns([taken], 0, {})

    def add(self, columns: _Columns) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int], rejections: Mapping[int, Rejection]) -> Samples:
        """What was read, but for some payloads."""
        columns = [np.concatenate(column) for column in zip(*(self.parts or [_NO_SAMPLES]), strict=True)]
        if without:
            kept = ~np.isin(columns[0], list(without))
            columns = [column[kept] for column in columns]
        row, ordinal, sample_key, series, value = columns
        return Samples(
            row=row,
            ordinal=ordinal,
            sample_key=sample_key,
            series=series,
            value=value,
            keys=[SeriesKey(*key) for key in self.index],
            rejections=rejections,
        )


def _columns(
    taken: Sequence[Sequence[tuple[SeriesTuple, float, int]]], first: int, index: dict[SeriesTuple, int]
) -> _Columns:
    row, ordinal, samples = flattened(taken, first)
    if not samples:
        return _NO_SAMPLES
    keys, values, sample_keys = zip(*samples, strict=True)
    value, sample_key = np.array(values, np.float64), np.array(sample_keys, np.int64)
    for key in dict.fromkeys(keys):
        index.setdefault(key, len(index))
    return row, ordinal, sample_key, np.fromiter(map(index.__getitem__, keys), np.int64, len(keys)), value
