"""Computes hours of a derived asset, whoever asked for it: composes slices, and splits those that raise.

A run that was requested for pending work computes its scope; one that a person or a backfill started replaces whole
hours. Not here: what happens to one slice, from lock to commit (slice_protocol.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import psycopg2
import psycopg2.errors
import structlog
from sqlalchemy import Engine

from analytics_pipeline.assets.anomalies.calculation import AnomalyCalculation
from analytics_pipeline.assets.calculation import Calculation, Key
from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.assets.kpis.calculation import KpiCalculation
from analytics_pipeline.assets.measurements.calculation import MeasurementCalculation
from analytics_pipeline.assets.slice_protocol import InputsChangedError, Run, SliceProtocol
from analytics_pipeline.assets.slices import compose, halves, live_from
from analytics_pipeline.assets.windows.calculation import WindowCalculation
from analytics_pipeline.domains import Domain, Registry
from analytics_pipeline.errors import PipelineError, RunEndedError, SettingsError
from analytics_pipeline.gc_pause import cycle_collection_paused
from analytics_pipeline.records import DerivedHours, DerivedName, DomainOutcome, HourOutcome, Mode, PartitionError
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import locks, partition_state, pending_work, retention, window_sizes
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection

log = structlog.get_logger(__name__)

#: How often a slice begins anew after a serialization failure or a deadlock.
MAX_RESTARTS = 5
RESTART_JITTER_S = 0.2

#: Begun anew: nothing is wrong with the slice, another transaction was in the way.
RESTARTED = (psycopg2.errors.SerializationFailure, psycopg2.errors.DeadlockDetected)
#: Never split for these: they say nothing of one domain partition …
NOT_SPLIT = (MemoryError, RunEndedError, SettingsError, psycopg2.OperationalError, psycopg2.InterfaceError)
#: … but for what psycopg2 counts among them although the data of one domain may cause it: a row too wide for an
#: index, a statement too long, or one that takes longer than the time-out.
CAUSED_BY_DATA = (
    psycopg2.errors.ProgramLimitExceeded,
    psycopg2.errors.StatementTooComplex,
    psycopg2.errors.TooManyColumns,
    psycopg2.errors.TooManyArguments,
    psycopg2.errors.QueryCanceled,
)


class Deriver:
    """Computes derived assets, slice by slice. Safe to use from several processes at once."""

    def __init__(self, settings: Settings, engine: Engine, domains: Registry, *, code_version: str = "") -> None:
        self._settings = settings
        self._engine = engine
        self._domains = domains
        self._code_version = code_version
        self._numbers = DomainNumbers(engine)
        self.protocol = SliceProtocol(settings, engine)
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
        return done.outcomes[0] if done.outcomes else HourOutcome(
            asset=asset, hour=hour, mode=mode, domains=(), duration_s=0.0
        )

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
            SettingsError: the database holds windows of other sizes; what was committed before they changed stays.
        """
        started = time.monotonic()
        run = Run(
            asset=asset,
            calculation=self._calculations[asset],
            mode=mode,
            run_id=run_id,
            domains=self._wanted(domains),
            wait=wait,
        )
        done = DerivedHours()
        if mode == "full":
            hours = self._kept(run, hours, done)
        found: dict[datetime, list[DomainOutcome]] = {}
        with cycle_collection_paused():
            for key, outcome in self._slices(run, hours, live_from(now or datetime.now(UTC)), done, on_slice):
                found.setdefault(key[1], []).append(outcome)
        wanted = sorted({*found, *(one.hour for one in done.errors)}) if mode == "incremental" else hours
        took_s = time.monotonic() - started
        done.outcomes = [_outcome(run, hour, found.get(hour, ()), took_s) for hour in wanted]
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

    def _kept(self, run: Run, hours: Sequence[datetime], done: DerivedHours) -> list[datetime]:
        """The hours that retention has not taken from every domain; the others are noted."""
        names = [domain.name for domain in run.domains.values()]
        with connection(self._engine) as conn:
            kept = {hour for _, hour in retention.kept_keys(conn, run.asset, [(n, h) for n in names for h in hours])}
        done.expired = [hour for hour in hours if hour not in kept]
        return [hour for hour in hours if hour in kept]

    def _slices(
        self,
        run: Run,
        hours: Sequence[datetime],
        first_live: datetime,
        done: DerivedHours,
        on_slice: Callable[[], None],
    ) -> Iterator[tuple[Key, DomainOutcome]]:
        """Compute slice by slice. Live work takes what is free first, and comes back for what others held."""
        for keys in self._composed(run, hours, first_live):
            is_live = run.mode == "incremental" and keys[0][1] >= first_live
            yield from self._slice(replace(run, wait=run.wait and not is_live, live=is_live), keys, done)
            on_slice()
        if not run.wait:
            done.busy += sorted(run.missed)
        elif run.missed:
            yield from self._slice(run, sorted(run.missed), done)
            on_slice()

    def _composed(self, run: Run, hours: Sequence[datetime], first_live: datetime) -> list[list[Key]]:
        with connection(self._engine) as conn:
            window_sizes.require(conn, self._settings.window_sizes_s)
            if run.mode == "full":
                # Domains that are enabled and never used cost nothing.
                used = partition_state.used_domains(conn, [spec.name for spec in ASSETS], list(run.domains))
                keys = [(number, hour) for hour in hours for number in used or run.domains]
            else:
                keys = self._actionable(conn, run, hours)
            rows = self._estimates(conn, run, hours)
        return compose(keys, lambda key: rows.get(key, 0), first_live)

    def _actionable(self, conn: Connection, run: Run, hours: Sequence[datetime]) -> list[Key]:
        """Domain partitions with work that is not held and does not rest after a failure."""
        failures = partition_state.read_failures(conn, run.asset, hours)
        resting = {key for key, one in failures.items() if one.rests and one.code_version == self._code_version}
        return [
            key
            for key, pending in pending_work.read(conn, run.asset, hours).items()
            if pending.fresh and key[0] in run.domains and key not in resting
        ]

    def _estimates(self, conn: Connection, run: Run, hours: Sequence[datetime]) -> dict[Key, int]:
        """Rows that each domain partition is computed from, about."""
        source = run.calculation.spec.reads[0]
        return {key: state.rows for key, state in partition_state.read_states(conn, source, hours).items()}

    # ------------------------------------------------------------------ splitting what raises

    def _slice(self, run: Run, keys: Sequence[Key], done: DerivedHours) -> Iterator[tuple[Key, DomainOutcome]]:
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

    def _with_restarts(self, run: Run, keys: Sequence[Key]) -> list[tuple[Key, DomainOutcome]]:
        for attempt in range(MAX_RESTARTS + 1):
            try:
                return self.protocol.compute(run, keys)
            except (*RESTARTED, InputsChangedError):
                if attempt == MAX_RESTARTS:
                    raise
                time.sleep(random.random() * RESTART_JITTER_S * (attempt + 1))
        raise AssertionError("unreachable")

    def _busy(self, run: Run, key: Key) -> PartitionError:
        error = PipelineError(
            f"{run.asset} {key[1]:%Y-%m-%d %H:%M}: others computed it for more than "
            f"{locks.LOCK_TIMEOUT_MS // 1000} s; materialize it again"
        )
        return PartitionError(domain=run.domains[key[0]].name, hour=key[1], error=error)

    def _record_failure(self, run: Run, key: Key, error: Exception) -> None:
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


def _outcome(run: Run, hour: datetime, domains: Iterable[DomainOutcome], took_s: float) -> HourOutcome:
    return HourOutcome(
        asset=run.asset,
        hour=hour,
        mode=run.mode,
        domains=tuple(sorted(domains, key=lambda one: one.domain)),
        duration_s=took_s,
    )
