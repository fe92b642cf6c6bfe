"""Reports commits that their run did not live to report: killed between commit and report, terminated, or no run of
Dagster's at all. Each is reported once, also when this process dies between reporting and noting it.

What is unreported is a mark on each outcome, never a position in their order: ids are given before the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
    MetadataValue,
)

from analytics_pipeline.orchestration.checks import check_result, forget_check_results
from analytics_pipeline.orchestration.hourly import is_materialized
from analytics_pipeline.orchestration.metadata import outcome_metadata
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import DomainState, HourOutcome, merged_outcomes
from analytics_pipeline.storage import outcomes
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_if_free
from analytics_pipeline.storage.outcomes import StoredOutcome
from analytics_pipeline.storage.partition_state import domain_states

#: Commits looked at in one tick; what is left goes with the next.
MAX_OUTCOMES_PER_TICK = 5_000
#: Hours reported in one tick, about 10 ms each to store.
MAX_HOURS_PER_TICK = 60
#: Materializations of an hour in which a report is looked for that nobody noted.
MAX_MATERIALIZATIONS = 100

#: In a materialization's metadata: the ids of the commits that it stands for.
OUTCOMES_KEY = "outcomes"

_REPORTS = (
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_CHECK_EVALUATION,
)
Group = Sequence[StoredOutcome]


def report_unreported(
    instance: DagsterInstance, conn: Connection, unfinished_runs: Collection[str], *, valid: Callable[[datetime], bool]
) -> int:
    """Report what finished runs committed and did not report; commits. Returns how many hours were reported.

    The newest hours come first: people look at those. Nothing is done where another process is at it.

    Args:
        unfinished_runs: ids of runs that may still report by themselves.
        valid: whether an hour is a partition; Dagster has no place for others.
    """
    with lock_if_free(conn, "outcome reports") as free:
        if not free:
            return 0
        groups = _groups(outcomes.unreported(conn, unfinished_runs, MAX_OUTCOMES_PER_TICK))
        by_run = {run_id: _reported_by_run(instance, run_id) for run_id in {its[0].run_id for its in groups}}
        shown: list[Group] = []
        missing: list[Group] = []
        for its in groups:
            is_shown = not valid(its[0].hour) or _partition(its) in by_run[its[0].run_id].evaluated
            (shown if is_shown else missing).append(its)
        _note(conn, shown)
        chosen = missing[:MAX_HOURS_PER_TICK]
        outcomes.mark_begun(conn, _ids(chosen))
        conn.commit()
        for its in chosen:
            _report(instance, conn, its, is_materialized_by_run=_partition(its) in by_run[its[0].run_id].materialized)
            _note(conn, [its])
        return len(chosen)


def _groups(found: Iterable[StoredOutcome]) -> list[Group]:
    """What each run did to each hour of an asset, the newest hours first, each in the order of commit."""
    groups: dict[tuple[str, str, datetime], list[StoredOutcome]] = {}
    for one in found:
        groups.setdefault((one.run_id, one.asset, one.hour), []).append(one)
    # Commits of one domain partition come one after the other: there, ids are their order.
    return [sorted(its, key=lambda one: one.outcome_id) for its in groups.values()]


def _partition(its: Group) -> tuple[str, str]:
    return its[0].asset, key_of(its[0].hour)


def _ids(groups: Iterable[Group]) -> list[int]:
    return [one.outcome_id for its in groups for one in its]


def _note(conn: Connection, groups: Iterable[Group]) -> None:
    outcomes.mark_reported(conn, _ids(groups))
    conn.commit()


@dataclass(frozen=True, slots=True)
class _ByRun:
    """(asset, partition) that a run reported. A check result is the last that it says of an hour."""

    materialized: Collection[tuple[str, str | None]]
    evaluated: Collection[tuple[str, str | None]]


def _reported_by_run(instance: DagsterInstance, run_id: str) -> _ByRun:
    materialized, evaluated = set(), set()
    for record in instance.get_records_for_run(run_id, of_type=set(_REPORTS)).records:
        event: Any = record.event_log_entry.dagster_event
        data = event.event_specific_data
        if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluated.add((data.asset_key.to_user_string(), data.partition))
        else:
            materialized.add((str(event.asset_key.to_user_string()), event.partition))
    return _ByRun(materialized, evaluated)


def _report(instance: DagsterInstance, conn: Connection, its: Group, *, is_materialized_by_run: bool) -> None:
    (asset, key), hour = _partition(its), its[0].hour
    held = domain_states(conn, asset, [hour]).get(hour, [])
    outcome = _outcome(its)
    failed = {state.domain: Exception(state.error) for state in held if state.error}
    if is_materialized(outcome, failed) and not is_materialized_by_run and not _is_shown(instance, its):
        metadata = outcome_metadata(_with_rows_of_now(outcome, held), held)
        metadata[OUTCOMES_KEY] = MetadataValue.json(_ids([its]))
        instance.report_runless_asset_event(
            AssetMaterialization(AssetKey(asset), partition=key, metadata=metadata)
        )
    forget_check_results(instance, asset, [key])
    instance.report_runless_asset_event(check_result(_still_held(outcome, its[0].run_id, held), held, {}, instance))


def _outcome(its: Group) -> HourOutcome:
    """What one run did to one hour, as one outcome."""
    passes = [
        HourOutcome(
            asset=one.asset, hour=one.hour, mode=one.mode, domains=(one.domain,), duration_s=one.duration_s
        )
        for one in its
    ]
    return merged_outcomes(passes)[0]


def _with_rows_of_now(outcome: HourOutcome, held: Sequence[DomainState]) -> HourOutcome:
    """Other runs may have computed the hour since."""
    rows = {state.domain: state.rows for state in held}
    return replace(
        outcome, domains=tuple(replace(one, rows=rows.get(one.domain, one.rows)) for one in outcome.domains)
    )


def _still_held(outcome: HourOutcome, run_id: str, held: Sequence[DomainState]) -> HourOutcome:
    """Without the domains that another run has computed since: their state speaks for them."""
    computed_since = {state.domain for state in held if state.run_id not in ("", run_id)}
    return replace(outcome, domains=tuple(one for one in outcome.domains if one.domain not in computed_since))


def _is_shown(instance: DagsterInstance, its: Group) -> bool:
    """Whether a process before this one reported these commits, and died before noting so."""
    if not any(one.begun for one in its):
        return False
    wanted = AssetRecordsFilter(AssetKey(its[0].asset), asset_partitions=[key_of(its[0].hour)])
    shown: set[int] = set()
    for record in instance.fetch_materializations(wanted, MAX_MATERIALIZATIONS).records:
        event = record.asset_materialization
        value = event.metadata.get(OUTCOMES_KEY) if event else None
        shown.update(value.value if value is not None else ())  # type: ignore[arg-type]
    return shown >= set(_ids([its]))
