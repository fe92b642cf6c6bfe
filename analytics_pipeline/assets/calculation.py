"""The contract between the one protocol and what each asset computes. No tables here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.spec import AssetSpec
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.formulas.limits import in_canonical_units
from analytics_pipeline.records import HOUR_S, HOUR_US, GateResult, Region, to_us
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.input_versions import InputVersions
from analytics_pipeline.storage.master_data import MasterDataDirectory
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import Invalidation, Pending
from analytics_pipeline.storage.series import SERIES_SCHEMA, SeriesDirectory

#: (domain number, hour): a domain partition of the asset at hand.
Key = tuple[int, datetime]
Ints = npt.NDArray[np.int64]

#: In pending work: the windows longer than an hour that begin in this one, as a span of its seconds.
LONGER_WINDOWS = (-1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One domain partition to compute, as the snapshot sees it.

    Attributes:
        pending: the pending work that the snapshot saw; None where there is none.
        whole: replace the whole hour; else compute what ``pending`` names.
    """

    domain: Domain
    domain_id: int
    hour: datetime
    pending: Pending | None
    whole: bool
    state: PartitionState

    @property
    def key(self) -> Key:
        return self.domain_id, self.hour

    @property
    def hour_us(self) -> int:
        return to_us(self.hour)

    def of_states(self) -> Work:
        """The same, with what is stale of states."""
        its = self.pending.states if self.pending else None
        return self if its is None else replace(self, pending=its, whole=self.whole or its.whole)

    @property
    def above_base(self) -> list[Region]:
        """Where only the windows above the base are stale."""
        its = () if self.whole or self.pending is None else self.pending.above_base
        return [self._region(begin, end) for begin, end in its]

    def _region(self, begin_s: int, end_s: int, series: tuple[int, ...] | None = None) -> Region:
        return Region(self.domain_id, self.hour_us + begin_s * 1_000_000, self.hour_us + end_s * 1_000_000, series)

    def regions(self, *, whole: bool = False) -> list[Region]:
        """What is stale, as spans of time: first those of all series, then those of some."""
        if whole or self.whole or self.pending is None or self.pending.whole:
            return [Region(self.domain_id, self.hour_us, self.hour_us + HOUR_US)]
        its = self.pending
        return [
            self._region(begin, end, series)
            for series, spans in (
                (None, its.spans),
                (its.series, its.series_spans),
                (its.whole_series, ((0, HOUR_S),)),
            )
            if series is None or series
            for begin, end in spans
            if begin >= 0
        ]


class Gate(Protocol):
    """Validates rows of one table that are about to be written."""

    def __call__(self, frame: pl.DataFrame, domains: Sequence[Domain], table: str = "") -> GateResult:
        """The result for a frame of some domains' rows; the table is named unless it is the asset's first."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a calculation may use besides its works: one snapshot of the database, and names.

    ``gate`` may be asked several times for one slice, where the slice is too large to be held at once.
    """

    connection: Connection
    settings: Settings
    series: SeriesDirectory
    versions: InputVersions
    gate: Gate
    master_data: MasterDataDirectory
    #: What may lag waits until then: the larger windows of live hours. None: nothing does.
    lag_until: datetime | None
    #: Lets those who change windows of some domains, or what else is named, commit one after another from here on.
    serialize_commits: Callable[..., None]
    #: A connection of its own, that sees what is committed by now and not what this snapshot sees.
    committed: Callable[[], AbstractContextManager[Connection]]
    #: Of some domain partitions of the asset, those that hold rows by what is committed now.
    holding_rows: Callable[[Sequence[Key]], set[Key]]
    #: Of some domain partitions of the asset, those that were committed by others since the snapshot was opened.
    changed_since_snapshot: Callable[[Sequence[Key]], set[Key]]

    def limits(self) -> pl.DataFrame:
        """The specification limits, as the snapshot sees them, in the canonical units of their metrics."""
        return in_canonical_units(self.master("spec_limits"), self.master("units"))

    def master(self, name: str) -> pl.DataFrame:
        """A table of master data, as the snapshot sees it: `storage.master_data.frame_schema`."""
        return self.master_data.rows(self.connection, self.versions.master_data, name)

    def named(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The names of the series of some rows (domain_id, series_id): `storage.series.SERIES_SCHEMA`."""
        frames = [pl.DataFrame(schema=SERIES_SCHEMA)]
        for (domain_id,), its in rows.select("domain_id", "series_id").unique().group_by("domain_id"):
            wanted = its["series_id"]
            known = self.series.frame(int(domain_id), wanted)
            frames.append(known.filter(pl.col("series_id").is_in(wanted.implode())))
        return pl.concat(frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What the gate said of one domain partition, and what its limit counts.

    ``rows_seen`` and ``rows_failed`` count over the whole content of all its tables, as far as it is known before the
    write. ``refused``: nothing of it may be written, whatever series are withheld besides.
    """

    gate: GateResult
    rows_seen: int
    rows_failed: int
    dead_letters: int = 0
    late_rows: int = 0
    withheld_series: tuple[int, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a write did to one domain partition: rows that it holds now, rows written; of rows that passed the gate,
    those that lost to a later one of the same identity, over its whole content."""

    rows: int
    written: int
    rows_failed: int = 0
    rows_superseded: int = 0


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A slice that is computed and validated, and not yet written.

    ``write`` takes the domain partitions that may be written and returns what became of each, and what its
    changes made stale.
    """

    validated: Mapping[Key, Validated]
    write: Callable[[frozenset[Key]], tuple[Mapping[Key, Written], Sequence[Invalidation]]]


class Calculation(Protocol):
    """Computes one derived asset."""

    spec: AssetSpec

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        """Read, compute and validate; writes nothing."""
        ...


@dataclass(frozen=True)
class Parts:
    """Finds the domain partition of rows: its index among the works of a slice, or −1."""

    works: Sequence[Work]
    _codes: Ints = field(init=False)
    _indexes: Ints = field(init=False)

    def __post_init__(self) -> None:
        codes = np.array([_code(work.domain_id, work.hour_us // HOUR_US) for work in self.works], np.int64)
        order = np.argsort(codes)
        object.__setattr__(self, "_codes", codes[order])
        object.__setattr__(self, "_indexes", order)

    def of(self, domain_id: npt.NDArray[np.signedinteger] | int, time_us: Ints) -> Ints:
        """The index of each row's domain partition in ``works``; −1 where the slice does not hold it."""
        code = _code(np.asarray(domain_id, np.int64), time_us // HOUR_US)
        at = np.minimum(np.searchsorted(self._codes, code), len(self._codes) - 1)
        found: Ints = np.where(self._codes[at] == code, self._indexes[at], -1)
        return found

    def counts(self, part: Ints) -> list[int]:
        """How many rows belong to each work."""
        return [int(n) for n in np.bincount(part[part >= 0], minlength=len(self.works))]


def _code(domain_id: Any, hour: Any) -> Any:
    return domain_id * (1 << 32) + hour


def split_gate(gate: GateResult, part: Ints, works: Sequence[Work]) -> list[GateResult]:
    """What a gate said of a whole slice, by domain partition."""
    rows = np.bincount(part, minlength=len(works))
    reasons: list[dict[int, str]] = [{} for _ in works]
    for row, reason in gate.reasons.items():
        reasons[part[row]][row] = reason
    return [
        GateResult(
            asset=gate.asset,
            domain=work.domain.name,
            rows=int(rows[at]),
            reasons=reasons[at],
            outcomes=tuple(gate.outcomes_of(reasons[at])) if reasons[at] else (),
        )
        for at, work in enumerate(works)
    ]
