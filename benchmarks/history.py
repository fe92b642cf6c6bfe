"""What one live batch, and the full recompute of an hour, cost with little and with much already stored: the same.

Both in the hours before (as many more hours as there are more rows) and in the minutes of the same hour that
the batch falls into, which holds a tenth of all rows.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.domains import registry_for
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import engine_for
from benchmarks.kafka import produce_all
from benchmarks.payloads import Stream
from benchmarks.pipeline import RUN_ID, derive_pass, drain_messages, migrated, recompute_hours
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, forget_pending, maintain

STORED, STORED_QUICK = (1_000_000, 20_000_000), (20_000, 100_000)
#: 50 readings a second; a tenth of the rows is in the current hour, the rest in the hours before.
ROWS_PER_HOUR, ROWS_PER_HOUR_QUICK = 180_000, 18_000
CURRENT_SHARE = 10
CURRENT_SPAN_S = 1_800

BATCH_MESSAGES, BATCH_RATE_PER_S = 10_000, 2_000
#: The first ones meet cold caches, plans and connections.
WARM_BATCHES, BATCHES, BATCHES_QUICK = 3, 15, 3
RECOMPUTES = 5
GOAL_RATIO = 1.2


@dataclass(frozen=True)
class Batch:
    """Seconds of one live batch."""

    drain_s: float
    derive_s: float

    @property
    def total_s(self) -> float:
        return self.drain_s + self.derive_s


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The same batches after each amount."""
    figures = []
    amounts, per_hour = (STORED_QUICK, ROWS_PER_HOUR_QUICK) if quick else (STORED, ROWS_PER_HOUR)
    for stored in amounts:
        with stack.database("history") as database, stack.broker() as brokers:
            settings = migrated(stack, database, brokers)
            hour = hour_of(datetime.now(UTC)) - HOUR
            took_s = _fill(stack, settings, database, hour, stored, per_hour)
            say(f"{stored:,} rows stored in {took_s:.0f} s")
            batches = _batches(settings, brokers, hour, BATCHES_QUICK if quick else BATCHES)
            figures += [_figure(stored, batches), _recomputed(stored, settings, hour - HOUR, per_hour)]
            say(", ".join(f"{figure.name}: {figure.value:.3f} s" for figure in figures[-2:]))
    return [*figures, *(_ratio(*pair, amounts) for pair in zip(figures[:2], figures[2:], strict=True))]


def _ratio(little: Figure, much: Figure, amounts: tuple[int, int]) -> Figure:
    name = f"{little.name.partition(',')[0]}, {amounts[1] // amounts[0]} x the rows stored"
    return Figure(name, much.value / little.value, "x", GOAL_RATIO, "at_most")


def _figure(stored: int, batches: list[Batch]) -> Figure:
    return Figure(
        f"one live batch, {stored:,} rows stored",
        median(batch.total_s for batch in batches),
        "s",
        detail={
            "messages": BATCH_MESSAGES,
            "batches": len(batches),
            "drain_s": median(batch.drain_s for batch in batches),
            "derive_s": median(batch.derive_s for batch in batches),
            "max_s": max(batch.total_s for batch in batches),
        },
    )


# ------------------------------------------------------------------ what is stored


def _fill(
    stack: Stack, settings: Settings, database: dict[str, Any], hour: datetime, stored: int, per_hour: int
) -> float:
    """Returns seconds."""
    started, filler = time.monotonic(), Filler(database)
    current = stored // CURRENT_SHARE
    hours = (stored - current) // per_hour
    # The hour before the current one is computed again; the others are only there, and need not fill the disk.
    fills = [
        Fill(hour - ago * HOUR, per_hour, (hours - ago) * per_hour, short=ago > 1) for ago in range(hours, 0, -1)
    ]
    fills.append(Fill(hour, current, hours * per_hour, CURRENT_SPAN_S, short=True))
    with ThreadPoolExecutor(2) as both:  # the server has work for two cores
        for done in [both.submit(_each, fill, fills) for fill in (filler.raw, filler.normalized)]:
            done.result()
    deriver = Deriver(settings, engine_for(settings), registry_for(settings))
    for done_hour in (hour - HOUR, hour):
        for asset in DERIVED[1:]:
            deriver.derive(asset, done_hour, "full", RUN_ID)
    filler.repeat_windows(hour - HOUR, hours - 1)
    forget_pending(database)
    maintain(database)
    stack.checkpoint()
    return time.monotonic() - started


def _each(fill: Any, fills: list[Fill]) -> None:
    for one in fills:
        fill(one)


# ------------------------------------------------------------------ recomputing


def _recomputed(stored: int, settings: Settings, hour: datetime, events: int) -> Figure:
    """An hour that holds what it will find, as when someone materializes it again to be sure."""
    recompute, took_s = recompute_hours(settings), []
    for _ in range(RECOMPUTES):
        started = time.monotonic()
        recompute([hour])
        took_s.append(time.monotonic() - started)
    engine_for(settings).dispose()
    name = f"full recompute of one hour, {stored:,} rows stored"
    return Figure(name, median(took_s), "s", detail={"events": events, "times": RECOMPUTES, "max_s": max(took_s)})


# ------------------------------------------------------------------ live batches


def _batches(settings: Settings, brokers: str, hour: datetime, count: int) -> list[Batch]:
    engine, registry = engine_for(settings), registry_for(settings)
    drain, deriver = Drain(settings, engine, registry), Deriver(settings, engine, registry)
    begins = hour + timedelta(seconds=CURRENT_SPAN_S)
    batches = []
    try:
        for number in range(WARM_BATCHES + count):
            stream = Stream(begins + number * timedelta(seconds=5), BATCH_RATE_PER_S, BATCH_MESSAGES)
            produce_all(brokers, stream)
            batches.append(_one(drain, deriver, hour))
    finally:
        drain.close()
        engine.dispose()
    return batches[WARM_BATCHES:]


def _one(drain: Drain, deriver: Deriver, hour: datetime) -> Batch:
    started = time.monotonic()
    drain_messages(drain, BATCH_MESSAGES)
    drained = time.monotonic()
    derive_pass(deriver, [hour])
    return Batch(drained - started, time.monotonic() - drained)
