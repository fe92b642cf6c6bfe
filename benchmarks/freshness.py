"""How old data is when it can be read: the whole stack as ``analytics-pipeline up`` starts it, at a set rate.

From the Kafka timestamp until the raw row is committed, and until the hour's KPIs count it; seen from outside
by the watcher of ``analytics-pipeline smoke``.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.live import Ages, Live, peaks, percentile_figures, running_live
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack

DURATION_S, DURATION_QUICK_S = 60, 3


@dataclass(frozen=True)
class Rate:
    """Events a second, and the goals for the 95th percentiles in seconds."""

    per_s: int
    goal_raw_s: float
    goal_kpi_s: float


RATES = (Rate(2_000, 1.5, 2.5), Rate(10_000, 1.5, 4.0))


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One phase a rate, on one running stack."""
    duration_s = DURATION_QUICK_S if quick else DURATION_S
    with running_live(stack, "freshness", say) as live:
        figures = _measure(live, duration_s, say)
        return figures + peaks(live, "live")


def _measure(live: Live, duration_s: int, say: Say) -> list[Figure]:
    watcher, phases = live.watch(), []
    for rate in RATES:
        phases.append(live.phase(rate.per_s, duration_s))
        live.settle()
        say(f"{rate.per_s:,} events/s for {duration_s} s: sent and in the KPIs")
    watcher.stop()
    ages = zip(RATES, live.ages(watcher, phases), strict=True)
    return [figure for rate, of_rate in ages for figure in _figures(rate, of_rate, duration_s)]


def _figures(rate: Rate, ages: Ages, duration_s: int) -> list[Figure]:
    detail = {"duration_s": duration_s, "producer_behind_s": ages.producer_behind_s}
    return [
        figure
        for what, values, goal_s in (("raw", ages.raw_s, rate.goal_raw_s), ("KPI", ages.kpi_s, rate.goal_kpi_s))
        for figure in percentile_figures(
            f"freshness to {what} row, {rate.per_s:,} events/s", values, goal_s, detail
        )
    ]
