"""Reports commits that their run did not live to report: killed between commit and report, terminated, or no run of
Dagster's at all. Each is reported once, also when this process dies between reporting and noting it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterEventType,
    DagsterInstance,
)

from analytics_pipeline.orchestration.checks import check_result, forget_check_results
from analytics_pipeline.orchestration.hourly import is_materialized
from analytics_pipeline.orchestration.metadata import outcome_metadata
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import DomainState, HourOutcome
from analytics_pipeline.storage import outcomes
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.outcomes import StoredOutcome
from analytics_pipeline.storage.partition_state import domain_states

#: Commits looked at in one tick; what is left goes with the next.
MAX_OUTCOMES_PER_TICK = 5_000
#: Hours reported in one tick, about 10 ms each to store.
MAX_HOURS_PER_TICK = 60

#: In a materialization's metadata: the newest commit that it stands for.
OUTCOME_KEY = "outcome"

_REPORTS = (
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_CHECK_EVALUATION,
)
Hour = tuple[str, datetime]


def report_unreported(
    instance: DagsterInstance, conn: Connection, unfinished_runs: Collection[str], *, valid: Callable[[datetime], bool]
) -> int:
    """Report what finished runs committed and did not report; commits. Returns how many hours were reported.

    Args:
        unfinished_runs: ids of runs that may still report by themselves.
        valid: whether an hour is a partition; Dagster has no place for others.
    """
    waiting: dict[str, list[StoredOutcome]] = {}
    for outcome in outcomes.unreported(conn, limit=MAX_OUTCOMES_PER_TICK):
        if outcome.run_id not in unfinished_runs:
            waiting.setdefault(outcome.run_id, []).append(outcome)
    reported, left = 0, MAX_HOURS_PER_TICK
    for run_id, its in waiting.items():
        by_run = _reported_by_run(instance, run_id)
        hours: dict[Hour, list[StoredOutcome]] = {}
        for outcome in its:
            hours.setdefault((outcome.asset, outcome.hour), []).append(outcome)
        for hour, found in hours.items():
            if valid(hour[1]) and (hour[0], key_of(hour[1])) not in by_run:
                if not left:
                    continue
                left -= 1
                reported += _report(instance, conn, hour, found)
            outcomes.mark_reported(conn, [one.outcome_id for one in found])
            conn.commit()
    return reported


def _reported_by_run(instance: DagsterInstance, run_id: str) -> set[tuple[str, str | None]]:
    """(asset, partition) that a run reported by itself."""
    found = set()
    records = instance.get_records_for_run(run_id, of_type=set(_REPORTS)).records
    for record in records:
        event: Any = record.event_log_entry.dagster_event
        data = event.event_specific_data
        if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            found.add((data.asset_key.to_user_string(), data.partition))
        else:
            found.add((str(event.asset_key.to_user_string()), event.partition))
    return found


def _report(instance: DagsterInstance, conn: Connection, hour: Hour, its: Sequence[StoredOutcome]) -> bool:
    newest = max(one.outcome_id for one in its)
    if _latest_reported(instance, hour) >= newest:
        return False  # this process, or one before it, reported it and died before noting so
    outcome = _hour_outcome(hour, its)
    held: list[DomainState] = domain_states(conn, hour[0], [hour[1]]).get(hour[1], [])
    if is_materialized(outcome, {}):
        metadata = outcome_metadata(outcome, held) | {OUTCOME_KEY: newest}
        instance.report_runless_asset_event(
            AssetMaterialization(AssetKey(hour[0]), partition=key_of(hour[1]), metadata=metadata)
        )
    forget_check_results(instance, hour[0], [key_of(hour[1])])
    instance.report_runless_asset_event(check_result(outcome, held, {}, instance))
    return True


def _hour_outcome(hour: Hour, its: Sequence[StoredOutcome]) -> HourOutcome:
    """The newest commit of each domain."""
    domains = {one.domain.domain: one.domain for one in sorted(its, key=lambda one: one.outcome_id)}
    duration_s = sum(one.duration_s for one in its)
    return HourOutcome(
        asset=hour[0], hour=hour[1], mode=its[-1].mode, domains=tuple(domains.values()), duration_s=duration_s
    )


def _latest_reported(instance: DagsterInstance, hour: Hour) -> int:
    wanted = AssetRecordsFilter(AssetKey(hour[0]), asset_partitions=[key_of(hour[1])])
    for record in instance.fetch_materializations(wanted, 1).records:
        event = record.asset_materialization
        value = event.metadata.get(OUTCOME_KEY) if event else None
        return int(value.value) if value is not None else 0  # type: ignore[arg-type]
    return 0
