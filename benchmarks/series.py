"""How old KPIs are when many series are live: 10,000 events/s into the last ten minutes of an hour that holds 600,000.

The whole stack, as ``freshness`` has it, on a database of its own for each number of series. Event times are those of
the last ten minutes of a live hour, whatever the clock says; ages are counted from Kafka's timestamps.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median
from typing import Any

from analytics_pipeline.cli._smoke_watch import Sent
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from benchmarks.live import FACTORY, peaks, percentile_figures, running_live
from benchmarks.payloads import TOPIC
from benchmarks.pipeline import finish_pending, recompute_hours
from benchmarks.processes import Worker
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, forget_pending, maintain

RATE_PER_S = 10_000
DURATION_S, DURATION_QUICK_S = 60, 5
STORED, STORED_QUICK = 600_000, 30_000
LAST = timedelta(minutes=10)
GOAL_LAG_GROWTH = 1.2


@dataclass(frozen=True)
class Size:
    """How many series, and the goal for the 95th percentile to the KPI row; None: the lag may not grow."""

    sensors: int
    goal_s: float | None


SIZES = (Size(100, 4.0), Size(10_000, 8.0))
MOST = (Size(100_000, None),)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """100 and 10,000 series."""
    return [figure for size in SIZES for figure in _measure(stack, size, say, quick)]


def run_most(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """100,000 series."""
    return [figure for size in MOST for figure in _measure(stack, size, say, quick)]


def _measure(stack: Stack, size: Size, say: Say, quick: bool) -> list[Figure]:
    stored, duration_s = (STORED_QUICK, DURATION_QUICK_S) if quick else (STORED, DURATION_S)
    # Live, and with room for ten minutes of event time before the clock makes another hour live.
    hour = hour_of(datetime.now(UTC) + LAST) - HOUR
    with running_live(stack, "series", say, partial(_fill, stack, hour, stored, size.sensors)) as live:
        # The KPIs of the hour count what was stored as well.
        live.sent += [Sent("live", hour, TOPIC, 0, -1, 0.0)] * stored
        watcher = live.watch()
        phase = live.phase(RATE_PER_S, duration_s, start=hour + HOUR - LAST, sensors=size.sensors)
        live.wait_seen(watcher)
        watcher.stop()
        (ages,) = live.ages(watcher, [phase])
        name = f"{size.sensors:,} series, {RATE_PER_S:,} events/s, to KPI row"
        detail = {"stored": stored, "duration_s": duration_s, "producer_behind_s": ages.producer_behind_s}
        figures = percentile_figures(name, ages.kpi_s, size.goal_s, detail)
        if size.goal_s is None:
            figures.append(_growth(name, list(ages.kpi_s)))
        say(f"{name}: p95 {figures[1].value:.2f} s")
        return [*figures, *peaks(live, f"{size.sensors:,} series")]


def _growth(name: str, ages_s: list[float]) -> Figure:
    third = len(ages_s) // 3
    ratio = median(ages_s[2 * third :]) / median(ages_s[third : 2 * third])
    return Figure(f"{name}, last third / middle third", ratio, "x", GOAL_LAG_GROWTH, "at_most")


def _fill(stack: Stack, hour: datetime, stored: int, sensors: int, database: dict[str, Any]) -> None:
    """An hour that holds so many events in its first 50 minutes, all computed."""
    span_s = round((HOUR - LAST).total_seconds())
    Filler(database, sensors=sensors, factory=FACTORY).raw(Fill(hour, stored, 0, span_s))
    compute(stack.settings(database, "127.0.0.1:9"), [hour])
    forget_pending(database)
    maintain(database)


def compute(settings: Settings, hours: list[datetime]) -> None:
    """Every asset of some hours, in a process of its own, and what that leaves pending."""
    with Worker(recompute_hours, settings) as worker:
        worker.wait_ready().go(hours)
        worker.wait()
    finish_pending(settings)
