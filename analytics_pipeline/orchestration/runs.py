"""What runs are under way and what became of those the sensor asked for: Dagster's runs, read for the planning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter

from analytics_pipeline.orchestration.partitions import HourRange, key_of, last_partition_hour, range_of_run
from analytics_pipeline.orchestration.planning import RequestedRun, RunState
from analytics_pipeline.orchestration.tags import (
    BACKFILL_QUEUE,
    BACKFILL_TAG,
    LIVE_QUEUE,
    PARENT_RUN_TAG,
    PARTITION_TAG,
    QUEUE_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    REQUEST_TAG,
)

UNFINISHED = (
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.MANAGED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedRun:
    """One run that may still write."""

    run_id: str
    status: DagsterRunStatus
    hours: HourRange | None
    #: Of the sensor's own request; None for a person's run, a backfill's and a re-execution.
    request_id: str | None
    queue: str
    created_at: datetime
    backfill: str | None = None


def unfinished_runs(instance: DagsterInstance) -> list[UnfinishedRun]:
    """Every run that has not ended."""
    return [_view(record) for record in instance.get_run_records(RunsFilter(statuses=list(UNFINISHED)))]


def _view(record: RunRecord) -> UnfinishedRun:
    tags = record.dagster_run.tags
    return UnfinishedRun(
        run_id=record.dagster_run.run_id,
        status=record.dagster_run.status,
        hours=range_of_run(tags),
        request_id=None if PARENT_RUN_TAG in tags else tags.get(REQUEST_TAG),
        queue=tags.get(QUEUE_TAG, BACKFILL_QUEUE),
        created_at=record.create_timestamp.astimezone(UTC),
        backfill=tags.get(BACKFILL_TAG),
    )


def why_not_to_run(run: DagsterRun, first_hour: datetime, now: datetime) -> str | None:
    """What is wrong with the hours that a run names, with the remedy; None for a run that can be executed.

    Dagster's page offers only what exists. Its API takes anything, and such a run would end in success without a
    materialization, or with Dagster's own stack trace.
    """
    if not run.asset_selection:
        return None
    hours = range_of_run(run.tags)
    named = {name: run.tags[name] for name in (PARTITION_TAG, RANGE_START_TAG, RANGE_END_TAG) if name in run.tags}
    last_hour = last_partition_hour(now)
    remedy = f"choose partitions from {key_of(first_hour)} (PARTITIONS_START) to {key_of(last_hour)}"
    if hours is None:
        return f"this run names no hour that is a partition: {named or 'no partition tag'}; {remedy}"
    if not first_hour <= hours.first <= hours.last <= last_hour:
        return f"this run names hours that have no partition: {named}; {remedy}"
    return None


def busy_hours(runs: Iterable[UnfinishedRun], live_from: datetime) -> frozenset[datetime]:
    """Hours that need not be asked for, because an unfinished run covers them.

    A live hour waits for nobody's backfill: its lock keeps both right, and only a run of that hour alone that
    has begun is worth waiting for.
    """
    busy: set[datetime] = set()
    for run in runs:
        if run.hours is None:
            continue
        soon = run.request_id is not None or (len(run.hours) == 1 and run.status is DagsterRunStatus.STARTED)
        busy.update(hour for hour in run.hours if soon or hour < live_from)
    return frozenset(busy)


def live_waiting(runs: Iterable[UnfinishedRun]) -> bool:
    """Whether a live run of the sensor has not begun yet."""
    begun = (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
    return any(run.request_id is not None and run.queue == LIVE_QUEUE and run.status not in begun for run in runs)


def ranges_under_way(runs: Iterable[UnfinishedRun]) -> int:
    """Unfinished runs of the sensor on the backfill queue."""
    return sum(run.request_id is not None and run.queue == BACKFILL_QUEUE for run in runs)


def requested_runs(
    instance: DagsterInstance, unfinished: Sequence[UnfinishedRun], request_ids: Iterable[str]
) -> dict[str, RequestedRun]:
    """What became of the run of each request. A request whose run does not exist is left out."""
    found = {run.request_id: RequestedRun(RunState.UNDER_WAY) for run in unfinished if run.request_id}
    ended = sorted(set(request_ids) - found.keys())
    if ended:
        for record in instance.get_run_records(RunsFilter(tags={REQUEST_TAG: ended})):
            run = record.dagster_run
            if PARENT_RUN_TAG not in run.tags:
                found[run.tags[REQUEST_TAG]] = _ended(record)
    return found


def _ended(record: RunRecord) -> RequestedRun:
    run = record.dagster_run
    ended_at = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None
    if not run.is_finished:
        return RequestedRun(RunState.UNDER_WAY)
    if run.status is DagsterRunStatus.SUCCESS:
        return RequestedRun(RunState.SUCCEEDED, ended_at)
    if run.status is DagsterRunStatus.CANCELED:
        return RequestedRun(RunState.CANCELED, ended_at, f"run {run.run_id} was terminated")
    return RequestedRun(RunState.FAILED, ended_at, f"run {run.run_id} failed")
