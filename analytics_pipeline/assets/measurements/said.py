"""What payloads say beside their rows: what sample keys stand for, and attributes of series. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from analytics_pipeline.domains.base import SeriesKey, SeriesTuple


class SampleName(NamedTuple):
    """What a sample key stands for; ``row``: the payload that says so."""

    row: int
    sample_key: int
    sample_id: str
    replicate: str | None


class Attributes(NamedTuple):
    """What one payload says of a series; ``text``: a JSON object."""

    row: int
    series: SeriesKey
    text: str


@dataclass
class SampleNameReader:
    """Reads the names of samples."""

    take: Callable[[Any], Sequence[tuple[int, str, str | None]]]
    names: list[SampleName] = field(default_factory=list)

    def columns(self, taken: Sequence[Sequence[tuple[int, str, str | None]]], first: int) -> list[SampleName]:
        names = [SampleName(row, *name) for row, its in enumerate(taken, first) for name in its]
        for name in names:
            _refuse_nul(name.sample_id, name.replicate or "")
        return names

    def check(self, taken: Sequence[tuple[int, str, str | None]]) -> None:
        self.columns([taken], 0)

    def add(self, columns: list[SampleName]) -> None:
        self.names += columns

    def result(self, without: Collection[int]) -> list[SampleName]:
        """What was read, but for some payloads."""
        return [one for one in self.names if one.row not in without] if without else self.names


@dataclass
class AttributeReader:
    """Reads attributes of series."""

    take: Callable[[Any], Sequence[tuple[SeriesTuple, str]]]
    parts: list[tuple[int, Sequence[Sequence[tuple[SeriesTuple, str]]]]] = field(default_factory=list)

    def columns(
        self, taken: Sequence[Sequence[tuple[SeriesTuple, str]]], first: int
    ) -> tuple[int, Sequence[Sequence[tuple[SeriesTuple, str]]]]:
        _refuse_nul(*{text for _series, text in chain.from_iterable(taken)})
        return first, taken

    def check(self, taken: Sequence[tuple[SeriesTuple, str]]) -> None:
        self.columns([taken], 0)

    def add(self, columns: tuple[int, Sequence[Sequence[tuple[SeriesTuple, str]]]]) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int]) -> list[Attributes]:
        """What was read, but for some payloads."""
        found = [
            (row, series, text)
            for first, taken in self.parts
            for row, its in enumerate(taken, first)
            if row not in without
            for series, text in its
        ]
        keys = {series: SeriesKey(*series) for _, series, _ in found}
        return [Attributes(row, keys[series], text) for row, series, text in found]


def _refuse_nul(*texts: str) -> None:
    """PostgreSQL takes NUL neither in text nor out of JSON."""
    if any("\0" in text or "\\u0000" in text for text in texts):
        raise ValueError("a name or an attribute holds NUL; the domain must reject such a payload")
