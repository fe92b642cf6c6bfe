"""What flows through the pipeline, as frozen records. Pure data: no IO, no clock, no Dagster.

Times are aware ``datetime`` in UTC at the edges; inside frames they are integers, microseconds since the
Unix epoch, in columns that end in ``_us``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

AssetName = Literal["raw_events", "normalized_measurements", "window_aggregates", "anomalies", "kpis"]
DerivedName = Literal["normalized_measurements", "window_aggregates", "anomalies", "kpis"]
Mode = Literal["incremental", "full"]

RAW_EVENTS: AssetName = "raw_events"
#: The derived assets in the order in which data flows through them.
DERIVED: tuple[DerivedName, ...] = ("normalized_measurements", "window_aggregates", "anomalies", "kpis")

#: Failing rows that an outcome names, so that a person can look some up.
SAMPLE_ROWS = 20

HOUR_S = 3600
HOUR_US = HOUR_S * 1_000_000
HOUR = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime) -> int:
    """Microseconds since the Unix epoch, exact (no float on the way)."""
    return (moment - EPOCH) // MICROSECOND


def from_us(time_us: int) -> datetime:
    """The aware UTC datetime of a microsecond count."""
    return EPOCH + timedelta(microseconds=time_us)


def hour_of(moment: datetime) -> datetime:
    """The start of the UTC hour that holds the moment."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """Rows of a table: one domain, a half-open span of time, and, unless None, only these series."""

    domain_id: int
    begins_us: int
    ends_us: int
    series: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message, or a row of it, that a stage refused: bytes kept, with the reason. By (position, stage)."""

    topic: str
    epoch: int
    partition: int
    offset: int
    ordinal: int
    stage: str
    domain: str
    reason: str
    error: str
    payload: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes | None]] | None
    kafka_time_us: int
    event_time_us: int | None
    arrived_at_us: int
    batch_id: int | None = None
    #: The payload is an element of a message that was split.
    is_element: bool = False

    @property
    def hour_us(self) -> int:
        """Its partition: the hour of event time, or of the Kafka timestamp where there is none."""
        time_us = self.kafka_time_us if self.event_time_us is None else self.event_time_us
        return time_us // HOUR_US * HOUR_US


@dataclass(frozen=True, slots=True)
class ExpectationOutcome:
    """What one expectation said about one frame. ``sample_rows`` are row numbers, at most `SAMPLE_ROWS`."""

    name: str
    column: str
    reason: str
    failed: int
    sample_rows: tuple[int, ...] = ()

    def with_more(self, other: ExpectationOutcome) -> ExpectationOutcome:
        """The same expectation over further rows."""
        rows = (*self.sample_rows, *other.sample_rows)[:SAMPLE_ROWS]
        return replace(self, failed=self.failed + other.failed, sample_rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The gate's result for one frame: which rows fail, and the first reason of each."""

    asset: str
    domain: str
    rows: int
    reasons: dict[int, str] = field(default_factory=dict)
    outcomes: tuple[ExpectationOutcome, ...] = ()

    @property
    def failed_rows(self) -> tuple[int, ...]:
        """Row numbers of the frame that fail at least one expectation, ascending."""
        return tuple(sorted(self.reasons))

    @property
    def passed(self) -> bool:
        """Whether no row fails."""
        return not self.reasons

    def outcomes_of(self, reasons: dict[int, str]) -> list[ExpectationOutcome]:
        """What each expectation said of some of the failing rows, each counted for its first reason."""
        rows: dict[str, list[int]] = {}
        for row, reason in reasons.items():
            rows.setdefault(reason, []).append(row)
        return [
            ExpectationOutcome(
                name=one.name,
                column=one.column,
                reason=one.reason,
                failed=len(its),
                sample_rows=tuple(sorted(its)[:SAMPLE_ROWS]),
            )
            for one in self.outcomes
            if (its := rows.get(one.reason))
        ]

    def followed_by(self, other: GateResult) -> GateResult:
        """The result for this frame with another below it. Either may leave out expectations that all rows met."""
        below = [replace(one, sample_rows=tuple(self.rows + row for row in one.sample_rows)) for one in other.outcomes]
        merged: dict[tuple[str, str, str], ExpectationOutcome] = {}
        for one in (*self.outcomes, *below):
            known = merged.get((one.name, one.column, one.reason))
            merged[one.name, one.column, one.reason] = one if known is None else known.with_more(one)
        outcomes = tuple(merged.values())
        reasons = self.reasons | {self.rows + row: reason for row, reason in other.reasons.items()}
        return GateResult(
            asset=self.asset, domain=self.domain, rows=self.rows + other.rows, reasons=reasons, outcomes=outcomes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainOutcome:
    """What one evaluation of (asset, hour, domain) did. ``rows``: rows that it holds afterwards."""

    domain: str
    rows: int
    written: int
    dead_letters: int
    late_rows: int
    gate: GateResult
    quarantined: bool = False
    #: Counted over the domain partition's whole content so far, not only this evaluation.
    rows_seen: int = 0
    rows_failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HourOutcome:
    """What one run did to one partition of one asset."""

    asset: str
    hour: datetime
    mode: str
    domains: tuple[DomainOutcome, ...]
    duration_s: float

    @property
    def rows(self) -> int:
        return sum(domain.rows for domain in self.domains)

    @property
    def dead_letters(self) -> int:
        return sum(domain.dead_letters for domain in self.domains)

    @property
    def late_rows(self) -> int:
        return sum(domain.late_rows for domain in self.domains)

    @property
    def quarantined(self) -> tuple[str, ...]:
        """The domains whose content was refused as a whole."""
        return tuple(domain.domain for domain in self.domains if domain.quarantined)


def merged_outcomes(outcomes: Sequence[HourOutcome]) -> list[HourOutcome]:
    """What several passes over the same hours did, as one outcome per hour: counts add up, content is the last."""
    hours: dict[datetime, list[HourOutcome]] = {}
    for outcome in outcomes:
        hours.setdefault(outcome.hour, []).append(outcome)
    return [
        HourOutcome(
            asset=its[0].asset,
            hour=hour,
            mode=its[0].mode,
            domains=_merged_domains(its),
            duration_s=sum(one.duration_s for one in its),
        )
        for hour, its in sorted(hours.items())
    ]


def _merged_domains(outcomes: Sequence[HourOutcome]) -> tuple[DomainOutcome, ...]:
    domains: dict[str, list[DomainOutcome]] = {}
    for outcome in outcomes:
        for domain in outcome.domains:
            domains.setdefault(domain.domain, []).append(domain)
    return tuple(
        replace(
            its[-1],
            written=sum(one.written for one in its),
            dead_letters=sum(one.dead_letters for one in its),
            late_rows=sum(one.late_rows for one in its),
            gate=_merged_gates([one.gate for one in its]),
        )
        for _, its in sorted(domains.items())
    )


def _merged_gates(gates: Sequence[GateResult]) -> GateResult:
    rows = 0
    reasons: dict[int, str] = {}
    outcomes: dict[tuple[str, str, str], ExpectationOutcome] = {}
    for gate in gates:
        reasons |= {rows + row: reason for row, reason in gate.reasons.items()}
        for one in gate.outcomes:
            key = (one.name, one.column, one.reason)
            sample = tuple(rows + row for row in one.sample_rows)
            known = outcomes.get(key, ExpectationOutcome(*key, 0))
            outcomes[key] = replace(
                known, failed=known.failed + one.failed, sample_rows=(*known.sample_rows, *sample)[:SAMPLE_ROWS]
            )
        rows += gate.rows
    return GateResult(
        asset=gates[-1].asset, domain=gates[-1].domain, rows=rows, reasons=reasons, outcomes=tuple(outcomes.values())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionError:
    """A domain partition that could not be computed."""

    domain: str
    hour: datetime
    error: Exception


@dataclass(slots=True)
class DerivedHours:
    """What a computation of some hours did.

    Attributes:
        outcomes: of what was committed, by hour.
        errors: domain partitions that raised; the others of their slice were committed.
        busy: (domain number, hour) that others held for too long; they stay pending.
        expired: hours that were asked for as a whole and that retention has taken.
    """

    outcomes: list[HourOutcome] = field(default_factory=list)
    errors: list[PartitionError] = field(default_factory=list)
    busy: list[tuple[int, datetime]] = field(default_factory=list)
    expired: list[datetime] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainState:
    """What one domain of an hour holds, for people. ``error``: of its last computation, where that failed;
    ``run_id``: of the run that computed what it holds."""

    domain: str
    rows: int
    rows_failed: int
    status: str
    error: str | None = None
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOutcome:
    """What one tick of the drain did, or why it did nothing (``skip_reason``).

    Attributes:
        held_back: domains whose topics were not drained because something is wrong with the domain as such,
            with what was raised. Their offsets stay; the next tick tries again.
        troubles: what is wrong with single topics or partitions while others are drained.
    """

    batches: int
    messages: int
    raw_rows: int
    dead_letters: int
    lag_messages: int
    skip_reason: str | None
    duration_s: float
    held_back: dict[str, str] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchHour:
    """What one batch added to one (hour, domain). ``reasons`` counts dead letters by reason."""

    hour: datetime
    domain: str
    raw_rows: int
    dead_letters: int
    late_rows: int
    reasons: dict[str, int]
    samples: list[str]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One committed batch of the drain, as its record in the database tells it."""

    batch_id: int
    arrived_at: datetime
    duration_s: float
    hours: tuple[BatchHour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHour:
    """An hour with work to do: the assets that have pending work, in flow order."""

    hour: datetime
    assets: tuple[DerivedName, ...]
    domains: tuple[str, ...]
    pending_items: int
    oldest_pending_at: datetime
    newest_pending_at: datetime
