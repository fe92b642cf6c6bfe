"""A full recompute of 24 hours that hold other figures than it will find: events a second, one worker and two.

Each worker is a process with a part of the hours, as a range run has; then what they made pending for others is
done, and the clock stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from benchmarks.pipeline import counts, finish_pending, migrated, recompute_hours
from benchmarks.processes import Worker
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, execute

HOURS, HOURS_QUICK = 24, 4
EVENTS_PER_HOUR, EVENTS_PER_HOUR_QUICK = 50_000, 5_000
WORKERS = (1, 2)

#: As after a rule was mended: every window and KPI that is stored differs from what will be computed.
SPOIL = (
    "UPDATE window_aggregates SET avg_val = avg_val + 1, max_val = max_val + 1",
    "UPDATE kpis SET value = value + 1, numerator = numerator + 1",
)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """First once to have something to replace, then each number of workers."""
    hours_count, per_hour = (HOURS_QUICK, EVENTS_PER_HOUR_QUICK) if quick else (HOURS, EVENTS_PER_HOUR)
    now_hour = hour_of(datetime.now(UTC))
    hours = [now_hour - ago * HOUR for ago in range(hours_count, 0, -1)]
    events, figures = hours_count * per_hour, []
    with stack.database("backfill") as database:
        settings = migrated(stack, database)
        filler = Filler(database)
        filler.raw(*(Fill(hour, per_hour, index * per_hour) for index, hour in enumerate(hours)))
        say(f"{events:,} raw events in {hours_count} hours stored")
        with ExitStack() as started:
            workers = [started.enter_context(Worker(recompute_hours, settings)) for _ in range(max(WORKERS))]
            for worker in workers:
                worker.wait_ready()
            _recompute(settings, hours, workers)
            for number in WORKERS:
                execute(database, *SPOIL)
                stack.checkpoint()
                duration_s = _recompute(settings, hours, workers[:number])
                counts(database).hold_to(events)
                figures.append(_figure(hours_count, number, events, duration_s))
                say(f"{figures[-1].name}: {figures[-1].value:,.0f} events/s")
    return figures


def _figure(hours: int, workers: int, events: int, duration_s: float) -> Figure:
    name = f"full recompute of {hours} hours, {workers} worker{'s' if workers > 1 else ''}"
    return Figure(name, events / duration_s, "events/s", detail={"events": events, "duration_s": duration_s})


def _recompute(settings: Settings, hours: Sequence[datetime], workers: Sequence[Worker]) -> float:
    """Returns seconds until nothing is pending."""
    per_worker = -(-len(hours) // len(workers))
    began_s = time.monotonic()
    for index, worker in enumerate(workers):
        worker.go(hours[index * per_worker : (index + 1) * per_worker])
    for worker in workers:
        worker.wait()
    finish_pending(settings)
    return time.monotonic() - began_s
