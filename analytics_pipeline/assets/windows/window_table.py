"""What each table of window_aggregates does: the same few operations. The windows longer than an hour, for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl

from analytics_pipeline.assets.calculation import LONGER_WINDOWS, Context, Ints, Key, Parts, Work
from analytics_pipeline.assets.windows.levels import Level
from analytics_pipeline.records import HOUR_S, Region, from_us
from analytics_pipeline.storage.pending_work import Invalidation, Scope
from analytics_pipeline.storage.table_io import Replaced
from analytics_pipeline.tables import TableSpec


@dataclass(frozen=True)
class Rows:
    """Rows of one stored table that were computed, by window size."""

    spec: TableSpec
    levels: Sequence[Level]
    #: Where windows above the base are left for later.
    lagging: Sequence[Region] = ()

    def frame(self) -> pl.DataFrame:
        return pl.concat([self.spec.empty(), *(level.frame for level in self.levels)])


@dataclass(frozen=True)
class WrittenRows:
    """What was stored of a table, what is now, and what differs."""

    spec: TableSpec
    stored: pl.DataFrame
    wanted: pl.DataFrame
    replaced: Replaced


@dataclass(frozen=True)
class Write:
    """What was written of a slice.

    Attributes:
        works: all of the slice, also those of which nothing was written.
        accepted: those that were written.
        withheld: by the index of a work, the series of which nothing was written.
    """

    works: Sequence[Work]
    accepted: frozenset[Key]
    withheld: Mapping[int, tuple[int, ...]]
    tables: Sequence[WrittenRows]

    def of(self, *specs: TableSpec) -> list[WrittenRows]:
        return [one for spec in specs for one in self.tables if one.spec is spec]


class WindowTable(ABC):
    """One table of the asset, or some that are computed together.

    Attributes:
        kind: what it is computed from, as `Domain` names it.
    """

    kind: ClassVar[Literal["samples", "events", "states", "counters"]]

    def fed(self, works: Sequence[Work]) -> list[Work]:
        """Those whose domain yields what this is computed from, and those that may hold rows of a time when it did:
        whole hours that are replaced, and longer windows, which lose such an hour."""
        return [
            work
            for work in works
            if getattr(work.domain, self.kind)
            or (work.state.rows and (work.whole or (work.pending and LONGER_WINDOWS in work.pending.spans)))
        ]

    @abstractmethod
    def compute(self, context: Context, works: Sequence[Work]) -> list[Rows]:
        """What is stale of it; nothing for works whose domain has no such rows."""

    @abstractmethod
    def stale(self, context: Context, write: Write) -> list[Invalidation]:
        """What its changes make stale, beside the windows longer than an hour. Called when those who change windows
        of these domains commit one after another."""


def part_of(parts: Parts, frame: pl.DataFrame) -> Ints:
    """The domain partition of each row, as its index among the works."""
    return parts.of(frame["domain_id"].to_numpy(), frame["bucket_start_us"].to_numpy())


def longer_windows(context: Context, work: Work, *, states: bool = False) -> list[Invalidation]:
    """Longer windows that hold this hour and begin in another one: all, or those of states."""
    begins = {
        work.hour_us // (size_s * 1_000_000) * (size_s * 1_000_000)
        for size_s in context.settings.window_sizes_s
        if size_s > HOUR_S
    }
    return [
        Invalidation(
            asset="window_aggregates",
            domain_id=work.domain_id,
            hour=from_us(begin),
            scope=Scope(spans=(LONGER_WINDOWS,), states=states),
            reason="hourly window",
        )
        for begin in sorted(begins - {work.hour_us})
    ]
