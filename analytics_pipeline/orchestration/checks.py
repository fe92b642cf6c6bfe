"""The gate of each asset as a Dagster check: its definition, and its result for one hour. Computes nothing.

A result is one of three: passed; a warning, when rows were rejected and lie in the dead letters; an error, when
a whole (domain, hour) is quarantined, so that its table is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
    HourlyPartitionsDefinition,
)
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from analytics_pipeline.orchestration.metadata import check_metadata, drained_check_metadata
from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import RAW_EVENTS, BatchHour, DomainState, HourOutcome
from analytics_pipeline.storage.row_counts import RawTotals

CHECK_NAME = "gate"


def gate_check(asset: str, partitions: HourlyPartitionsDefinition) -> AssetCheckSpec:
    """The check of an asset. Partitioned, or the next hour that passes would mask one that failed."""
    return AssetCheckSpec(
        name=CHECK_NAME,
        asset=asset,
        blocking=True,
        partitions_def=partitions,
        description=(
            "Great Expectations over what is about to be written. A row that fails goes to the dead letters; "
            "when a domain's limit is passed, nothing of that domain and hour is written."
        ),
    )


def check_result(
    outcome: HourOutcome,
    held: Sequence[DomainState] = (),
    errors: Mapping[str, Exception] | None = None,
    instance: DagsterInstance | None = None,
) -> AssetCheckEvaluation:
    """The result for one hour, over all of its domains: what this run did, and what the others hold.

    With an instance, it points to the hour's latest materialization.
    """
    errors = errors or {}
    done = {domain.domain for domain in outcome.domains}
    others = [state for state in held if state.domain not in done]
    rows_failed = sum(max(len(d.gate.reasons), d.rows_failed) for d in outcome.domains)
    rows_failed += sum(state.rows_failed for state in others)
    quarantined = sorted({*outcome.quarantined, *(s.domain for s in others if s.status == "quarantined")})
    failed = {**{s.domain: s.error for s in others if s.error}, **{name: str(e) for name, e in errors.items()}}
    key = key_of(outcome.hour)
    return AssetCheckEvaluation(
        asset_key=AssetKey(outcome.asset),
        check_name=CHECK_NAME,
        passed=not rows_failed and not quarantined and not failed,
        severity=AssetCheckSeverity.ERROR if quarantined or failed else AssetCheckSeverity.WARN,
        metadata=check_metadata(outcome, others, failed),
        description=_describe(outcome.asset, quarantined, sorted(failed), rows_failed),
        partition=key,
        # Not "blocking": the step raises on its own, and knows better which hours may continue.
        blocking=False,
        target_materialization_data=_latest_materialization(instance, outcome.asset, key),
    )


def expired_check_result(asset: str, hour: datetime) -> AssetCheckEvaluation:
    """An hour that retention has taken: nothing is wrong with it, and nothing is there."""
    return AssetCheckEvaluation(
        asset_key=AssetKey(asset),
        check_name=CHECK_NAME,
        passed=True,
        severity=AssetCheckSeverity.WARN,
        metadata={"rows": 0, "retention": "taken"},
        description="taken by retention: this hour holds no rows any more",
        partition=key_of(hour),
        blocking=False,
    )


def _describe(asset: str, quarantined: Sequence[str], failed: Sequence[str], rows_failed: int) -> str:
    parts = []
    if quarantined:
        parts.append(f"quarantined: {', '.join(quarantined)}; what they held before stays as it was")
    if failed:
        then = "materialize the hour again" if asset == RAW_EVENTS else "retried automatically"
        parts.append(f"failed: {', '.join(failed)}; {then}")
    if not parts and rows_failed:
        parts.append(f"{rows_failed} rows of this hour are in the dead letters")
    return "; ".join(parts) or "every row passed"


def _latest_materialization(
    instance: DagsterInstance | None, asset: str, key: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    if instance is None:
        return None
    found = instance.fetch_materializations(AssetRecordsFilter(AssetKey(asset), asset_partitions=[key]), 1)
    for record in found.records:
        return AssetCheckEvaluationTargetMaterializationData(
            run_id=record.event_log_entry.run_id, storage_id=record.storage_id, timestamp=record.timestamp
        )
    return None


def drained_check_result(key: str, batch_hours: Sequence[BatchHour], totals: RawTotals) -> AssetCheckEvaluation:
    """What the drain rejected in one hour, over the hour's whole content. Never an error: the drain continues."""
    rejected = totals.dead_letters
    return AssetCheckEvaluation(
        asset_key=AssetKey(RAW_EVENTS),
        check_name=CHECK_NAME,
        passed=not rejected,
        severity=AssetCheckSeverity.WARN,
        metadata=drained_check_metadata(batch_hours, totals),
        description=(
            f"{rejected} messages of this hour are in the dead letters" if rejected else "every message passed"
        ),
        partition=key,
        blocking=False,
    )


def forget_check_results(instance: DagsterInstance, asset: str, keys: Sequence[str]) -> None:
    """Make room for new results for hours that were reported before outside of a run.

    Dagster's table of check executions takes one row per (check, run, partition), and what no run reported
    counts as one and the same run: the second report of an hour would fail the whole tick. The result is about
    the whole hour, so that the one that goes says nothing that the next one does not; its event stays in the log.
    """
    storage = instance.event_log_storage
    if keys and isinstance(storage, SqlEventLogStorage):
        table = AssetCheckExecutionsTable
        with storage.index_connection() as conn:
            conn.execute(
                table.delete().where(
                    table.c.asset_key == AssetKey(asset).to_string(),
                    table.c.check_name == CHECK_NAME,
                    table.c.run_id == RUNLESS_RUN_ID,
                    table.c.partition.in_(list(keys)),
                )
            )
