"""The one protocol by which every derived asset is computed, whoever asked for it.

Lock the domain partitions of a slice, then open a snapshot; read pending work and inputs; compute; gate; write the
slice, less what is quarantined; delete exactly the pending work that was read; ask for what depends on what changed;
commit. A run that was asked for by pending work computes its scope; one that a person or a backfill started takes
whole hours and replaces them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import polars as pl
import psycopg2
import psycopg2.errors
import structlog
from sqlalchemy import Engine

from analytics_pipeline.assets.anomalies.calculation import AnomalyCalculation
from analytics_pipeline.assets.calculation import Calculation, Computed, Context, Key, Work
from analytics_pipeline.assets.kpis.calculation import KpiCalculation
from analytics_pipeline.assets.measurements.calculation import MeasurementCalculation
from analytics_pipeline.assets.partition_results import held_work, holds_rows, must_quarantine, outcome_of, state_of
from analytics_pipeline.assets.slices import compose, halves, live_from
from analytics_pipeline.assets.windows.calculation import WindowCalculation
from analytics_pipeline.domains import Domain, Registry
from analytics_pipeline.errors import PipelineError, RunEndedError
from analytics_pipeline.gc_pause import cycle_collection_paused
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import (
    DerivedHours,
    DerivedName,
    DomainOutcome,
    GateResult,
    HourOutcome,
    Mode,
    PartitionError,
)
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import (
    input_versions,
    locks,
    outcomes,
    partition_state,
    pending_work,
    retention,
    window_sizes,
)
from analytics_pipeline.storage.dagster_tables import require_started_run
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.limits import LimitDirectory
from analytics_pipeline.storage.locks import domain_partition_locks, lock_domain_commits, lock_inputs_shared
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import Invalidation
from analytics_pipeline.storage.series import SeriesDirectory

log = structlog.get_logger(__name__)

#: Failing rows whose reasons are kept with a quarantined domain partition, for people.
SAMPLE_REASONS = 20
#: How often a slice begins anew after a serialization failure or a deadlock.
MAX_RESTARTS = 5
RESTART_JITTER_S = 0.2

#: Begun anew: nothing is wrong with the slice, another transaction was in the way.
RESTARTED = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
#: Never split for these: they say nothing of one domain partition …
NOT_SPLIT = (MemoryError, RunEndedError, psycopg2.OperationalError, psycopg2.InterfaceError)
#: … but for what psycopg2 counts among them although the data of one domain may cause it: a row too wide for an
#: index, a statement too long, or one that takes longer than the time-out.
CAUSED_BY_DATA = (
    psycopg2.errors.ProgramLimitExceeded,
    psycopg2.errors.StatementTooComplex,
    psycopg2.errors.TooManyColumns,
    psycopg2.errors.TooManyArguments,
    psycopg2.errors.QueryCanceled,
)


class _InputsChangedError(Exception):
    """The retention floor was raised while the slice was computed: begin anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a slice needs to know of the run that it is part of."""

    asset: DerivedName
    mode: Mode
    run_id: str
    domains: Mapping[int, Domain]
    #: For domain partitions that others hold; else what is free is computed, and the others are noted in ``missed``.
    wait: bool = True
    missed: set[Key] = field(default_factory=set)


class Deriver:
    """Computes derived assets, slice by slice. Safe to use from several processes at once."""

    def __init__(self, settings: Settings, engine: Engine, domains: Registry, *, code_version: str = "") -> None:
        self._settings = settings
        self._engine = engine
        self._domains = domains
        self._code_version = code_version
        self._numbers = DomainNumbers(engine)
        self._series = SeriesDirectory(engine)
        self._limits = LimitDirectory()
        calculations: tuple[Calculation, ...] = (
            MeasurementCalculation(),
            WindowCalculation(),
            AnomalyCalculation(),
            KpiCalculation(),
        )
        self._calculations: dict[str, Calculation] = {one.spec.name: one for one in calculations}

    # ------------------------------------------------------------------ what callers use

    def derive(self, asset: DerivedName, hour: datetime, mode: Mode, run_id: str) -> HourOutcome:
        """Compute one hour of one asset; returns what was committed of it.

        Raises:
            BelowRetentionError: retention has taken the hour; nothing was changed.
            Exception: what the first domain that failed raised; the others are committed.
        """
        done = self.derive_hours(asset, [hour], mode, run_id)
        if done.errors:
            raise done.errors[0].error
        if done.expired:
            with connection(self._engine) as conn:
                retention.refuse_below_floor(conn, asset, hour)
        return done.outcomes[0] if done.outcomes else HourOutcome(asset, hour, mode, (), 0.0)

    def derive_hours(
        self,
        asset: DerivedName,
        hours: Sequence[datetime],
        mode: Mode,
        run_id: str,
        *,
        domains: Sequence[str] | None = None,
        now: datetime | None = None,
        wait: bool = True,
        on_slice: Callable[[], None] = lambda: None,
    ) -> DerivedHours:
        """Compute some hours of one asset: of all enabled domains, or of those named.

        A gate that fails does not raise: the outcome lists the domains that are quarantined, of which nothing was
        written. A domain partition that raises is listed in ``errors``; the others are committed.

        Args:
            now: tells live hours from older ones.
            wait: for domain partitions that others hold; otherwise they are left, and listed in ``busy``.
            on_slice: called after each commit.

        Raises:
            PipelineError: a domain is named that is not enabled; nothing was changed.
        """
        started = time.monotonic()
        run = _Run(asset=asset, mode=mode, run_id=run_id, domains=self._wanted(domains), wait=wait)
        done = DerivedHours()
        if mode == "full":
            hours = self._kept(run, hours, done)
        found: dict[datetime, list[DomainOutcome]] = {}
        with cycle_collection_paused():
            for key, outcome in self._slices(run, hours, live_from(now or datetime.now(UTC)), done, on_slice):
                found.setdefault(key[1], []).append(outcome)
        took = time.monotonic() - started
        wanted = sorted({*found, *(one.hour for one in done.errors)}) if mode == "incremental" else hours
        done.outcomes = [
            HourOutcome(asset, hour, mode, tuple(sorted(found.get(hour, ()), key=lambda one: one.domain)), took)
            for hour in wanted
        ]
        return done

    # ------------------------------------------------------------------ composing slices

    def _wanted(self, domains: Sequence[str] | None) -> dict[int, Domain]:
        """The domains to compute, by number."""
        unknown = sorted(set(domains or ()) - self._domains.by_name.keys())
        if unknown:
            raise PipelineError(
                f"unknown or disabled domains: {', '.join(unknown)}; enabled are {', '.join(self._domains.by_name)}"
            )
        names = [name for name in self._domains.by_name if domains is None or name in domains]
        return {number: self._domains.by_name[name] for name, number in self._numbers.numbers(names).items()}

    def _kept(self, run: _Run, hours: Sequence[datetime], done: DerivedHours) -> list[datetime]:
        """The hours that retention has not taken from every domain; the others are noted."""
        names = [domain.name for domain in run.domains.values()]
        with connection(self._engine) as conn:
            kept = {hour for _, hour in retention.kept_keys(conn, run.asset, [(n, h) for n in names for h in hours])}
        done.expired = [hour for hour in hours if hour not in kept]
        return [hour for hour in hours if hour in kept]

    def _slices(
        self,
        run: _Run,
        hours: Sequence[datetime],
        first_live: datetime,
        done: DerivedHours,
        on_slice: Callable[[], None],
    ) -> Iterator[tuple[Key, DomainOutcome]]:
        """Compute slice by slice. Live work takes what is free first, and comes back for what others held."""
        for keys in self._composed(run, hours, first_live):
            is_live = run.mode == "incremental" and keys[0][1] >= first_live
            yield from self._slice(replace(run, wait=run.wait and not is_live), keys, done)
            on_slice()
        if not run.wait:
            done.busy += sorted(run.missed)
        elif run.missed:
            yield from self._slice(run, sorted(run.missed), done)
            on_slice()

    def _composed(self, run: _Run, hours: Sequence[datetime], first_live: datetime) -> list[list[Key]]:
        with connection(self._engine) as conn:
            window_sizes.require(conn, self._settings.window_sizes_s)
            if run.mode == "full":
                keys = [(number, hour) for hour in hours for number in run.domains]
            else:
                keys = self._actionable(conn, run, hours)
            rows = self._estimates(conn, run.asset, hours)
        return compose(keys, lambda key: rows.get(key, 0), first_live)

    def _actionable(self, conn: Connection, run: _Run, hours: Sequence[datetime]) -> list[Key]:
        """Domain partitions with work that is not held and does not rest after a failure."""
        failures = partition_state.read_failures(conn, run.asset, hours)
        now = datetime.now(UTC)
        return [
            key
            for key, pending in pending_work.read(conn, run.asset, hours).items()
            if pending.fresh
            and key[0] in run.domains
            and not (
                key in failures
                and failures[key].next_try_at > now
                and failures[key].code_version == self._code_version
            )
        ]

    def _estimates(self, conn: Connection, asset: DerivedName, hours: Sequence[datetime]) -> dict[Key, int]:
        """Rows that each domain partition is computed from, about."""
        source = self._calculations[asset].spec.reads[0]
        return {key: state.rows for key, state in partition_state.read_states(conn, source, hours).items()}

    # ------------------------------------------------------------------ one slice, and what is split of it

    def _slice(self, run: _Run, keys: Sequence[Key], done: DerivedHours) -> Iterator[tuple[Key, DomainOutcome]]:
        """Compute a slice; split it where it raises, until the guilty domain partition stands alone."""
        try:
            yield from self._with_restarts(run, keys)
        except psycopg2.errors.LockNotAvailable:
            done.busy += keys
            if run.mode == "full":
                # A person asked for it, and nothing pending will bring it back.
                done.errors += [self._busy(run, key) for key in keys]
        except Exception as error:
            if isinstance(error, NOT_SPLIT) and not isinstance(error, CAUSED_BY_DATA):
                raise
            if len(keys) > 1:
                log.warning("slice split", asset=run.asset, partitions=len(keys), error=str(error))
                for half in halves(keys):
                    yield from self._slice(run, half, done)
                return
            self._record_failure(run, keys[0], error)
            done.errors.append(PartitionError(domain=run.domains[keys[0][0]].name, hour=keys[0][1], error=error))

    def _with_restarts(self, run: _Run, keys: Sequence[Key]) -> list[tuple[Key, DomainOutcome]]:
        for attempt in range(MAX_RESTARTS + 1):
            try:
                return self._compute(run, keys)
            except (*RESTARTED, _InputsChangedError):
                if attempt == MAX_RESTARTS:
                    raise
                time.sleep(random.random() * RESTART_JITTER_S * (attempt + 1))
        raise AssertionError("unreachable")

    def _busy(self, run: _Run, key: Key) -> PartitionError:
        error = PipelineError(
            f"{run.asset} {key[1]:%Y-%m-%d %H:%M}: others computed it for more than "
            f"{locks.LOCK_TIMEOUT_MS // 1000} s; materialize it again"
        )
        return PartitionError(domain=run.domains[key[0]].name, hour=key[1], error=error)

    def _record_failure(self, run: _Run, key: Key, error: Exception) -> None:
        log.error(
            "domain partition failed",
            asset=run.asset,
            hour=key[1].isoformat(),
            domain=run.domains[key[0]].name,
            error=f"{type(error).__name__}: {error}",
            exc_info=error,
        )
        with suppress(psycopg2.Error), connection(self._engine) as conn:
            partition_state.record_failure(
                conn, run.asset, key, code_version=self._code_version, error=f"{type(error).__name__}: {error}"
            )
            conn.commit()

    def _compute(self, run: _Run, keys: Sequence[Key]) -> list[tuple[Key, DomainOutcome]]:
        started = time.monotonic()
        with (
            connection(self._engine) as conn,
            domain_partition_locks(conn, run.asset, keys, wait=run.wait) as held,
        ):
            run.missed.update(set(keys).difference(held))
            versions = input_versions.read(conn)
            works = self._works(conn, run, held)
            if not works:
                return []
            context = Context(
                connection=conn,
                settings=self._settings,
                series=self._series,
                versions=versions,
                gate=lambda frame, domains: self._gate(run, frame, domains),
                limit_rows=self._limits,
                serialize_commits=lambda domain_ids: lock_domain_commits(conn, domain_ids),
                holding_windows=self._holding_windows,
                changed_since_snapshot=lambda wanted: self._changed_since_snapshot(conn, run.asset, wanted),
            )
            computed = self._calculations[run.asset].compute(context, works)
            found = self._write(run, context, works, computed, time.monotonic() - started)
            require_started_run(conn, self._settings.dagster_schema, run.run_id)
            self._commit(conn)
        return found

    # ------------------------------------------------------------------ reading

    def _works(self, conn: Connection, run: _Run, keys: Sequence[Key]) -> list[Work]:
        """The domain partitions to compute, as the snapshot sees them."""
        hours = sorted({key[1] for key in keys})
        kept = retention.kept_keys(conn, run.asset, [(run.domains[key[0]].name, key[1]) for key in keys])
        states = partition_state.read_states(conn, run.asset, hours)
        pending = pending_work.read(conn, run.asset, hours)
        works = []
        for key in keys:
            domain, its = run.domains[key[0]], pending.get(key)
            wanted = run.mode == "full" or (its is not None and its.fresh)
            if wanted and (domain.name, key[1]) in kept:
                works.append(
                    Work(
                        domain=domain,
                        domain_id=key[0],
                        hour=key[1],
                        pending=its,
                        whole=run.mode == "full" or its is None or its.whole,
                        state=states.get(key, PartitionState()),
                    )
                )
        return works

    def _gate(self, run: _Run, frame: pl.DataFrame, domains: Iterable[Domain]) -> GateResult:
        numbers = {domain.name: number for number, domain in run.domains.items()}
        present = sorted({domain.name: domain for domain in domains}.items())
        return run_gate(
            suite_for(run.asset, tuple((domain, numbers[name]) for name, domain in present), self._settings), frame
        )

    def _holding_windows(self, wanted: Sequence[Key]) -> set[Key]:
        """Of some domain partitions, those that hold windows by what is committed now.

        A later hour may be computed at the same time, by a run that sees nothing of this one, and be evaluated before
        this one commits. So runs that change windows of a domain commit one after the other, and the hours are
        looked up by another connection, which sees what this snapshot does not.
        """
        with connection(self._engine) as committed:
            return partition_state.hours_with_rows(committed, "window_aggregates", wanted)

    def _changed_since_snapshot(self, conn: Connection, asset: DerivedName, wanted: Sequence[Key]) -> set[Key]:
        """Of some domain partitions, those that were committed since this transaction's snapshot."""
        seen = partition_state.updated_at(conn, asset, wanted)
        with connection(self._engine) as committed:
            now = partition_state.updated_at(committed, asset, wanted)
        return {key for key, moment in now.items() if seen.get(key) != moment}

    # ------------------------------------------------------------------ writing

    def _write(
        self, run: _Run, context: Context, works: Sequence[Work], computed: Computed, took_s: float
    ) -> list[tuple[Key, DomainOutcome]]:
        conn = context.connection
        spec = self._calculations[run.asset].spec
        quarantined = frozenset(work.key for work in works if must_quarantine(spec, work, computed.validated[work.key]))
        accepted = frozenset(work.key for work in works) - quarantined
        written, stale = computed.write(accepted)
        pending_work.delete(conn, [one for work in works if work.pending for one in work.pending.work_ids])
        pending_work.add(conn, held_work(run.asset, works, computed.validated, quarantined), held=True)
        pending_work.add(conn, stale)
        found = [(work.key, outcome_of(work, computed.validated[work.key], written.get(work.key))) for work in works]
        states = {
            work.key: state_of(work, computed.validated[work.key], written.get(work.key))
            for work in works
            if work.state != PartitionState() or work.key in quarantined or holds_rows(written.get(work.key))
        }
        partition_state.write_states(conn, run.asset, states, run.run_id)
        partition_state.clear_failures(conn, run.asset, [work.key for work in works])
        outcomes.write(
            conn,
            run.asset,
            [(key[0], key[1], outcome) for key, outcome in found],
            run_id=run.run_id,
            mode=run.mode,
            duration_s=took_s,
        )
        self._hold_inputs(run, context, works)
        return found

    def _hold_inputs(self, run: _Run, context: Context, works: Sequence[Work]) -> None:
        """Keeps edits out until the commit, and looks whether what was read still stands.

        Raises:
            _InputsChangedError: the retention floor was raised meanwhile.
        """
        lock_inputs_shared(context.connection)
        with connection(self._engine) as committed:
            now = input_versions.read(committed)
        if now.retention != context.versions.retention:
            raise _InputsChangedError
        if now.master_data != context.versions.master_data and self._calculations[run.asset].spec.reads_master_data:
            pending_work.add(
                context.connection,
                [
                    Invalidation(asset=run.asset, domain_id=w.domain_id, hour=w.hour, reason="master_data")
                    for w in works
                ],
            )

    def _commit(self, conn: Connection) -> None:
        conn.commit()
