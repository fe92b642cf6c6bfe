"""One late message of one sensor, with 100 series in the domain and with 10,000: its cost follows the change.

The message belongs to an hour that 24 later ones look back to. Drained, then derived until nothing is pending; the
figure is the time of deriving. Each series has as many readings an hour in both cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median

from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.quality.gates import warm_up
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.pending_work import actionable_hours
from benchmarks.kafka import produce_all
from benchmarks.payloads import Stream
from benchmarks.pipeline import derive_pass, drain_messages, make_deriver, migrated, registry
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.series import compute
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, forget_pending, maintain

SERIES, SERIES_QUICK = (100, 10_000), (100, 2_000)
READINGS_OF_SERIES = 3
LATER_HOURS = 24
#: The first ones meet cold caches and plans.
WARM_MESSAGES, MESSAGES, MESSAGES_QUICK = 2, 7, 3
GOAL_RATIO = 2.0


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """Few series, then many."""
    figures, dones = [], []
    for sensors in SERIES_QUICK if quick else SERIES:
        done = _measure(stack, sensors, MESSAGES_QUICK if quick else MESSAGES)
        took_s, rounds = zip(*done.result, strict=True)
        detail = {"messages": len(took_s), "max_s": max(took_s), "hours": median(rounds)}
        figures.append(
            Figure(f"one late message, {sensors:,} series", median(took_s), "s", detail=detail)
        )
        dones.append(done)
        say(f"{figures[-1].name}: {figures[-1].value:.3f} s, {detail['hours']} hours recomputed")
    ratio = Figure(
        "one late message, many series / few", figures[1].value / figures[0].value, "x", GOAL_RATIO, "at_most"
    )
    return [*figures, ratio, memory_figure("worker, late message", max(done.peak_bytes for done in dones))]


def _measure(stack: Stack, sensors: int, messages: int) -> Done:
    newest = hour_of(datetime.now(UTC)) - HOUR
    oldest, rows = newest - LATER_HOURS * HOUR, sensors * READINGS_OF_SERIES
    with stack.database("late") as database, stack.broker() as brokers:
        settings = migrated(stack, database, brokers)
        filler = Filler(database, sensors=sensors)
        fills = [
            Fill(newest - ago * HOUR, rows, (LATER_HOURS - ago) * rows) for ago in range(LATER_HOURS, -1, -1)
        ]
        filler.raw(*fills)
        filler.normalized(*fills)
        compute(settings, [newest])
        filler.repeat_windows(newest, LATER_HOURS)
        forget_pending(database)
        maintain(database)
        with Worker(late_messages, settings, oldest, sensors) as worker:
            worker.wait_ready().go(WARM_MESSAGES + messages)
            done = worker.wait()
        done.result[:WARM_MESSAGES] = []
        return done


def late_messages(settings: Settings, hour: datetime, sensors: int) -> Callable[[int], list[tuple[float, int]]]:
    """Returns seconds of deriving, and the hours that were computed, for each message."""
    warm_up()
    drain = Drain(settings, engine_for(settings), registry(settings))
    deriver = make_deriver(settings)

    def derived() -> int:
        found = 0
        while True:
            with connection(engine_for(settings)) as conn:
                hours = [one.hour for one in actionable_hours(conn)]
            if not hours:
                return found
            derive_pass(deriver, hours)
            found = max(found, len(hours))

    def work(messages: int) -> list[tuple[float, int]]:
        found = []
        for number in range(messages):
            start = hour + timedelta(minutes=20, seconds=number)
            # Only the first reading: of the sensor that stands first.
            produce_all(settings.kafka_brokers, Stream(start, 1, 1, sensors=sensors))
            drain_messages(drain, 1)
            began_s = time.monotonic()
            hours = derived()
            found.append((time.monotonic() - began_s, hours))
        drain.close()
        return found

    return work
