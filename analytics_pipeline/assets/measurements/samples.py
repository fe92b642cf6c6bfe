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
from analytics_pipeline.domains.base import BAD, QUALITIES, RatedTuple, SampleTuple, SeriesKey, SeriesTuple

Qualities = npt.NDArray[np.int16]
#: Row, ordinal, sample key, series, value; and the quality, where samples carry one.
_Columns = tuple[npt.NDArray[Any], ...]
_Taken = Sequence[SampleTuple | RatedTuple]
_NONE = np.zeros(0, np.int64)
_NO_SAMPLES: _Columns = (_NONE, _NONE, _NONE, _NONE, np.zeros(0, np.float64))
_NO_RATED_SAMPLES: _Columns = (*_NO_SAMPLES, np.zeros(0, np.int16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of many payloads, column by column.

    Attributes:
        row: which payload a sample came from, ascending.
        ordinal: its place among the samples of that payload.
        series: index into ``keys``.
        quality: of each sample; None: the domain's samples carry none, and are good.
        keys: the distinct series, in the order in which they appear.
        rejections: payloads that could not be read, by row; they have no samples.
    """

    row: Ints
    ordinal: Ints
    sample_key: Ints
    series: Ints
    value: npt.NDArray[np.float64]
    quality: Qualities | None
    keys: list[SeriesKey]
    rejections: Mapping[int, Rejection]

    def names_frame(self) -> pl.DataFrame:
        """The names of the series, a row per series."""
        return names_of(self.keys)

    def gate_frame(self) -> pl.DataFrame:
        """What the gate validates: ``value`` and the names of the series, a row per sample."""
        names = self.names_frame()
        measured = pl.DataFrame({"value": self.value, "without_value": self.without_value()})
        return measured.with_columns(names[name].gather(self.series) for name in names.columns)

    def without_value(self) -> npt.NDArray[np.bool_]:
        """The samples that may be stored without a value: bad ones."""
        if self.quality is None:
            return np.zeros(len(self.value), np.bool_)
        found: npt.NDArray[np.bool_] = (self.quality == BAD) & np.isnan(self.value)
        return found


def names_of(keys: Sequence[SeriesKey]) -> pl.DataFrame:
    """The names of some series, a row per series."""
    return pl.DataFrame(keys, schema=dict.fromkeys(SeriesKey._fields, pl.String()), orient="row")


@dataclass
class SampleReader:
    """Reads the samples of payloads."""

    take: Callable[[Any], _Taken]
    rated: bool = False
    index: dict[SeriesTuple, int] = field(default_factory=dict)
    parts: list[_Columns] = field(default_factory=list)

    def columns(self, taken: Sequence[_Taken], first: int) -> _Columns:
        return _columns(taken, first, self.index, rated=self.rated)

    def check(self, taken: _Taken) -> None:
        _columns([taken], 0, {}, rated=self.rated)

    def add(self, columns: _Columns) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int], rejections: Mapping[int, Rejection]) -> Samples:
        """What was read, but for some payloads."""
        parts = self.parts or [_NO_RATED_SAMPLES if self.rated else _NO_SAMPLES]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if without:
            kept = ~np.isin(columns[0], list(without))
            columns = [column[kept] for column in columns]
        row, ordinal, sample_key, series, value = columns[:5]
        return Samples(
            row=row,
            ordinal=ordinal,
            sample_key=sample_key,
            series=series,
            value=value,
            quality=columns[5] if self.rated else None,
            keys=[SeriesKey(*key) for key in self.index],
            rejections=rejections,
        )


def _columns(taken: Sequence[_Taken], first: int, index: dict[SeriesTuple, int], *, rated: bool) -> _Columns:
    row, ordinal, samples = flattened(taken, first)
    if not samples:
        return _NO_RATED_SAMPLES if rated else _NO_SAMPLES
    quality: tuple[Qualities, ...] = ()
    if rated:
        keys, values, sample_keys, qualities = zip(*samples, strict=True)
        quality = (_known(qualities),)
    else:
        keys, values, sample_keys = zip(*samples, strict=True)
    value, sample_key = np.array(values, np.float64), np.array(sample_keys, np.int64)
    for key in dict.fromkeys(keys):
        index.setdefault(key, len(index))
    series = np.fromiter(map(index.__getitem__, keys), np.int64, len(keys))
    return row, ordinal, sample_key, series, value, *quality


def _known(qualities: Sequence[int]) -> Qualities:
    unknown = set(qualities).difference(range(len(QUALITIES)))
    if unknown:
        raise ValueError(f"quality {min(map(repr, unknown))}: takes 0 to {len(QUALITIES) - 1}, {', '.join(QUALITIES)}")
    return np.array(qualities, np.int16)
