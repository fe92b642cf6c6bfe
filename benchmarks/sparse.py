"""A full recompute of 30 days that hold 60 readings an hour: hours a second, of one domain and of ten.

Through the deriver, in one worker process, as a backfilled range has it; first when nothing is stored, then when
every window and KPI that is stored differs from what will be computed. With ten domains there is ten times as much
to compute, in the same hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from analytics_pipeline.records import HOUR, hour_of
from benchmarks.backfill import SPOIL
from benchmarks.copies import DOMAINS
from benchmarks.pipeline import counts, finish_pending, migrated, recompute_hours
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, execute, forget_pending

HOURS, HOURS_QUICK = 720, 72
#: One machine, each of its sensors every ten minutes.
EVENTS_PER_HOUR, SENSORS = 60, 10
#: As a range run has them: see ``MAX_RANGE_HOURS`` of the orchestration.
RANGE_HOURS = 24

GOAL_HOURS_PER_S, GOAL_SHARE_OF_ONE_DOMAIN = 50.0, 0.35


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One domain, then ten."""
    hours = sparse_hours(HOURS_QUICK if quick else HOURS)
    one = _recompute(stack, hours, 1)
    ten = _recompute(stack, hours, DOMAINS)
    for figure in (one, ten):
        say(f"{figure.name}: {figure.value:.1f} hours/s; at first {figure.detail['first_hours_per_s']:.1f}")
    return [
        one,
        ten,
        Figure(
            f"sparse recompute, {DOMAINS} domains / one", ten.value / one.value, "x", GOAL_SHARE_OF_ONE_DOMAIN
        ),
        *(memory_figure(f"worker, {figure.name}", figure.detail["peak_bytes"]) for figure in (one, ten)),
    ]


def sparse_hours(count: int) -> list[datetime]:
    """So many hours before the previous one, ascending: none of them is live."""
    newest = hour_of(datetime.now(UTC)) - 2 * HOUR
    return [newest - ago * HOUR for ago in range(count, 0, -1)]


def fill(database: dict[str, Any], hours: Sequence[datetime], domains: int = 1) -> None:
    """Their raw events."""
    for domain in range(domains):
        Filler(database, domain, SENSORS).raw(
            *(Fill(hour, EVENTS_PER_HOUR, index * EVENTS_PER_HOUR) for index, hour in enumerate(hours))
        )


def _recompute(stack: Stack, hours: Sequence[datetime], domains: int) -> Figure:
    """Once to have something to replace, then what is measured."""
    with stack.database("sparse") as database:
        settings = migrated(stack, database, domains=domains)
        fill(database, hours, domains)
        with Worker(recompute_hours, settings, domains) as worker:
            worker.wait_ready()
            first = _ranges(worker, hours)
            forget_pending(database)
            execute(database, *SPOIL)
            stack.checkpoint()
            done = _ranges(worker, hours)
        finish_pending(settings, domains)
        counts(database).hold_to(domains * len(hours) * EVENTS_PER_HOUR)
    duration_s = sum(one.duration_s for one in done)
    who = "one domain" if domains == 1 else f"{domains} domains"
    return Figure(
        f"sparse recompute, {who}",
        len(hours) / duration_s,
        "hours/s",
        GOAL_HOURS_PER_S if domains == 1 else None,
        detail={
            "hours": len(hours),
            "events": domains * len(hours) * EVENTS_PER_HOUR,
            "duration_s": duration_s,
            "first_hours_per_s": len(hours) / sum(one.duration_s for one in first),
            "peak_bytes": max(one.peak_bytes for one in done),
        },
    )


def _ranges(worker: Worker, hours: Sequence[datetime]) -> list[Done]:
    found = []
    for at in range(0, len(hours), RANGE_HOURS):
        worker.go(hours[at : at + RANGE_HOURS])
        found.append(worker.wait())
    return found
