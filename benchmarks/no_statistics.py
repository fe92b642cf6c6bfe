"""An hour of 10,000 series right after the migration, and after ANALYZE: plans must not hang on statistics.

Computed for the first time, then replaced, on a database of its own each; autovacuum is off.
"""

from __future__ import annotations

from datetime import UTC, datetime

from analytics_pipeline.records import HOUR, hour_of
from benchmarks.backfill import SPOIL
from benchmarks.pipeline import migrated, recompute_hours
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, execute, maintain

SERIES, SERIES_QUICK = 10_000, 1_000
EVENTS_OF_SERIES = 6
GOAL_RATIO = 1.3

_NO_AUTOVACUUM = """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'r' AND (
            c.relnamespace = 'analytics'::regnamespace OR c.oid IN (
                SELECT inhrelid FROM pg_inherits JOIN pg_class p ON p.oid = inhparent
                WHERE p.relnamespace = 'analytics'::regnamespace))
        LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', name); END LOOP;
    END $$
"""


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """Without statistics, then with them."""
    series = SERIES_QUICK if quick else SERIES
    found = {what: _measure(stack, series, analyze=analyze) for what, analyze in (("no", False), ("with", True))}
    figures = []
    for at, when in enumerate(("first computed", "replaced")):
        without, known = (found[what][at].duration_s for what in ("no", "with"))
        figures.append(
            Figure(
                f"an hour of {series:,} series {when}, without statistics / with",
                without / known,
                "x",
                GOAL_RATIO,
                "at_most",
                {"without_s": without, "with_s": known},
            )
        )
        say(f"{when}: {without:.2f} s without statistics, {known:.2f} s with")
    peak = max(done.peak_bytes for dones in found.values() for done in dones)
    return [*figures, memory_figure(f"worker, an hour of {series:,} series", peak)]


def _measure(stack: Stack, series: int, *, analyze: bool) -> list[Done]:
    hour = hour_of(datetime.now(UTC)) - HOUR
    dones = []
    with stack.database("no_statistics") as database:
        settings = migrated(stack, database)
        execute(database, _NO_AUTOVACUUM)
        Filler(database, sensors=series).raw(Fill(hour, series * EVENTS_OF_SERIES, 0))
        with Worker(recompute_hours, settings) as worker:
            worker.wait_ready()
            for _ in range(2):
                execute(database, _NO_AUTOVACUUM)
                if analyze:
                    maintain(database, "ANALYZE")
                stack.checkpoint()
                worker.go([hour])
                dones.append(worker.wait())
                execute(database, *SPOIL)
    return dones
