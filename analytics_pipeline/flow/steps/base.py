"""The contract between the one protocol and its steps. No tables here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from analytics_pipeline.domains.base import Domain
from analytics_pipeline.records import DerivedName, GateResult
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.ledger import Mark, PairState
from analytics_pipeline.storage.series import SeriesDirectory


@dataclass(frozen=True)
class Work:
    """One (hour, domain) to compute, inside the snapshot of ``connection``.

    ``scope`` None: the whole hour, whose content is replaced. ``state``: what the pair held before.
    """

    connection: Connection
    settings: Settings
    series: SeriesDirectory
    domain: Domain
    hour: datetime
    scope: tuple[int, ...] | None
    state: PairState


@dataclass(frozen=True)
class LaterHours:
    """A mark for each later hour, up to ``reach_h`` on, that holds windows of the domain."""

    asset: DerivedName
    reach_h: int


@dataclass(frozen=True)
class Written:
    """What a write did: rows the pair holds now, rows written, and what depends on what changed."""

    rows: int
    written: int
    marks: tuple[Mark, ...] = ()
    later: LaterHours | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a step computed and its gate said, not yet written.

    ``rows_seen`` and ``rows_failed`` count the pair's whole content so far, as the gate's limit does.
    """

    gate: GateResult
    rows_seen: int
    rows_failed: int
    dead_letters: int
    late_rows: int
    write: Callable[[], Written]
    #: A derived figure that fails is a fault of ours, not of one row: then nothing of the pair is written.
    all_or_nothing: bool = False


class Step(Protocol):
    """Computes one derived asset."""

    asset: DerivedName

    def evaluate(self, work: Work) -> Evaluation:
        """Read, compute and gate; writes nothing."""
        ...


def mark_of(work: Work, asset: DerivedName, scope: tuple[int, ...] | None, reason: str) -> Mark:
    """A mark for the same hour and domain."""
    return Mark(asset, work.hour, work.domain.name, scope, reason)
