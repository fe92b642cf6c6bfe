"""Ends runs that wait for a worker in vain: gone from the queue, or of a canceled backfill. Dagster ends neither.

A run waits in the queue with the status "starting", as long as it takes. When Valkey restarts empty, or a worker
dies between fetching and beginning, it would wait for ever, and its hours with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.execution.backfill import BulkActionStatus

from analytics_pipeline.orchestration.runs import UnfinishedRun

log = structlog.get_logger(__name__)

#: Younger runs may still be on their way into the queue, or from the queue to a worker.
LOOK_AFTER = timedelta(seconds=20)

#: A run is sent to the queue right after it is made; the daemon that made this one died in between.
SENT_WITHIN = timedelta(minutes=2)

#: Suspects of the last look: a run must be missing twice, since it may be just between queue and worker.
_suspects: set[str] = set()


def fail_lost(instance: DagsterInstance, unfinished: Sequence[UnfinishedRun], now: datetime) -> list[str]:
    """Fail the runs that are lost, and return their ids."""
    never_sent = [
        run.run_id
        for run in unfinished
        if run.status is DagsterRunStatus.NOT_STARTED and now - run.created_at > SENT_WITHIN
    ]
    for run_id in never_sent:
        _fail(instance, run_id, DagsterRunStatus.NOT_STARTED, "It was made and never sent to the queue.")
    forgotten = _forgotten(instance, unfinished, now)
    for run_id in forgotten:
        text = "Its task is in no queue and with no worker: it cannot begin any more."
        _fail(instance, run_id, DagsterRunStatus.STARTING, text)
    return never_sent + forgotten


def cancel_of_canceled_backfills(instance: DagsterInstance, unfinished: Sequence[UnfinishedRun]) -> list[str]:
    """Cancel the runs of canceled backfills that were launched and have not begun, and return their ids.

    Dagster cancels those that run and those in its queue, and waits for the others to be computed.
    """
    waiting = [run for run in unfinished if run.backfill and run.status is DagsterRunStatus.STARTING]
    canceled = {name for name in {run.backfill for run in waiting} if name and _is_canceled(instance, name)}
    ended = [run.run_id for run in waiting if run.backfill in canceled]
    for run_id in ended:
        log.info("run of a canceled backfill ended before it began", run_id=run_id)
        instance.run_launcher.terminate(run_id)
    return ended


def _is_canceled(instance: DagsterInstance, backfill_id: str) -> bool:
    backfill = instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status in (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)


def _forgotten(instance: DagsterInstance, unfinished: Sequence[UnfinishedRun], now: datetime) -> list[str]:
    """Runs that wait for a worker and are in no queue, at this look and at the one before."""
    waiting = [
        run.run_id
        for run in unfinished
        if run.status is DagsterRunStatus.STARTING and now - run.created_at > LOOK_AFTER
    ]
    # Not imported by name: the launcher brings Celery along, which a code location rarely needs.
    is_lost = getattr(instance.run_launcher, "is_lost", None) if waiting else None
    if is_lost is None:
        _suspects.clear()
        return []
    missing = {
        run_id for run_id in waiting if (run := instance.get_run_by_id(run_id)) is not None and is_lost(run)
    }
    lost = sorted(missing & _suspects)
    _suspects.clear()
    _suspects.update(missing - set(lost))
    return lost


def _fail(instance: DagsterInstance, run_id: str, expected: DagsterRunStatus, text: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status is expected:
        log.warning("run lost on its way to a worker", run_id=run_id)
        instance.report_run_failed(run, text)
