"""Compares what a smoke run sent with what the database holds. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from analytics_pipeline.cli._smoke_watch import Sent
from analytics_pipeline.storage.engine import connection

TABLES = (
    "raw_events",
    "normalized_measurements",
    "window_aggregates",
    "anomalies",
    "kpis",
    "dead_letters",
    "offset_gap",
)

_READ_SQL = 'SELECT topic, partition, "offset" FROM raw_events WHERE topic = ANY(%s)'
_DEAD_LETTERS_SQL = 'SELECT topic, partition, "offset" FROM dead_letters WHERE topic = ANY(%s)'
_GAPS_SQL = "SELECT topic, partition, from_offset, to_offset FROM offset_gap WHERE topic = ANY(%s)"
_MEASURED_SQL = """
SELECT (SELECT count(*) FROM normalized_measurements),
       (SELECT coalesce(sum(count_n), 0) FROM window_aggregates WHERE window_s = 60),
       (SELECT coalesce(sum(count_n), 0) FROM window_aggregates WHERE window_s = 3600),
       (SELECT coalesce(sum(value), 0) FROM kpis WHERE kpi = 'messages' AND window_s = 3600)
"""
_RUNS_SQL = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY end_time - start_time), count(*),
       (SELECT count(*) FROM analytics_dagster.runs WHERE status = 'FAILURE')
FROM analytics_dagster.runs WHERE status = 'SUCCESS'
"""


#: (topic, partition, offset)
_Position = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeResult:
    """What was found. ``lost`` and ``doubled`` count messages, and measurements that a derived table misses or
    has too many; of several tables, the worst."""

    rows: dict[str, int]
    dead_letters: int
    lost: int
    doubled: int
    run_p50_s: float | None
    runs: int
    failed_runs: int
    differences: tuple[str, ...]


def compare(engine: Engine, topics: Sequence[str], sent: Sequence[Sent]) -> SmokeResult:
    """Look at every position that was sent, and at every count that follows from what was sent."""
    with connection(engine) as conn, conn.cursor() as cursor:
        raw = Counter(_fetch(cursor, _READ_SQL, topics))
        dead = set(_fetch(cursor, _DEAD_LETTERS_SQL, topics))
        gaps = _fetch(cursor, _GAPS_SQL, topics)
        cursor.execute(_MEASURED_SQL)
        measured = dict(zip(("measurements", "minutes", "hours", "kpis"), cursor.fetchone(), strict=True))
        rows = {table: _count(cursor, table) for table in TABLES}
        cursor.execute(_RUNS_SQL)
        run_p50_s, runs, failed_runs = cursor.fetchone()
    kinds = Counter(message.kind for message in sent)
    expected = kinds["warm"] + kinds["live"] + kinds["late"]
    missing = [m for m in sent if not _accounted((m.topic, m.partition, m.offset), raw, dead, gaps)]
    twice = [position for position, times in raw.items() if times > 1]
    differences = [
        f"{name}: {found} readings, {expected} were sent"
        for name, found in measured.items()
        if int(found) != expected
    ]
    if len(dead) != kinds["bad"]:
        differences.append(f"dead letters: {len(dead)} messages, {kinds['bad']} bad ones were sent")
    return SmokeResult(
        rows=rows,
        dead_letters=len(dead),
        lost=max(len(missing), *(expected - int(found) for found in measured.values()), 0),
        doubled=max(len(twice), *(int(found) - expected for found in measured.values()), 0),
        run_p50_s=run_p50_s,
        runs=runs,
        failed_runs=failed_runs,
        differences=tuple(differences),
    )


def _accounted(
    position: _Position,
    raw: Counter[_Position],
    dead: set[_Position],
    gaps: Sequence[tuple[str, int, int, int]],
) -> bool:
    log, offset = position[:2], position[2]
    in_gap = any(gap[:2] == log and gap[2] <= offset < gap[3] for gap in gaps if gap[3] is not None)
    return position in raw or position in dead or in_gap


def _fetch(cursor: Any, statement: str, topics: Sequence[str]) -> list[Any]:
    cursor.execute(statement, [list(topics)])
    return list(cursor.fetchall())


def _count(cursor: Any, table: str) -> int:
    cursor.execute(f"SELECT count(*) FROM {table}")
    return int(cursor.fetchone()[0])
