"""Dagster's events of many hours, stored together: its pages must read what they read of events stored one by one."""

# No "from __future__ import annotations" here: Dagster reads the annotation of ``context``.

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    AssetSpec,
    BackfillPolicy,
    DagsterInstance,
    Definitions,
    Output,
    StaticPartitionsDefinition,
    multi_asset,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from sqlalchemy import event

from analytics_pipeline.orchestration.event_batches import event_batch

KEYS = [f"2026-11-01-{hour:02}:00" for hour in range(24)]
FAILED = KEYS[7]
ASSET, CHECK = AssetKey("some_asset"), AssetCheckKey(AssetKey("some_asset"), "gate")
Batch = AbstractContextManager[None]


def materialization(key: str, rows: int = 1) -> AssetMaterialization:
    return AssetMaterialization(ASSET, partition=key, metadata={"rows": rows})


def evaluation(key: str) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=ASSET,
        check_name="gate",
        passed=key != FAILED,
        severity=AssetCheckSeverity.WARN,
        metadata={"rows": 1},
        partition=key,
    )


def report(instance: DagsterInstance, keys: list[str], rows: int = 1) -> None:
    for key in keys:
        instance.report_runless_asset_event(materialization(key, rows))
        instance.report_runless_asset_event(evaluation(key))


def run(instance: DagsterInstance, *, batched: bool) -> str:
    """One run over all keys, which reports each key; returns its id."""
    partitions = StaticPartitionsDefinition(KEYS)

    @multi_asset(
        specs=[AssetSpec(ASSET, partitions_def=partitions)],
        check_specs=[AssetCheckSpec("gate", asset=ASSET, partitions_def=partitions)],
        partitions_def=partitions,
        backfill_policy=BackfillPolicy.single_run(),
    )
    def some(context: AssetExecutionContext) -> Iterator[Any]:
        batch: Batch = event_batch(context.instance) if batched else nullcontext()
        with batch:
            for key in KEYS:
                yield materialization(key)
                yield evaluation(key)
        yield Output(None, "some_asset", metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})
        yield Output(None, "some_asset_gate")

    job = Definitions([some]).resolve_implicit_global_asset_job_def()
    tags = {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[-1]}
    result = job.execute_in_process(instance=instance, tags=tags)
    assert result.success
    return str(result.run_id)


def seen(instance: DagsterInstance, run_id: str) -> dict[str, Any]:
    """What pages read of a run: events by type, and each evaluation with the materialization that it points to."""
    records = instance.get_records_for_run(run_id).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    made = {one.storage_id: one.event_log_entry.get_dagster_event().partition for one in records}
    history = instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=1000)
    executions = [one for one in history if one.run_id == run_id]
    reports = ("ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION")
    return {
        "types": sorted(one.event_type_value for one in events),
        "materialized": [one.partition for one in events if one.event_type_value == reports[0]],
        "evaluated": [
            (data.partition, data.passed, data.metadata["rows"].value)
            for one in events
            if one.event_type_value == reports[1]
            and isinstance(data := one.event_specific_data, AssetCheckEvaluation)
        ],
        "executions": sorted((one.partition or "", one.status.value) for one in executions),
        "targets": sorted(
            made[target.storage_id] or ""
            for one in executions
            if one.event
            and one.event.dagster_event
            and isinstance(data := one.event.dagster_event.event_specific_data, AssetCheckEvaluation)
            and (target := data.target_materialization_data)
        ),
    }


def test_a_batched_run_reads_as_one_whose_events_were_stored_one_by_one(dagster_instance: DagsterInstance) -> None:
    one_by_one = seen(dagster_instance, run(dagster_instance, batched=False))
    together = seen(dagster_instance, run(dagster_instance, batched=True))
    assert one_by_one.pop("targets") == []  # an evaluation that was yielded as such points nowhere
    assert together.pop("targets") == KEYS
    assert together == one_by_one
    assert together["materialized"] == KEYS
    assert [key for key, passed, _ in together["evaluated"] if not passed] == [FAILED]


def test_reports_without_a_run_can_be_repeated(dagster_instance: DagsterInstance) -> None:
    for rows in (1, 2):
        with event_batch(dagster_instance):
            report(dagster_instance, KEYS, rows)
    assert set(dagster_instance.get_materialized_partitions(ASSET)) == set(KEYS)
    history = dagster_instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=1000)
    assert len(history) == len(KEYS)
    latest = dagster_instance.fetch_materializations(AssetRecordsFilter(ASSET, asset_partitions=[KEYS[3]]), 1)
    assert latest.records[0].asset_materialization.metadata["rows"].value == 2  # type: ignore[union-attr]


def test_what_was_reported_before_an_error_is_stored(dagster_instance: DagsterInstance) -> None:
    def report_some() -> None:
        with event_batch(dagster_instance):
            report(dagster_instance, KEYS[:5])
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        report_some()
    assert set(dagster_instance.get_materialized_partitions(ASSET)) == set(KEYS[:5])


def test_a_batch_takes_few_statements_however_many_hours_it_has(dagster_instance: DagsterInstance) -> None:
    statements: list[str] = []
    engine = dagster_instance.event_log_storage._engine  # type: ignore[attr-defined]

    def note(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with event_batch(dagster_instance):
            report(dagster_instance, KEYS)
            statements.clear()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert 0 < len(statements) < 15, statements
