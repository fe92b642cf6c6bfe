"""What an asset is, declared once: texts, tables, what it reads, what a change of it makes stale. Pure.

Dagster's definitions, the columns in its catalogue, gates, invalidation, retention and plots derive from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analytics_pipeline.records import AssetName, DerivedName
from analytics_pipeline.tables import TableSpec

#: What a changed row of an asset makes stale, beside the asset that reads it.
#:   same hour       the rows of that hour that are computed from it
#:   look-back       later hours of the domain within the longest look-back of its detectors
#:   carried state   the next hours, as long as the state that a series has at their beginning changes
#:   next reading    the window of the next reading of a counter, in whatever later hour
#:   longer windows  windows longer than an hour that hold it: they belong to the hour in which they begin
Reach = Literal["same hour", "look-back", "carried state", "next reading", "longer windows"]

#: What becomes of a row that fails the gate.
#:   dead letter     the row stays out, with its reason; the others are written
#:   withheld        a derived figure that fails is a fault of ours: nothing of its series and hour is written
FailedRow = Literal["dead letter", "withheld"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A change of this asset makes some of ``asset`` stale."""

    asset: DerivedName
    reach: Reach = "same hour"


@dataclass(frozen=True, kw_only=True)
class AssetSpec:
    """One asset.

    Attributes:
        description, group, kinds: as Dagster shows them.
        code_version: raised by hand when the same input gives other rows: Dagster then shows which partitions are
            outdated.
        reads: the assets that it is computed from.
        tables: those it owns. What a domain partition holds is their rows together; the small plot is of the first.
        edges: what a change of its rows makes stale.
        failed_rows: what becomes of a row that fails the gate.
        reads_master_data: whether an edit of master data makes it stale.
        plot: the condition on rows of the first table that the small plot counts; None: no plot.
    """

    name: AssetName
    description: str
    group: str
    kinds: frozenset[str]
    code_version: str
    reads: tuple[AssetName, ...]
    tables: tuple[TableSpec, ...]
    edges: tuple[Edge, ...] = ()
    failed_rows: FailedRow = "withheld"
    reads_master_data: bool = False
    plot: str | None = "TRUE"

    @property
    def table(self) -> TableSpec:
        """Its first table, the one that the small plot shows."""
        return self.tables[0]
