"""The window sizes that a database holds: written down by the migration, held to by every computation at its commit.

A process with other sizes would leave windows of some sizes behind, with nothing pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analytics_pipeline.assets.windows.spec import SPEC
from analytics_pipeline.errors import SettingsError
from analytics_pipeline.records import HOUR_S
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.locks import lock_inputs

NAME = "windows"

#: Every hour that holds something, and those in which the longer windows begin that hold it.
_WINDOWS_OF_EVERY_HOUR = """
INSERT INTO pending_work (asset, domain_id, hour, reason)
WITH held AS (
    SELECT DISTINCT domain_id, hour FROM partition_state
    WHERE asset IN ('normalized_measurements', 'window_aggregates') AND rows > 0
), wanted AS (
    SELECT domain_id, hour FROM held
    UNION
    SELECT domain_id, date_bin(window_s * interval '1 second', hour, to_timestamp(0))
    FROM held, unnest(%s::int[]) AS longer (window_s)
)
SELECT 'window_aggregates', domain_id, hour, 'window sizes' FROM wanted JOIN domain_number d USING (domain_id)
WHERE NOT EXISTS (SELECT FROM retention_floor f
                  WHERE f.domain = d.domain AND f.asset = 'window_aggregates' AND wanted.hour < f.floor_hour)
"""


def _text(sizes_s: Sequence[int]) -> str:
    return ",".join(map(str, sizes_s))


def stored(conn: Connection) -> tuple[int, ...] | None:
    """The sizes of this database in seconds; None before the first migration."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT value FROM pipeline_setting WHERE name = %s", (NAME,))
        row = cursor.fetchone()
    return tuple(map(int, row[0].split(","))) if row else None


def require(conn: Connection, sizes_s: Sequence[int]) -> None:
    """Refuse to compute with other sizes than the database holds.

    Raises:
        SettingsError: names both, and the remedy.
    """
    held = stored(conn)
    if held is not None and held != tuple(sizes_s):
        raise SettingsError(
            f"WINDOWS: this process computes windows of {_text(sizes_s)} s, the database holds {_text(held)} s; give "
            "every process the same WINDOWS, then run 'analytics-pipeline migrate' and restart them"
        )


def adopt(conn: Connection, sizes_s: Sequence[int]) -> str | None:
    """Make these the sizes of the database; returns what that means for a person, if anything. Commits.

    Windows of sizes that are no longer wanted are deleted, and every hour that holds measurements is asked for: its
    windows are computed again as backfill, while live data continues.
    """
    held = stored(conn)
    if held == tuple(sizes_s):
        return None
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            hours = _begin_anew(cursor, sizes_s) if held is not None else 0
            lock_inputs(conn)  # whoever commits from here on sees these sizes
            cursor.execute(
                "INSERT INTO pipeline_setting (name, value) VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now()",
                (NAME, _text(sizes_s)),
            )
            cursor.execute("COMMIT")
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
    if not hours:
        return None
    return f"window sizes changed from {_text(held or ())} to {_text(sizes_s)} s: {hours} hours are computed again"


def _begin_anew(cursor: Any, sizes_s: Sequence[int]) -> int:
    windowed = [table for table in SPEC.tables if "window_s" in table.by_name]
    # Slices of the old sizes that have written commit first: they need the lock of the inputs, not yet taken here.
    # The others write after this transaction, and are refused.
    cursor.execute(f"LOCK TABLE {', '.join(table.name for table in windowed)} IN SHARE ROW EXCLUSIVE MODE")
    for table in windowed:
        cursor.execute(f"DELETE FROM {table.name} WHERE NOT window_s = ANY(%s)", (list(sizes_s),))
    counts = " + ".join(
        f"(SELECT count(*) FROM {table.name} t WHERE t.domain_id = s.domain_id "
        "AND t.bucket_start >= s.hour AND t.bucket_start < s.hour + interval '1 hour')"
        for table in SPEC.tables
        if table.counted
    )
    cursor.execute(f"UPDATE partition_state s SET rows = {counts} WHERE s.asset = '{SPEC.name}'")
    # Where the first window of an hour begins now, later than before, nothing else asks for the anomalies before it.
    cursor.execute(
        "INSERT INTO pending_work (asset, domain_id, hour, reason) SELECT 'anomalies', domain_id, hour, 'window sizes' "
        "FROM partition_state WHERE asset = 'anomalies' AND rows > 0"
    )
    cursor.execute(_WINDOWS_OF_EVERY_HOUR, ([size_s for size_s in sizes_s if size_s > HOUR_S],))
    return int(cursor.rowcount)
