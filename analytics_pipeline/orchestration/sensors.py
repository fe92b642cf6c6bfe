"""``drain_kafka``: each tick drains, reports what was drained, and asks for runs for what is pending.

What is pending decides, never what this tick drained: a crash anywhere loses no work and no report.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg2
import structlog
from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
)

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.orchestration import fingerprint, lost_runs
from analytics_pipeline.orchestration.checks import forget_check_results
from analytics_pipeline.orchestration.event_batches import event_batch
from analytics_pipeline.orchestration.outcome_reports import report_unreported
from analytics_pipeline.orchestration.partitions import key_of, last_partition_hour
from analytics_pipeline.orchestration.planning import Plan, Request, Situation, make_plan
from analytics_pipeline.orchestration.reporting import Cursor, Live, Selection, events, is_behind, select
from analytics_pipeline.orchestration.resources import DRAIN_LOCK, Pipeline
from analytics_pipeline.orchestration.runs import (
    UnfinishedRun,
    busy_hours,
    live_waiting,
    ranges_under_way,
    requested_runs,
    unfinished_runs,
)
from analytics_pipeline.orchestration.tags import (
    CODE_TAG,
    INCREMENTAL,
    LIVE_QUEUE,
    LONGEST_TIME_TAG,
    MODE_TAG,
    QUEUE_TAG,
    REQUEST_TAG,
)
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, DrainOutcome, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.batches import batches_after, live_batches_after, newest_batch_id
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.live_signal import live_data_came, notify
from analytics_pipeline.storage.pending_work import actionable_hours, live_items
from analytics_pipeline.storage.row_counts import raw_totals
from analytics_pipeline.storage.run_requests import delete_requests, read_requests, write_requests

log = structlog.get_logger(__name__)

SENSOR_NAME = "drain_kafka"

#: A live run takes seconds. One that hangs holds the one slot that live data has; its work is asked for again.
LIVE_RUN_LONGEST_S = 120

#: How the reason of a tick begins that drained nothing because live work waits.
PAUSED = "paused by backpressure"
STILL_DRAINING = "an earlier tick is still draining"
#: The first drain of a process imports Great Expectations; what it finds then, the next tick tells.
FIRST_PASS_WITHIN_S = 3.0

#: Batches reported together at most. What is left goes with the next tick.
MAX_BATCHES_PER_TICK = 200


def build_drain_sensor(settings: Settings) -> SensorDefinition:
    """The sensor. It runs by default: without it nothing flows."""
    return SensorDefinition(
        name=SENSOR_NAME,
        evaluation_fn=_evaluate,
        required_resource_keys={"pipeline"},
        asset_selection=AssetSelection.assets(RAW_EVENTS, *DERIVED),
        # The daemon looks every 5 s and skips a sensor whose last tick began less than its interval ago. That
        # tick began a little after the daemon looked: with the whole interval, every other tick would be lost.
        minimum_interval_seconds=max(1, settings.drain_interval_s - 1),
        default_status=DefaultSensorStatus.RUNNING,
        description=(
            "Drains Kafka into raw_events, reports what came per hour, and asks for runs for the hours that "
            "have something to do. Careful: testing it in this UI really drains."
        ),
    )


def _evaluate(context: SensorEvaluationContext) -> SensorResult:
    pipeline: Pipeline = context.resources.pipeline
    # Only the daemon says since when the sensor runs; "Test sensor" in the UI does not, and starts no runs.
    tested = context.last_sensor_start_time is None
    linger = not tested and pipeline.settings.linger_s > 0
    result = tick(pipeline, context.instance, context.cursor, datetime.now(UTC), real=not tested, linger=linger)
    return result if tested else _stored(context.instance, result)


def _stored(instance: DagsterInstance, result: SensorResult) -> SensorResult:
    """The result with its reports stored: here they are stored together, the daemon would store them one by one. Where
    this process dies before the daemon knows the cursor, they are stored again."""
    with event_batch(instance):
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
    return result._replace(asset_events=[])


def tick(
    pipeline: Pipeline,
    instance: DagsterInstance,
    cursor: str | None,
    now: datetime,
    *,
    real: bool = True,
    linger: bool = False,
) -> SensorResult:
    """One evaluation: drain, report, ask.

    ``real``: whether this tick is real, so that its reports are kept and the runs that it asks for are started.
    A test in the UI deletes no check result and ends no run. ``linger``: drain on until the next tick, in a thread.
    """
    drained, rows_came = _drain(pipeline, now, linger=linger)
    unfinished = unfinished_runs(instance)
    if real:
        lost_runs.fail_lost(instance, unfinished, now)
        lost_runs.cancel_of_canceled_backfills(instance, unfinished)
        _advance_states(pipeline)
    with pipeline.connection() as conn:
        selection = _select(pipeline.settings, conn, cursor, now)
        totals = raw_totals(conn, list(selection.batch_hours))
        if real:
            _report_commits(pipeline.settings, instance, conn, unfinished, now)
        drained_live = rows_came and live_data_came(
            conn, hour_of(now) - HOUR, now - 2 * timedelta(seconds=pipeline.settings.drain_interval_s)
        )
        plan = _plan(pipeline, instance, conn, unfinished, now, drained_live=drained_live)
        if real:
            if any(request.queue == LIVE_QUEUE for request in plan.requests):
                notify(conn, "superseded")  # the live run that lingers makes room
            conn.commit()
    if real:
        forget_check_results(instance, RAW_EVENTS, [key_of(hour) for hour in selection.batch_hours])
    requests = [_run_request(request) for request in plan.requests]
    words = _words(drained, selection, plan)
    log.info("tick", words=words, requests=len(requests), hours_reported=len(selection.batch_hours))
    return SensorResult(
        run_requests=requests,
        skip_reason=None if requests else words,
        # Dagster shows no words beside a tick that asks for runs, but it shows the cursor.
        cursor=f"{selection.cursor} {words}",
        asset_events=events(selection, totals),
    )


def _drain(pipeline: Pipeline, now: datetime, *, linger: bool) -> tuple[str, bool]:
    """Drain; what happened since the last tick, in words for people, and whether rows came, or may have come."""
    try:
        if linger:
            loop = pipeline.drain_loop(lambda at: drain_once(pipeline, at))
            loop.keep_alive(pipeline.settings.linger_s, first_pass_within_s=FIRST_PASS_WITHIN_S)
            outcome = loop.take()
        else:
            outcome = drain_once(pipeline, now)
    except PipelineError as error:
        # What is pending continues without the broker.
        log.warning("drain failed", error=str(error))
        return f"not drained: {error}", False
    if outcome is None:
        return "still draining", True  # it commits as it goes
    troubles = "".join(f"; {trouble}" for trouble in outcome.troubles)
    if outcome.messages == 0:
        reason = outcome.skip_reason or "no new messages"
        return (reason if reason.startswith((PAUSED, STILL_DRAINING)) else f"idle: {reason}"), False
    words = (
        f"drained {outcome.messages} messages in {outcome.duration_s:.2f} s ({outcome.raw_rows} rows, "
        f"{outcome.dead_letters} dead letters), lag {outcome.lag_messages}{troubles}"
    )
    return words, outcome.raw_rows > 0


def _advance_states(pipeline: Pipeline) -> None:
    """Here and not in a run: it takes milliseconds, a run each minute would wait behind backfills, and what it asks for
    is asked of the same tick."""
    try:
        pipeline.advance_states()
    except psycopg2.Error as error:
        log.warning("the clock of states stands until the next tick", error=str(error))


def drain_once(pipeline: Pipeline, now: datetime) -> DrainOutcome:
    """Drain to the end of the logs, unless live work waits that nobody gets done.

    Raises:
        PipelineError: nothing was moved; Kafka keeps the rest.
    """
    if not DRAIN_LOCK.acquire(blocking=False):
        return _nothing_drained(STILL_DRAINING, 0)
    try:
        with pipeline.connection() as conn:
            waiting = live_items(
                conn,
                hour_of(now) - HOUR,
                domains=list(pipeline.domains.by_name),
                code_version=fingerprint.LOADED,
            )
        limit = pipeline.settings.backpressure_pending
        if waiting > limit:
            lag = pipeline.look()
            words = (
                f"{PAUSED}: {waiting} items of live work pending, limit {limit} (BACKPRESSURE_PENDING); "
                f"Kafka keeps the rest, lag {lag}"
            )
            return _nothing_drained(words, lag)
        return pipeline.drain(now)
    finally:
        DRAIN_LOCK.release()


def _nothing_drained(reason: str, lag_messages: int) -> DrainOutcome:
    return DrainOutcome(
        batches=0,
        messages=0,
        raw_rows=0,
        dead_letters=0,
        lag_messages=lag_messages,
        skip_reason=reason,
        duration_s=0.0,
    )


def _report_commits(
    settings: Settings, instance: DagsterInstance, conn: Connection, unfinished: Sequence[UnfinishedRun], now: datetime
) -> None:
    """What runs committed and did not live to report."""
    first, last = settings.partitions_start, last_partition_hour(now)
    reported = report_unreported(
        instance, conn, {run.run_id for run in unfinished}, valid=lambda hour: first <= hour <= last
    )
    if reported:
        log.info("reported commits of ended runs", hours=reported)


def _select(settings: Settings, conn: Connection, cursor: str | None, now: datetime) -> Selection:
    first, last = settings.partitions_start, last_partition_hour(now)
    # Beyond the newest batch: the database is another one than the cursor was made for, or was emptied.
    at = Cursor.parse(cursor).possible(newest_batch_id(conn), last)
    batches = batches_after(conn, at.batch_id, MAX_BATCHES_PER_TICK)
    if not is_behind(at, batches, MAX_BATCHES_PER_TICK):
        return select(at, batches, first, last)
    known = at.live or Live(at.batch_id, hour_of(now) - HOUR)
    live_batches = live_batches_after(conn, known.batch_id, known.hour)
    newest = max(one[-1].batch_id if one else 0 for one in (batches, live_batches))
    live = Live(max(newest, known.batch_id), known.hour)
    return select(at, batches, first, last, live=live, live_batches=live_batches)


def _plan(
    pipeline: Pipeline,
    instance: DagsterInstance,
    conn: Connection,
    unfinished: Sequence[UnfinishedRun],
    now: datetime,
    *,
    drained_live: bool,
) -> Plan:
    settings = pipeline.settings
    hour_requests = read_requests(conn)
    situation = Situation(
        now=now,
        first_hour=settings.partitions_start,
        pending=actionable_hours(
            conn,
            domains=list(pipeline.domains.by_name),
            since=settings.partitions_start,
            code_version=fingerprint.LOADED,
        ),
        hour_requests=hour_requests,
        runs=requested_runs(instance, unfinished, (one.request_id for one in hour_requests.values())),
        busy=busy_hours(unfinished, hour_of(now) - HOUR),
        ranges_under_way=ranges_under_way(unfinished),
        live_waiting=live_waiting(unfinished),
        linger=settings.linger_s > 0,
        drained_live=drained_live,
    )
    plan = make_plan(situation, lambda: uuid.uuid4().hex[:16])
    for failed in plan.hour_requests:
        if failed.last_error and hour_requests.get(failed.hour) != failed:
            log.warning("hour failed", hour=key_of(failed.hour), attempt=failed.attempt, error=failed.last_error)
    delete_requests(conn, plan.settled)
    write_requests(conn, plan.hour_requests)
    return plan


def _run_request(request: Request) -> RunRequest:
    return RunRequest(
        run_key=f"{request.request_id}:{request.attempt}",
        asset_selection=[AssetKey(asset) for asset in request.assets],
        tags={
            **request.hours.tags,
            QUEUE_TAG: request.queue,
            MODE_TAG: INCREMENTAL,
            REQUEST_TAG: request.request_id,
            CODE_TAG: fingerprint.LOADED,
            **({LONGEST_TIME_TAG: str(LIVE_RUN_LONGEST_S)} if request.queue == LIVE_QUEUE else {}),
        },
    )


def _words(drained: str, selection: Selection, plan: Plan) -> str:
    parts = [drained]
    if plan.busy:
        parts.append(f"{plan.busy} hours are being computed")
    if plan.waiting:
        soonest = min(one.next_try_at for one in plan.waiting)
        parts.append(f"{len(plan.waiting)} failed hours wait for a retry, the next at {soonest:%H:%M:%S}")
    if plan.beyond_cap:
        parts.append(f"{plan.beyond_cap} older hours wait for their turn")
    if plan.outside:
        parts.append(
            f"{len(plan.outside)} pending hours have no partition (see PARTITIONS_START), the first is "
            f"{min(plan.outside):%Y-%m-%d %H:%M}"
        )
    if selection.hours_left:
        parts.append(f"{selection.hours_left} hours are still to be reported")
    return "; ".join(parts)
