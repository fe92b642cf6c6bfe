"""The one protocol by which every derived asset is computed, whoever asked for it.

Lock (asset, hour), then open a snapshot; read the marks and the inputs; compute; gate; write, delete exactly
the marks that were read, and mark what depends on what changed; commit. A run that was asked for by marks works
on their scope; one that a person or a backfill started takes the whole hour and replaces it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from analytics_pipeline.domains import Domain, Registry
from analytics_pipeline.flow.garbage import cycle_collection_paused
from analytics_pipeline.flow.steps.anomalies import AnomalyStep
from analytics_pipeline.flow.steps.base import Evaluation, Step, Work, Written
from analytics_pipeline.flow.steps.kpis import KpiStep
from analytics_pipeline.flow.steps.normalize import NormalizeStep
from analytics_pipeline.flow.steps.windows import WindowStep
from analytics_pipeline.quality.gates import quarantines
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import DerivedName, DomainOutcome, HourOutcome, Mode
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import ledger, retention
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.ledger import Mark, PairState, ReadMarks
from analytics_pipeline.storage.locks import hour_lock
from analytics_pipeline.storage.series import SeriesDirectory

#: Failing rows whose reasons are kept with a quarantined pair, for people.
SAMPLE_REASONS = 20


class Deriver:
    """Computes derived assets, hour by hour. Safe to use from several processes at once."""

    def __init__(self, settings: Settings, engine: Engine, domains: Registry) -> None:
        self._settings = settings
        self._engine = engine
        self._domains = domains
        self._series = SeriesDirectory(engine)
        steps: tuple[Step, ...] = (NormalizeStep(), WindowStep(), AnomalyStep(), KpiStep())
        self._steps: dict[DerivedName, Step] = {step.asset: step for step in steps}

    def derive(self, asset: DerivedName, hour: datetime, mode: Mode, run_id: str) -> HourOutcome:
        """Compute one partition of one asset.

        Raises:
            BelowRetentionError: retention has taken the hour; nothing was changed.

        A gate that fails does not raise: the outcome lists the domains that are quarantined, of which nothing
        was written; the other domains are committed.
        """
        started = time.monotonic()
        with connection(self._engine) as conn, hour_lock(conn, asset, hour), cycle_collection_paused():
            kept = retention.kept_domains(conn, asset, hour, list(self._domains.by_name))
            states = ledger.read_states(conn, asset, hour)
            marks = ledger.read_marks(conn, asset, hour)
            outcomes = [
                self._evaluate(conn, asset, hour, domain, scope, marks.get(domain.name), states, run_id)
                for domain, scope in self._wanted(mode, marks, states)
                if domain.name in kept
            ]
            self._commit(conn)
        return HourOutcome(asset, hour, mode, tuple(outcomes), time.monotonic() - started)

    def _wanted(
        self, mode: Mode, marks: dict[str, ReadMarks], states: dict[str, PairState]
    ) -> Iterator[tuple[Domain, tuple[int, ...] | None]]:
        """The domains to compute, with their scopes."""
        for domain in self._domains:
            if mode == "full":
                yield domain, None
                continue
            found = marks.get(domain.name)
            state = states.get(domain.name, PairState())
            if found and not (state.status == "quarantined" and found.newest <= state.evaluated_mark_id):
                yield domain, found.scope

    def _evaluate(
        self,
        conn: Connection,
        asset: DerivedName,
        hour: datetime,
        domain: Domain,
        scope: tuple[int, ...] | None,
        marks: ReadMarks | None,
        states: dict[str, PairState],
        run_id: str,
    ) -> DomainOutcome:
        state = states.get(domain.name, PairState())
        work = Work(conn, self._settings, self._series, domain, hour, scope, state)
        evaluation = self._steps[asset].evaluate(work)
        refused = self._refuses(asset, domain, evaluation) and state.status != "released"
        if refused:
            newest = marks.newest if marks else 0
            if scope is None and (marks is None or marks.scope is not None):
                # What a person asked for in vain stays asked for, as the whole hour.
                newest = ledger.add_mark(conn, Mark(asset, hour, domain.name, None, "quarantined"))
            after = replace(state, status="quarantined", evaluated_mark_id=newest)
            written = Written(state.rows, 0)
        else:
            written = evaluation.write()
            after = PairState(
                written.rows, evaluation.rows_seen, evaluation.rows_failed, _status(state, evaluation)
            )
            ledger.delete_marks(conn, marks.mark_ids if marks else ())
            self._mark_dependents(conn, work, written)
        if refused or domain.name in states or evaluation.rows_seen:
            detail = _detail(evaluation) if evaluation.rows_failed else {}
            ledger.write_state(conn, asset, hour, domain.name, after, detail, run_id)
        return DomainOutcome(
            domain=domain.name,
            rows=written.rows,
            written=written.written,
            dead_letters=0 if refused else evaluation.dead_letters,
            late_rows=evaluation.late_rows,
            gate=evaluation.gate,
            quarantined=refused,
            rows_seen=evaluation.rows_seen,
            rows_failed=evaluation.rows_failed,
        )

    def _refuses(self, asset: DerivedName, domain: Domain, evaluation: Evaluation) -> bool:
        if evaluation.all_or_nothing:
            return not evaluation.gate.passed
        suite = suite_for(asset, domain, self._settings)
        return quarantines(suite, evaluation.rows_seen, evaluation.rows_failed)

    def _mark_dependents(self, conn: Connection, work: Work, written: Written) -> None:
        ledger.add_marks(conn, written.marks)
        if written.later is not None:
            later = written.later
            with connection(self._engine) as committed:
                ledger.mark_later_hours(
                    conn, committed, later.asset, work.hour, later.reach_h, work.domain.name, "look-back"
                )

    def _commit(self, conn: Connection) -> None:
        conn.commit()


def _status(before: PairState, evaluation: Evaluation) -> str:
    """A released pair stays released while rows of it fail; everything else that is written is open."""
    return "released" if before.status == "released" and evaluation.rows_failed else "open"


def _detail(evaluation: Evaluation) -> dict[str, Any]:
    gate = evaluation.gate
    return {
        "rows": gate.rows,
        "rows_failed": evaluation.rows_failed,
        "expectations": {f"{one.name}({one.column})": one.failed for one in gate.outcomes if one.failed},
        "samples": dict(list(gate.reasons.items())[:SAMPLE_REASONS]),
    }
