"""What each table of normalized_measurements does with what was decoded: the same few operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Parts, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.transform import Decoded
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.storage.pending_work import Invalidation, Scope
from analytics_pipeline.storage.raw_events import StoredRows
from analytics_pipeline.tables import TableSpec


class Part(Protocol):
    """What was decoded of one kind: the payload of each row, ascending, and its place in it."""

    @property
    def row(self) -> Ints: ...
    @property
    def ordinal(self) -> Ints: ...


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True, kw_only=True)
class Chunk(Generic[PartT]):
    """Decoded rows of one kind and one domain, with the domain partition of each raw row."""

    domain: Domain
    domain_id: int
    raw: StoredRows
    raw_part: Ints
    part: PartT

    @property
    def works(self) -> Ints:
        """The domain partition of each row, as its index among the works."""
        return self.raw_part[self.part.row]


@dataclass(frozen=True)
class StoredChanges:
    """What a write did to one table.

    Attributes:
        rows: for each work how many rows it holds (a whole hour), or holds more than before.
        touched: ``domain_id``, ``event_time_us`` and whatever names a scope, of rows that may be new, other or gone.
        stale: what must be computed again beside the windows.
    """

    rows: Ints
    touched: pl.DataFrame
    stale: Sequence[Invalidation] = ()


class NormalizedTable(ABC, Generic[PartT]):
    """One table of the asset."""

    spec: ClassVar[TableSpec]

    @abstractmethod
    def part_of(self, decoded: Decoded) -> PartT | None:
        """What was decoded for it; None: the domain has nothing of the kind."""

    @abstractmethod
    def gate_frame(self, chunks: Sequence[Chunk[PartT]]) -> pl.DataFrame:
        """What the gate validates, with the column ``domain_id``."""

    @abstractmethod
    def describe(self, part: PartT, index: int) -> str:
        """One row in words, for a dead letter."""

    @abstractmethod
    def columns(self, context: Context, chunk: Chunk[PartT], kept: Ints) -> Any:
        """The rows that are kept, in the table's columns."""

    @abstractmethod
    def joined(self, columns: Sequence[Any]) -> pl.DataFrame:
        """The rows of all chunks, one per identity and hour."""

    @abstractmethod
    def write(self, context: Context, works: Sequence[Work], parts: Parts, rows: pl.DataFrame) -> StoredChanges:
        """Write the rows of the works that may be written."""

    @abstractmethod
    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        """A superset of the windows that rows of one domain partition make stale."""


def position_columns(chunk: Chunk[Any], kept: Ints) -> dict[str, Any]:
    """Domain, time and position of the rows that are kept."""
    raw, row = chunk.raw, chunk.part.row[kept]
    return {
        "domain_id": np.full(len(kept), chunk.domain_id, np.int32),
        "event_time": raw.event_time_us[row],
        "kafka_time": raw.kafka_time_us[row],
        "log_id": raw.log_id[row],
        "offset": raw.offset[row],
        "ordinal": (raw.ordinal[row] * table.ELEMENT_SAMPLES + chunk.part.ordinal[kept]).astype(np.int32),
    }
