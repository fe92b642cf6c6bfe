"""An hour with 40,000 readings that become dead letters, rebuilt, beside an hour with as many good readings instead.

Half of the hour is good in both, so that the domain is not quarantined.
"""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import median
from typing import Any

from analytics_pipeline.records import HOUR, hour_of
from benchmarks.pipeline import migrated, recompute_hours
from benchmarks.processes import Done, Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import Fill, Filler, maintain, session

DEAD_LETTERS, DEAD_LETTERS_QUICK = 40_000, 4_000
#: More good ones than dead letters: above one half the domain would be quarantined.
GOOD_SHARE = 1.25
ROUNDS = 3
GOAL_RATIO = 2.0


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The good hour, then the one with dead letters."""
    rejected = DEAD_LETTERS_QUICK if quick else DEAD_LETTERS
    good, bad = (_measure(stack, rejected, bad=bad) for bad in (False, True))
    took_s = [median(done.duration_s for done in dones) for dones in (good, bad)]
    say(f"{took_s[0]:.2f} s with good readings, {took_s[1]:.2f} s with dead letters")
    return [
        Figure(f"an hour rebuilt, {rejected:,} more good readings", took_s[0], "s"),
        Figure(f"an hour rebuilt, {rejected:,} dead letters", took_s[1], "s"),
        Figure(
            f"an hour rebuilt, {rejected:,} dead letters / good readings",
            took_s[1] / took_s[0],
            "x",
            GOAL_RATIO,
            "at_most",
        ),
        memory_figure(f"worker, {rejected:,} dead letters", max(done.peak_bytes for done in bad)),
    ]


def _measure(stack: Stack, rejected: int, *, bad: bool) -> list[Done]:
    """Once to have something to replace, then as often as it is measured."""
    hour, good = hour_of(datetime.now(UTC)) - HOUR, round(GOOD_SHARE * rejected)
    with stack.database("dead_letters") as database:
        settings = migrated(stack, database)
        # Two batches, one after the other: the state of the hour counts both.
        Filler(database).raw(Fill(hour, good, 0, 1800), Fill(hour + HOUR / 2, rejected, good, 1800, bad=bad))
        _one_hour(database, hour, good + rejected)
        maintain(database)
        with Worker(recompute_hours, settings) as worker:
            worker.wait_ready()
            found = []
            for _ in range(1 + ROUNDS):
                worker.go([hour])
                found.append(worker.wait())
        _hold_to(database, rejected if bad else 0)
    return found[1:]


def _one_hour(database: dict[str, Any], hour: datetime, rows: int) -> None:
    with session(database) as cursor:
        cursor.execute("UPDATE partition_state SET rows = %s WHERE hour = %s", (rows, hour))
        cursor.execute("DELETE FROM partition_state WHERE hour <> %s", (hour,))
        cursor.execute("UPDATE ingest_batch_hour SET hour = %s", (hour,))


def _hold_to(database: dict[str, Any], rejected: int) -> None:
    with session(database) as cursor:
        cursor.execute("SELECT count(*) FROM dead_letters")
        (found,) = cursor.fetchone()
    if found != rejected:
        raise RuntimeError(f"{found} dead letters are stored, expected {rejected}")
