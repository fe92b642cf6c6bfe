"""The one protocol by which a slice is computed, from lock to commit. Not here: which slices, and what if one fails.

Lock the domain partitions of the slice, then open a snapshot; read pending work and inputs; compute; gate; write the
slice, less what is quarantined; delete exactly the pending work that was read; add what depends on what changed;
commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import polars as pl
from sqlalchemy import Engine

from analytics_pipeline.assets.calculation import Calculation, Computed, Context, Key, Work
from analytics_pipeline.assets.partition_results import held_work, holds_rows, must_quarantine, outcome_of, state_of
from analytics_pipeline.domains import Domain
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import DerivedName, DomainOutcome, GateResult, Mode
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import (
    input_versions,
    outcomes,
    partition_state,
    pending_work,
    retention,
    window_sizes,
)
from analytics_pipeline.storage.dagster_tables import require_started_run
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.locks import domain_partition_locks, lock_domain_commits, lock_inputs_shared
from analytics_pipeline.storage.master_data import MasterDataDirectory
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import WHOLE, Invalidation
from analytics_pipeline.storage.series import SeriesDirectory


class InputsChangedError(Exception):
    """The retention floor was raised while the slice was computed: begin anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a slice needs to know of the run that it is part of."""

    asset: DerivedName
    calculation: Calculation
    mode: Mode
    run_id: str
    domains: Mapping[int, Domain]
    #: For domain partitions that others hold; else what is free is computed, and the others are noted in ``missed``.
    wait: bool = True
    #: Whether the slice holds live hours, for pending work.
    live: bool = False
    missed: set[Key] = field(default_factory=set)


class SliceProtocol:
    """Computes and commits one slice of domain partitions of one asset."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._series = SeriesDirectory(engine)
        self._master_data = MasterDataDirectory()

    def compute(self, run: Run, keys: Sequence[Key]) -> list[tuple[Key, DomainOutcome]]:
        """Compute a slice; returns what was committed of each domain partition.

        Raises:
            InputsChangedError: the retention floor was raised meanwhile; nothing was committed.
            SettingsError: the database holds windows of other sizes; nothing was committed.
            psycopg2.errors.LockNotAvailable: others hold a domain partition; nothing was committed.
        """
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
                gate=lambda frame, domains, table="": self._gate(run, frame, domains, table),
                master_data=self._master_data,
                lag_until=_lag_until(self._settings.windows_lag_s) if run.live else None,
                serialize_commits=lambda domain_ids, *what: lock_domain_commits(conn, domain_ids, *what),
                committed=lambda: connection(self._engine),
                holding_rows=lambda wanted: self._holding_rows(run.asset, wanted),
                changed_since_snapshot=lambda wanted: self._changed_since_snapshot(conn, run.asset, wanted),
            )
            computed = run.calculation.compute(context, works)
            found = self._write(run, context, works, computed, time.monotonic() - started)
            require_started_run(conn, self._settings.dagster_schema, run.run_id)
            self._commit(conn)
        return found

    # ------------------------------------------------------------------ reading

    def _works(self, conn: Connection, run: Run, keys: Sequence[Key]) -> list[Work]:
        """The domain partitions to compute, as the snapshot sees them."""
        hours = sorted({key[1] for key in keys})
        kept = retention.kept_keys(conn, run.asset, [(run.domains[key[0]].name, key[1]) for key in keys])
        states = partition_state.read_states(conn, run.asset, hours)
        pending = pending_work.read(conn, run.asset, hours, waiting=run.mode == "full")
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

    def _gate(self, run: Run, frame: pl.DataFrame, domains: Iterable[Domain], table: str) -> GateResult:
        numbers = {domain.name: number for number, domain in run.domains.items()}
        present = sorted({domain.name: domain for domain in domains}.items())
        numbered = tuple((domain, numbers[name]) for name, domain in present)
        return run_gate(suite_for(run.asset, numbered, self._settings, table), frame)

    def _holding_rows(self, asset: DerivedName, wanted: Sequence[Key]) -> set[Key]:
        """Of some domain partitions of an asset, those that hold rows by what is committed now.

        A later hour may be computed at the same time, by a run that sees nothing of this one, and be evaluated before
        this one commits. So runs that change windows of a domain commit one after the other, and the hours are
        looked up by another connection, which sees what this snapshot does not.
        """
        with connection(self._engine) as committed:
            return partition_state.hours_with_rows(committed, asset, wanted)

    def _changed_since_snapshot(self, conn: Connection, asset: DerivedName, wanted: Sequence[Key]) -> set[Key]:
        """Of some domain partitions, those that were committed since this transaction's snapshot."""
        seen = partition_state.updated_at(conn, asset, wanted)
        with connection(self._engine) as committed:
            now = partition_state.updated_at(committed, asset, wanted)
        return {key for key, moment in now.items() if seen.get(key) != moment}

    # ------------------------------------------------------------------ writing

    def _write(
        self, run: Run, context: Context, works: Sequence[Work], computed: Computed, took_s: float
    ) -> list[tuple[Key, DomainOutcome]]:
        conn = context.connection
        spec = run.calculation.spec
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

    def _hold_inputs(self, run: Run, context: Context, works: Sequence[Work]) -> None:
        """Keeps edits out until the commit, and looks whether what was read still stands.

        Raises:
            InputsChangedError: the retention floor was raised meanwhile.
            SettingsError: the window sizes of the database were changed meanwhile.
        """
        lock_inputs_shared(context.connection)
        with connection(self._engine) as committed:
            now = input_versions.read(committed)
            window_sizes.require(committed, self._settings.window_sizes_s)
        if now.retention != context.versions.retention:
            raise InputsChangedError
        if now.master_data != context.versions.master_data and run.calculation.spec.reads_master_data:
            pending_work.add(
                context.connection,
                [
                    Invalidation(
                        asset=run.asset, domain_id=work.domain_id, hour=work.hour, scope=scope, reason="master_data"
                    )
                    for work in works
                    # What else the edit touches it has asked for itself.
                    for scope in (work.pending.scopes() if work.pending and not work.whole else [WHOLE])
                ],
            )

    def _commit(self, conn: Connection) -> None:
        conn.commit()


def _lag_until(lag_s: float) -> datetime | None:
    """The end of the present stretch of that length: what lags in it is done together, soon after."""
    if not lag_s:
        return None
    return datetime.fromtimestamp((time.time() // lag_s + 1) * lag_s, UTC)
