"""A worker's first batch when there are many series: known ones, and new ones.

The worker has imported what it needs, and knows no series. The batch holds one reading of each series, 10,000 of
them known, or all of them new.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.quality.gates import warm_up
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import engine_for
from benchmarks.kafka import produce_all
from benchmarks.payloads import Stream
from benchmarks.pipeline import RUN_ID, drain_messages, make_deriver, migrated, registry
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import Filler, maintain

SERIES, SERIES_QUICK = 100_000, 10_000
#: Of the batch that meets known series: one live batch.
KNOWN_MESSAGES = 10_000
RATE_PER_S = 2_000
GOAL_KNOWN_S, GOAL_NEW_S = 1.5, 6.0


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """Known series, then new ones."""
    series = SERIES_QUICK if quick else SERIES
    known = _measure(stack, series, min(series, KNOWN_MESSAGES), known=True)
    new = _measure(stack, series, series, known=False)
    figures = []
    for what, done, goal_s in (("known", known, GOAL_KNOWN_S), ("new", new, GOAL_NEW_S)):
        name = f"first batch, {series:,} {what} series"
        figures += [
            Figure(f"{name}, measurements", done.result[0], "s", goal_s, "at_most"),
            Figure(f"{name}, all derived assets", sum(done.result), "s", goal_s, "at_most", _by_asset(done)),
            memory_figure(f"worker, {name}", done.peak_bytes),
        ]
        say(f"{name}: {', '.join(f'{took_s:.2f} s' for took_s in done.result)}")
    return figures


def _by_asset(done: Done) -> dict[str, float]:
    return dict(zip(DERIVED, done.result, strict=True))


def _measure(stack: Stack, series: int, messages: int, *, known: bool) -> Done:
    hour = hour_of(datetime.now(UTC)) - HOUR
    with stack.database("cold_start") as database, stack.broker() as brokers:
        settings = migrated(stack, database, brokers)
        if known:
            Filler(database, sensors=series)
        maintain(database)
        produce_all(brokers, Stream(hour, RATE_PER_S, messages, sensors=series))
        drain = Drain(settings, engine_for(settings), registry(settings))
        drain_messages(drain, messages)
        drain.close()
        engine_for(settings).dispose()
        with Worker(first_batch, settings) as worker:
            worker.wait_ready().go(hour)
            return worker.wait()


def first_batch(settings: Settings) -> Callable[[datetime], list[float]]:
    """Returns the seconds of each asset."""
    warm_up()

    def work(hour: datetime) -> list[float]:
        deriver, took_s = make_deriver(settings), []
        for asset in DERIVED:
            began_s = time.monotonic()
            deriver.derive(asset, hour, "incremental", RUN_ID)
            took_s.append(time.monotonic() - began_s)
        return took_s

    return work
