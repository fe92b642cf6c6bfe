"""The Celery app of the workers. Warm: what a run needs is imported before the first run arrives.

One slot serves live data and nothing else; any number of others take everything else:

    celery -A analytics_pipeline.orchestration.celery_app worker -Q live -c 1 -n live@%h
    celery -A analytics_pipeline.orchestration.celery_app worker -Q backfill -c 2 -n backfill@%h
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog
from celery import Celery, signals
from celery.worker.state import active_requests
from dagster import DagsterError, DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster._utils.interrupts import capture_interrupts
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.make_app import make_app
from sqlalchemy.exc import SQLAlchemyError

from analytics_pipeline.orchestration import heartbeat
from analytics_pipeline.orchestration.celery_settings import CELERY_CONFIG
from analytics_pipeline.orchestration.runs import why_not_to_run
from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE, LIVE_QUEUE
from analytics_pipeline.settings import adopt_working_directory, load_settings

log = structlog.get_logger(__name__)

#: Imported by the parent, inherited by its children. The libraries only: whoever starts polars' threads before
#: the fork leaves its children with locks that nobody opens.
PRELOADED = (
    "analytics_pipeline.definitions",
    "analytics_pipeline.assets.derive",
    "analytics_pipeline.assets.raw_events.rebuild",
    "great_expectations",
    "polars",
    "dagster_postgres",
)

adopt_working_directory()
_settings = load_settings()
app: Celery = make_app(  # type: ignore[no-untyped-call]
    {
        "broker": _settings.celery_broker_url,
        "backend": _settings.celery_result_backend,
        "config_source": CELERY_CONFIG,
        "task_default_queue": BACKFILL_QUEUE,
    }
)


#: How much a worker that serves no live data yields to one that does, where both are on one machine.
BACKGROUND_NICENESS = 10


#: A query ends after DB_STATEMENT_TIMEOUT_S, and a run does something soon after.
WAIT_MARGIN_S = 60.0


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _yield_to_live(instance: Any, **_: Any) -> None:
    if LIVE_QUEUE not in instance.app.amqp.queues.consume_from:
        os.nice(BACKGROUND_NICENESS)  # its children inherit it


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _import_before_fork(**_: Any) -> None:
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it logs each function it registers
    for module in PRELOADED:
        importlib.import_module(module)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _warm_up_child(**_: Any) -> None:
    """Pay for the first gate, the first plan and the first connections before the first run."""
    from analytics_pipeline.definitions import defs
    from analytics_pipeline.quality.gates import warm_up

    try:
        defs.get_repository_def()
        _instance().get_runs_count()
        warm_up()
    except Exception:
        log.exception("warm-up failed; the first run will be slower, or say why")


@lru_cache(maxsize=1)
def _instance() -> DagsterInstance:
    """This child's instance, kept from run to run."""
    return DagsterInstance.get()


@app.task(bind=True, name=TASK_EXECUTE_JOB_NAME, track_started=True)  # type: ignore[untyped-decorator]
def execute_job(_self: Any, execute_job_args_packed: Any) -> int:
    """Execute one Dagster run in this process, giving signs of life, and ending when asked to."""
    run_id = _run_id(execute_job_args_packed)
    instance = _instance()
    run = instance.get_run_by_id(run_id)
    if run is None or run.status is not DagsterRunStatus.STARTING:
        # Canceled or failed while it was queued, or delivered a second time.
        log.info("run left alone", run_id=run_id, status=run.status.value if run else "deleted")
        return 0
    reason = why_not_to_run(run, _settings.partitions_start, datetime.now(UTC))
    if reason:
        instance.report_run_failed(run, reason)
        return 0
    client = heartbeat.connect(_settings.celery_broker_url)
    with (
        _signals_kept(),
        heartbeat.signs_of_life(client, run_id, _hooks(instance, run_id)),
        capture_interrupts(),
    ):
        return int(_execute_run_command_body(run_id, instance, lambda _event: None, True))


def _hooks(instance: DagsterInstance, run_id: str) -> heartbeat.RunHooks:
    def report_killed() -> None:
        stopped = instance.get_run_by_id(run_id)
        if stopped is not None and not stopped.is_finished:
            instance.report_run_canceled(stopped, "Did not stop within its time; the worker process was killed.")

    def may_go_on() -> bool:
        try:
            run = instance.get_run_by_id(run_id)
        except (SQLAlchemyError, DagsterError) as error:
            log.warning("whether the run was given up is not known", run_id=run_id, error=str(error))
            return True  # asked again soon; what it writes is checked where it commits
        return run is not None and not run.is_finished

    return heartbeat.RunHooks(report_killed, may_go_on, _settings.db_statement_timeout_s + WAIT_MARGIN_S)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _watch_children(**_: Any) -> None:
    """In the parent: a frozen or hanging child would hold its slot for ever."""

    def watch() -> None:
        children = heartbeat.ChildWatch(heartbeat.connect(_settings.celery_broker_url))
        while True:
            time.sleep(heartbeat.REFRESH_S)
            try:
                children.look(_children_at_work(), time.monotonic())
            except Exception:
                log.exception("children could not be looked after; tried again soon")

    threading.Thread(target=watch, name="watch-children", daemon=True).start()


def _children_at_work() -> list[heartbeat.ChildRun]:
    requests = [one for one in list(active_requests) if one.name == TASK_EXECUTE_JOB_NAME and one.worker_pid]
    return [heartbeat.ChildRun(_run_id(one.kwargs["execute_job_args_packed"]), one.worker_pid) for one in requests]


def _run_id(execute_job_args_packed: Any) -> str:
    return unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs).run_id


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Dagster sets the handler of SIGTERM to that of SIGINT, which Celery's children ignore: they could not be
    stopped any more after their first run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
