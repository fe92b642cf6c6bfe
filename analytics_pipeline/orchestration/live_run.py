"""A live run: computes what is pending of the live hours, and lingers for what comes next.

Launching a run takes half a second and the daemon looks every five: so a live run that is done waits for new work and
computes it at once. Each tick that has live work asks for a successor; the run ends when it is superseded, after
``LINGER_S``, or when it is told to stop. What is pending still decides: a run may die at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from dagster import AssetExecutionContext, DagsterRunStatus, Failure, RunsFilter

from analytics_pipeline.orchestration.hourly import Event, hours_of_run, report_hours
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.tags import LIVE_QUEUE, QUEUE_TAG
from analytics_pipeline.records import (
    DERIVED,
    HOUR,
    DerivedHours,
    DerivedName,
    PartitionError,
    hour_of,
    merged_outcomes,
)
from analytics_pipeline.storage.live_signal import LOOK_EVERY_S, Listener

#: A run that waits to begin on the live queue: this one makes room.
_WAITING = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.QUEUED]


def live_hours(now: datetime) -> list[datetime]:
    """Previous, current and next: event time may be ten minutes ahead."""
    return [hour_of(now) + HOUR * step for step in (-1, 0, 1)]


def run_live(context: AssetExecutionContext, pipeline: Pipeline) -> Iterator[Event]:
    """Pass after pass over the live hours; reports at the end, each hour and asset once.

    Raises:
        Failure: nothing of an asset could be committed.
    """
    tally = {name: DerivedHours() for name in DERIVED}
    linger_s = pipeline.settings.linger_s
    own = hours_of_run(context.run.tags)
    if linger_s:
        with pipeline.listening() as listener:
            _linger(context, pipeline, listener, tally, own)
    else:
        _one_pass(context, pipeline, tally, own)
    failure: Failure | None = None
    for name, done in tally.items():
        merged = DerivedHours(merged_outcomes(done.outcomes), done.errors)
        try:
            yield from report_hours(context, name, merged, pipeline.hour_states(name, _hours(merged)))
        except Failure as error:  # the next assets are reported all the same
            failure = failure or error
    if failure is not None:
        raise failure


def _linger(
    context: AssetExecutionContext,
    pipeline: Pipeline,
    listener: Listener,
    tally: dict[DerivedName, DerivedHours],
    own: Sequence[datetime],
) -> None:
    until = time.monotonic() + pipeline.settings.linger_s
    looked_at = 0.0
    while True:
        hours = sorted({*own, *live_hours(datetime.now(UTC))})
        superseded = "superseded" in listener.heard()
        _one_pass(context, pipeline, tally, hours)
        now = time.monotonic()
        if superseded or now >= until:
            return
        if now - looked_at >= LOOK_EVERY_S:
            looked_at = now
            if _is_superseded(context):
                return
        said = listener.wait()
        if "superseded" in said:
            _one_pass(context, pipeline, tally, hours)
            return


def _is_superseded(context: AssetExecutionContext) -> bool:
    """Whether another run waits for this one's place: looked up, because a notification may be lost."""
    waiting = RunsFilter(statuses=_WAITING, tags={QUEUE_TAG: LIVE_QUEUE})
    return any(run_id != context.run.run_id for run_id in context.instance.get_run_ids(waiting, limit=2))


def _one_pass(
    context: AssetExecutionContext,
    pipeline: Pipeline,
    tally: dict[DerivedName, DerivedHours],
    hours: Sequence[datetime],
) -> None:
    """Every asset once, in the order of data; what another run holds is left for the next pass."""
    wait = not pipeline.settings.linger_s
    for name, known in tally.items():
        done = pipeline.derive_hours(name, hours, "incremental", context.run.run_id, wait=wait)
        known.outcomes += done.outcomes
        known.errors = _still_failing(known, done)


def _still_failing(known: DerivedHours, done: DerivedHours) -> list[PartitionError]:
    """The last error of each domain partition that was not computed since."""
    errors = {(one.domain, one.hour): one for one in (*known.errors, *done.errors)}
    for outcome in done.outcomes:
        for domain in outcome.domains:
            errors.pop((domain.domain, outcome.hour), None)
    return list(errors.values())


def _hours(done: DerivedHours) -> list[datetime]:
    return sorted({one.hour for one in done.outcomes} | {one.hour for one in done.errors})

