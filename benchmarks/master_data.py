"""An edit of limits over ten domains and 90 days: how long until its commit, and how long commits wait for it.

10,000 limits at once: for each of 100 sensors, which each of the ten domains has, a hundred limits that follow one
another. Meanwhile somebody takes the lock that every commit of a computation takes, fifty times a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.locks import lock_inputs_shared
from analytics_pipeline.storage.pending_work import live_items
from benchmarks.copies import DOMAINS
from benchmarks.payloads import METRIC, SENSORS
from benchmarks.pipeline import migrated
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack
from benchmarks.stored import Filler, forget_pending, maintain, session

DAYS, DAYS_QUICK = 90, 9
LIMITS_OF_SENSOR, LIMITS_OF_SENSOR_QUICK = 100, 10
EDITS = 5
GOAL_IMPORT_S, GOAL_EDIT_S, GOAL_WAIT_S = 10.0, 0.2, 1.0
PROBE_S = 0.02

_WINDOWS_STORED = """
    INSERT INTO partition_state (asset, domain_id, hour, rows, rows_failed, status)
    SELECT asset, domain_id, %(begins)s + h * interval '1 hour', 100, 0, 'open'
    FROM domain_number CROSS JOIN generate_series(0, %(hours)s - 1) h
    CROSS JOIN unnest(ARRAY['normalized_measurements', 'window_aggregates']) asset
"""
_LIMITS = f"""
    INSERT INTO analytics_spec_limits (sensor_id, metric, lsl, usl, valid_from)
    SELECT s.sensor_id, '{METRIC}', 0, 100 + k, %(begins)s + k * %(step)s
    FROM (SELECT DISTINCT sensor_id FROM measurement_series) s CROSS JOIN generate_series(0, %(count)s - 1) k
"""
_EDIT = f"""
    UPDATE analytics_spec_limits SET usl = usl + 1000 WHERE metric = '{METRIC}' AND spec_id = (
        SELECT spec_id FROM analytics_spec_limits ORDER BY valid_from, sensor_id LIMIT 1 OFFSET %s)
"""
_CALIBRATE = f"""
    INSERT INTO analytics_calibration (sensor_id, metric, gain, valid_from)
    SELECT DISTINCT sensor_id, '{METRIC}', 1.02, %(week_ago)s FROM measurement_series
"""
_CORRECT = """
    UPDATE analytics_calibration SET gain = gain + 0.01 WHERE sensor_id = (
        SELECT sensor_id FROM analytics_calibration ORDER BY sensor_id LIMIT 1 OFFSET %s)
"""


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The import, then single edits, the worst of which counts: they begin 90 days ago."""
    days, count = (DAYS_QUICK, LIMITS_OF_SENSOR_QUICK) if quick else (DAYS, LIMITS_OF_SENSOR)
    now = hour_of(datetime.now(UTC))
    with stack.database("master_data") as database:
        settings = migrated(stack, database, domains=DOMAINS)
        for domain in range(DOMAINS):
            Filler(database, domain)
        times = {"begins": now - timedelta(days=days), "hours": days * 24, "step": timedelta(days=days) / count}
        with session(database) as cursor:
            cursor.execute(_WINDOWS_STORED, times)
        maintain(database)
        with _probing(settings) as waits:
            import_s = _edit(database, _LIMITS, {**times, "count": count})
        live = _live_items(settings, now - HOUR)
        edits_s = _edits(database, _EDIT)
        _edit(database, _CALIBRATE, {"week_ago": now - timedelta(days=7)})
        corrections_s = _edits(database, _CORRECT)
        engine_for(settings).dispose()
    limits = count * SENSORS
    say(f"{limits:,} limits in {import_s:.2f} s, a commit waits {max(waits):.3f} s; one in {median(edits_s):.3f} s")
    detail = {"limits": limits, "domains": DOMAINS, "days": days, "live_items": live}
    return [
        Figure(f"import of {limits:,} limits", import_s, "s", GOAL_IMPORT_S, "at_most", detail),
        Figure("longest wait of a commit for that import", max(waits), "s", GOAL_WAIT_S, "at_most"),
        Figure(
            "pending work of live hours after that import / backpressure",
            live / settings.backpressure_pending,
            "x",
            1.0,
            "at_most",
        ),
        Figure("one limit edited", median(edits_s), "s", GOAL_EDIT_S, "at_most", {"max_s": max(edits_s)}),
        Figure(
            "one calibration of a week edited",
            median(corrections_s),
            "s",
            GOAL_EDIT_S,
            "at_most",
            {"max_s": max(corrections_s)},
        ),
    ]


def _edits(database: dict[str, Any], statement: str) -> list[float]:
    """Seconds of single edits, each of another row."""
    found = []
    for number in range(EDITS):
        forget_pending(database)
        found.append(_edit(database, statement, (number,)))
    return found


def _edit(database: dict[str, Any], statement: str, parameters: Any) -> float:
    """Seconds until its commit."""
    began_s = time.monotonic()
    with session(database) as cursor:
        cursor.execute("SET LOCAL synchronous_commit = on")
        cursor.execute(statement, parameters)
    return time.monotonic() - began_s


def _live_items(settings: Settings, since: datetime) -> int:
    with connection(engine_for(settings)) as conn:
        return live_items(conn, since)


@contextmanager
def _probing(settings: Settings) -> Iterator[list[float]]:
    """How long each commit would have waited, in seconds."""
    waits, stopped = [0.0], threading.Event()

    def probe() -> None:
        with connection(engine_for(settings)) as conn:
            while not stopped.wait(PROBE_S):
                began_s = time.monotonic()
                lock_inputs_shared(conn)
                waits.append(time.monotonic() - began_s)
                conn.rollback()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield waits
    finally:
        stopped.set()
        thread.join()
