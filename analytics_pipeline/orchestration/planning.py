"""Which runs to ask for, from what is pending, requested and under way. Pure: the time arrives as an argument.

Live hours run together on the queue ``live``; older ones as ranges on ``backfill``. An hour that failed is asked
for again alone, after growing pauses, so that it takes no neighbour down with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from analytics_pipeline.orchestration.partitions import HourRange, contiguous, last_partition_hour
from analytics_pipeline.orchestration.tags import BACKFILL_QUEUE, LIVE_QUEUE
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, PendingHour, hour_of
from analytics_pipeline.storage.run_requests import HourRequest

#: A run appears within a second of its request; the daemon that would have made it died, or forgot.
LOST_AFTER = timedelta(seconds=30)

FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(minutes=10)

#: Range runs under way at once: enough that a worker, which needs a second for a day of few rows, is never idle until
#: the next tick; few enough that a person's backfill is not far behind.
MAX_RANGES_UNDER_WAY = 8
MAX_REQUESTS_PER_TICK = 8

LOST = "the run was asked for and never appeared"
LEFT_PENDING_WORK = "the run succeeded and left its pending work"


class RunState(Enum):
    """What became of a requested run."""

    UNDER_WAY = "under way"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: Terminated by a person, or by the stop of the stack: no fault of its hours.
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class RequestedRun:
    """A run that was requested before."""

    state: RunState
    ended_at: datetime | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a plan rests on.

    Attributes:
        runs: the requested runs, by request id.
        busy: hours of unfinished runs that must not be asked for now.
        ranges_under_way: unfinished runs of the sensor on the queue ``backfill``.
        live_waiting: whether a live run waits to begin.
        linger: whether live runs linger: one that has begun is not busy, it makes room for its successor.
        drained_live: whether live data came just now, so that more is to be expected.
    """

    now: datetime
    first_hour: datetime
    pending: Sequence[PendingHour]
    hour_requests: Mapping[datetime, HourRequest]
    runs: Mapping[str, RequestedRun]
    busy: frozenset[datetime]
    ranges_under_way: int = 0
    live_waiting: bool = False
    linger: bool = False
    drained_live: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run to ask for."""

    hours: HourRange
    assets: tuple[DerivedName, ...]
    request_id: str
    attempt: int
    queue: str


@dataclass
class Plan:
    """What to ask for, what to write down, and why the rest waits."""

    requests: list[Request] = field(default_factory=list)
    hour_requests: list[HourRequest] = field(default_factory=list)
    settled: list[datetime] = field(default_factory=list)
    busy: int = 0
    waiting: list[HourRequest] = field(default_factory=list)
    beyond_cap: int = 0
    outside: list[datetime] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Ready:
    pending: PendingHour
    attempt: int
    error: str | None


def pause_after(attempt: int) -> timedelta:
    """How long an hour rests after its n-th failure in a row."""
    doubled: int = 2 ** min(attempt - 1, 20)
    return min(FIRST_PAUSE * doubled, LONGEST_PAUSE)


def make_plan(situation: Situation, new_request_id: Callable[[], str]) -> Plan:
    """The plan of one tick. ``new_request_id`` gives an id never used before."""
    plan = Plan()
    ready = [one for hour in situation.pending if (one := _evaluate(hour, situation, plan)) is not None]
    live_from = hour_of(situation.now) - HOUR
    _ask_for_live(plan, situation, [one for one in ready if one.pending.hour >= live_from], new_request_id)
    _ask_for_older(plan, situation, [one for one in ready if one.pending.hour < live_from], new_request_id)
    still_pending = {hour.hour for hour in situation.pending}
    plan.settled = [
        hour
        for hour, request in situation.hour_requests.items()
        if hour not in still_pending and _state(situation, request) is not RunState.UNDER_WAY
    ]
    return plan


def _ask_for_live(
    plan: Plan, situation: Situation, ready: Sequence[_Ready], new_request_id: Callable[[], str]
) -> None:
    """One run for all live hours that have something to do; or, where live data came just now and runs linger, for
    the current one, so that somebody is there when more comes."""
    if situation.live_waiting:
        plan.busy += len(ready)
        return
    hours = [one.pending.hour for one in ready]
    if not hours and situation.linger and situation.drained_live:
        hours = [hour_of(situation.now)]
    if hours:
        live = HourRange(min(hours), max(hours))
        _ask(plan, situation.now, live, ready, LIVE_QUEUE, new_request_id(), assets=DERIVED)


def _state(situation: Situation, request: HourRequest) -> RunState | None:
    run = situation.runs.get(request.request_id)
    return run.state if run else None


def _evaluate(hour: PendingHour, situation: Situation, plan: Plan) -> _Ready | None:
    """Whether an hour may be asked for now; else the plan says why not."""
    if not situation.first_hour <= hour.hour <= last_partition_hour(situation.now):
        plan.outside.append(hour.hour)
        return None
    request = situation.hour_requests.get(hour.hour)
    run = situation.runs.get(request.request_id) if request else None
    appearing = request is not None and run is None and abs(situation.now - request.requested_at) < LOST_AFTER
    lingering = situation.linger and hour.hour >= hour_of(situation.now) - HOUR and not appearing
    # A live run that lingers makes room for its successor.
    under_way = not lingering and (hour.hour in situation.busy or bool(run and run.state is RunState.UNDER_WAY))
    if appearing or under_way:
        plan.busy += 1
        return None
    return _ready(hour, request, run, situation, plan, lingering=lingering)


def _ready(
    hour: PendingHour,
    request: HourRequest | None,
    run: RequestedRun | None,
    situation: Situation,
    plan: Plan,
    *,
    lingering: bool,
) -> _Ready | None:
    """An hour of which no run is awaited: at once, or after the pause that its last failure asks for."""
    if request is None or (run and lingering and run.state in (RunState.UNDER_WAY, RunState.SUCCEEDED)):
        return _Ready(hour, 1, None)
    if run is None:
        return _Ready(hour, request.attempt + 1, LOST)  # it waited long enough already
    if run.state is RunState.SUCCEEDED and hour.newest_pending_at >= request.requested_at:
        return _Ready(hour, 1, None)  # something new arrived meanwhile
    if run.state is RunState.CANCELED and _is_over(situation.now, run.ended_at or request.requested_at, FIRST_PAUSE):
        return _Ready(hour, request.attempt, request.last_error)
    failure = run if run.state is not RunState.SUCCEEDED else replace(run, error=LEFT_PENDING_WORK)
    return _after_failure(hour, request, failure, situation.now, plan)


def _is_over(now: datetime, since: datetime, pause: timedelta) -> bool:
    """Whether a pause has passed. One that began ahead of now says nothing: the clock was set back."""
    return now >= since + pause or now < since - LOST_AFTER


def _after_failure(
    hour: PendingHour, request: HourRequest, run: RequestedRun, now: datetime, plan: Plan
) -> _Ready | None:
    since, pause = run.ended_at or request.requested_at, pause_after(request.attempt)
    next_try_at = since + pause
    failed = replace(request, next_try_at=next_try_at, last_error=run.error or "the run failed")
    if _is_over(now, since, pause):
        return _Ready(hour, request.attempt + 1, failed.last_error)
    if failed != request:
        plan.hour_requests.append(failed)
    plan.waiting.append(failed)
    return None


def _ask_for_older(
    plan: Plan, situation: Situation, ready: Sequence[_Ready], new_request_id: Callable[[], str]
) -> None:
    by_hour = {one.pending.hour: one for one in ready}
    alone = [HourRange(hour, hour) for hour, one in by_hour.items() if one.attempt > 1]
    together = contiguous(hour for hour, one in by_hour.items() if one.attempt == 1)
    room = max(0, MAX_RANGES_UNDER_WAY - situation.ranges_under_way)
    room = min(room, MAX_REQUESTS_PER_TICK - len(plan.requests))
    # Oldest first: what looks back from a later hour is then computed once.
    ranges = sorted([*alone, *together], key=lambda hours: hours.first)
    for hours in ranges[:room]:
        _ask(plan, situation.now, hours, [by_hour[hour] for hour in hours], BACKFILL_QUEUE, new_request_id())
    plan.beyond_cap = sum(len(hours) for hours in ranges[room:])


def _ask(
    plan: Plan,
    now: datetime,
    hours: HourRange,
    ready: Sequence[_Ready],
    queue: str,
    request_id: str,
    assets: tuple[DerivedName, ...] | None = None,
) -> None:
    if assets is None:
        assets = DERIVED[min(DERIVED.index(one.pending.assets[0]) for one in ready) :]
    attempt = max((one.attempt for one in ready), default=1)
    plan.requests.append(Request(hours=hours, assets=assets, request_id=request_id, attempt=attempt, queue=queue))
    plan.hour_requests += [
        HourRequest(
            hour=one.pending.hour,
            request_id=request_id,
            attempt=one.attempt,
            requested_at=now,
            next_try_at=now + LOST_AFTER,
            last_error=one.error,
        )
        for one in ready
    ]
