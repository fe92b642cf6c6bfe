"""Whether a long backfill stands in the way of live data: the same live stream alone, and while 500 hours are
recomputed that someone asked for on the page.

The whole stack, as ``freshness`` has it. The hours that are recomputed are no live ones. The figure counts only if
the backfill was under way from the first message to the last; it is cut off with the stack afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.dagster_ui import Ui, wait_for
from benchmarks.live import Ages, Live, percentile_figures, running_live
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler

RATE_PER_S = 2_000
GOAL_RATIO = 1.5
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Size:
    """How long the live stream is, and what is recomputed beside it."""

    duration_s: int
    hours: int
    events_per_hour: int


FULL, QUICK = Size(60, 500, 4_000), Size(5, 100, 500)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The live stream alone, then with the backfill, on one running stack."""
    size = QUICK if quick else FULL
    newest = hour_of(datetime.now(UTC)) - 2 * HOUR
    hours = [newest - ago * HOUR for ago in range(size.hours, 0, -1)]
    with running_live(stack, "isolation", say, partial(_fill, hours, size.events_per_hour)) as live:
        say(f"{size.hours * size.events_per_hour:,} events in {size.hours} hours are stored")
        watcher = live.watch()
        phases = [live.phase(RATE_PER_S, size.duration_s)]
        live.settle()
        say(f"{RATE_PER_S:,} events/s for {size.duration_s} s, alone: sent and in the KPIs")
        backfill = _Backfill(live, hours)
        backfill.wait_started()
        phases.append(live.phase(RATE_PER_S, size.duration_s))
        backfill.hold_under_way()
        done = backfill.hours_done()
        live.wait_seen(watcher)
        say(f"{RATE_PER_S:,} events/s for {size.duration_s} s, beside a backfill ({done} hours done): in the KPIs")
        watcher.stop()
        alone, beside = live.ages(watcher, phases)
        return _figures(size, alone, beside, done)


def _fill(hours: list[datetime], events_per_hour: int, database: dict[str, Any]) -> None:
    filler = Filler(database)
    filler.raw(*(Fill(hour, events_per_hour, index * events_per_hour) for index, hour in enumerate(hours)))


class _Backfill:
    """Of all that is derived, over the hours, as the page launches it."""

    def __init__(self, live: Live, hours: list[datetime]) -> None:
        self._live, self._hours = live, hours
        self._ui = Ui(live.stack.web_url)
        self._id = self._ui.backfill(DERIVED, [key_of(hour) for hour in hours])

    def wait_started(self) -> None:
        """Return when the first of its runs is at work."""
        wait_for(lambda: any(run["status"] == "STARTED" for run in self._runs()), START_TIMEOUT_S, "the first run")

    def hold_under_way(self) -> None:
        """See that runs are left to do.

        Raises:
            RuntimeError: the backfill is done, or failed: the live stream was not beside it all the time.
        """
        left = [run["status"] for run in self._runs() if run["status"] in ("STARTING", "STARTED")]
        if not left:
            raise RuntimeError(f"the backfill ended early, as {self._ui.backfill_status(self._id)}")

    def hours_done(self) -> int:
        """Hours whose KPIs were written so far; there were none before."""
        with connection(self._live.engine) as conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM partition_state WHERE asset = 'kpis' AND rows > 0 AND hour = ANY(%s)",
                [self._hours],
            )
            return int(cursor.fetchone()[0])

    def _runs(self) -> list[dict[str, Any]]:
        return self._ui.runs({"dagster/backfill": self._id})


def _figures(size: Size, alone: Ages, beside: Ages, hours_done: int) -> list[Figure]:
    detail: dict[str, Any] = {"duration_s": size.duration_s}
    beside_detail = {
        **detail,
        "backfilled_hours": size.hours,
        "backfilled_events": size.hours * size.events_per_hour,
        "hours_done_meanwhile": hours_done,
    }
    figures = []
    for what, of_alone, of_beside in (("raw", alone.raw_s, beside.raw_s), ("KPI", alone.kpi_s, beside.kpi_s)):
        name = f"{what} row, {RATE_PER_S:,} events/s"
        _, before = percentile_figures(f"{name}, alone", of_alone, None, detail)
        _, after = percentile_figures(f"{name}, beside a backfill", of_beside, None, beside_detail)
        ratio = Figure(
            f"{name}, beside a backfill / alone",
            after.value / before.value,
            "x",
            GOAL_RATIO,
            "at_most",
            beside_detail,
        )
        figures += [before, after, ratio]
    return figures
