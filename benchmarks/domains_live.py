"""One live pass over ten domains and over one: the same 2,000 events and the same 100 series, shared out or not.

Drained and derived in one process; the figure is the pass over the derived assets that a commit of the drain, one a
second, asks for.
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
from analytics_pipeline.storage.engine import engine_for
from benchmarks.copies import DOMAINS, topic_name
from benchmarks.kafka import create_topic, produce_all
from benchmarks.payloads import Stream
from benchmarks.pipeline import derive_pass, drain_messages, make_deriver, migrated, registry
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack

RATE_PER_S = 2_000
#: Before what is measured: the hour holds something, and nothing is done for the first time.
WARM_BATCHES, WARM_BATCHES_QUICK = 60, 3
BATCHES, BATCHES_QUICK = 15, 3
GOAL_RATIO, GOAL_S = 1.5, 0.6


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One domain, then ten."""
    warm, batches = (WARM_BATCHES_QUICK, BATCHES_QUICK) if quick else (WARM_BATCHES, BATCHES)
    one, ten = (_measure(stack, domains, warm, batches) for domains in (1, DOMAINS))
    for done in (one, ten):
        say(f"drain and pass: {', '.join(f'{median(column):.3f} s' for column in zip(*done.result, strict=True))}")
    figures = [_figure("one domain", one), _figure(f"{DOMAINS} domains", ten, GOAL_S)]
    return [
        *figures,
        Figure(
            f"one live pass, {DOMAINS} domains / one",
            figures[1].value / figures[0].value,
            "x",
            GOAL_RATIO,
            "at_most",
        ),
        memory_figure(f"drain and derive, {DOMAINS} domains live", ten.peak_bytes),
    ]


def _figure(who: str, done: Done, goal_s: float | None = None) -> Figure:
    drains, passes = zip(*done.result, strict=True)
    detail = {"messages": RATE_PER_S, "passes": len(passes), "drain_s": median(drains), "max_s": max(passes)}
    return Figure(f"one live pass, {who}", median(passes), "s", goal_s, "at_most", detail)


def _measure(stack: Stack, domains: int, warm: int, batches: int) -> Done:
    with stack.database("domains_live") as database, stack.broker() as brokers:
        topics = [topic_name(number) for number in range(domains)]
        for topic in topics[1:]:
            create_topic(brokers, topic)
        settings = migrated(stack, database, brokers, domains=domains)
        with Worker(live_passes, settings, topics) as worker:
            worker.wait_ready().go(warm, batches)
            return worker.wait()


def live_passes(settings: Settings, topics: list[str]) -> Callable[[int, int], list[tuple[float, float]]]:
    """Produce, drain and derive; returns seconds of drain and pass, for each batch that is measured."""
    warm_up()
    domains = len(topics)
    drain = Drain(settings, engine_for(settings), registry(settings, domains))
    deriver, hour = make_deriver(settings, domains), hour_of(datetime.now(UTC)) - HOUR

    def work(warm: int, batches: int) -> list[tuple[float, float]]:
        found = []
        for number in range(warm + batches):
            stream = Stream(hour + number * timedelta(seconds=1), RATE_PER_S, RATE_PER_S)
            produce_all(settings.kafka_brokers, stream, *topics)
            began_s = time.monotonic()
            drain_messages(drain, RATE_PER_S)
            drained_s = time.monotonic()
            derive_pass(deriver, [hour])
            found.append((drained_s - began_s, time.monotonic() - drained_s))
        drain.close()
        return found[warm:]

    return work
