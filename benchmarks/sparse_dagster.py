"""The recompute of ``sparse`` as the page launches it: through Dagster, its daemon, its launcher and a worker."""

from __future__ import annotations

import time
from functools import partial

from analytics_pipeline.orchestration.partitions import key_of
from analytics_pipeline.records import DERIVED
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.dagster_ui import Ui
from benchmarks.live import Live, peaks, running_live
from benchmarks.report import Figure, Say
from benchmarks.sparse import fill, sparse_hours
from benchmarks.stack import Stack

HOURS, HOURS_QUICK = 720, 48
GOAL_HOURS_PER_S = 15.0
TIMEOUT_S = 600.0


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One backfill, from its launch until it is done."""
    hours = sparse_hours(HOURS_QUICK if quick else HOURS)
    with running_live(stack, "sparse_dagster", say, partial(fill, hours=hours)) as live:
        ui, began_s = Ui(live.stack.web_url), time.monotonic()
        status = ui.wait_backfill(ui.backfill(DERIVED, [key_of(hour) for hour in hours]), TIMEOUT_S)
        duration_s = time.monotonic() - began_s
        done = _hours_done(live)
        if done < len(hours):
            raise RuntimeError(f"backfill {status}: {done} hours of {len(hours)} have KPIs")
        say(f"{len(hours)} hours in {duration_s:.1f} s")
        return [
            Figure(
                "sparse recompute through Dagster, one domain",
                len(hours) / duration_s,
                "hours/s",
                GOAL_HOURS_PER_S,
                detail={"hours": len(hours), "duration_s": duration_s},
            ),
            *peaks(live, "sparse recompute"),
        ]


def _hours_done(live: Live) -> int:
    with connection(live.engine) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM partition_state WHERE asset = 'kpis' AND rows > 0")
        return int(cursor.fetchone()[0])
