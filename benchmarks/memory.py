"""The most memory that a worker takes for one hour that holds two million events, recomputed as a whole.

What the drain and a worker take on a backlog is in ``throughput``, what they take under Dagster in ``freshness``.
"""

from __future__ import annotations

from datetime import UTC, datetime

from analytics_pipeline.records import HOUR, hour_of
from benchmarks.pipeline import counts, migrated, recompute_hours
from benchmarks.processes import Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler

EVENTS, EVENTS_QUICK = 2_000_000, 50_000
ROUNDS = 2


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """Twice in one process: the first time nothing is there to be replaced."""
    events = EVENTS_QUICK if quick else EVENTS
    hour = hour_of(datetime.now(UTC)) - HOUR
    with stack.database("memory") as database:
        settings = migrated(stack, database)
        Filler(database).raw(Fill(hour, events, 0))
        say(f"{events:,} raw events in one hour stored")
        with Worker(recompute_hours, settings) as worker:
            worker.wait_ready()
            duration_s = 0.0
            for _ in range(ROUNDS):
                worker.go([hour])
                done = worker.wait()
                duration_s += done.duration_s
        counts(database).hold_to(events)
    detail = {"events": events, "duration_s": duration_s / ROUNDS, "events_per_s": ROUNDS * events / duration_s}
    return [memory_figure(f"derive worker, one hour of {events:,} events", done.peak_bytes, detail)]
