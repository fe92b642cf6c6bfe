"""What the pipeline asks Dagster's own tables, which are in its database: may a run write, and does a sensor tick.

A run can be given up while its process still works: it was frozen, it hung, it exceeded its time. Another run then
does its work, and the first one must not commit when it wakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2 import sql

from analytics_pipeline.errors import RunEndedError
from analytics_pipeline.storage.engine import Connection

MAY_WRITE = "STARTED"


def require_started_run(conn: Connection, dagster_schema: str, run_id: str) -> None:
    """Hold the run's status until this transaction ends, or refuse.

    Call it last before the commit: until then, whoever changes the run's status waits for this transaction. A run
    that Dagster does not keep in this database (a test's, an ephemeral instance's) may write.

    Raises:
        RunEndedError: Dagster no longer holds the run for started; roll back.
        psycopg2.errors.SerializationFailure: the run's row changed after this transaction's snapshot was opened.
            Begin anew: the next attempt sees the row as it is.
    """
    table = sql.Identifier(dagster_schema, "runs")
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table.as_string(conn),))
        if not cursor.fetchone()[0]:
            return
        cursor.execute(sql.SQL("SELECT status FROM {} WHERE run_id = %s FOR SHARE").format(table), (run_id,))
        found = cursor.fetchone()
    if found is not None and found[0] != MAY_WRITE:
        raise RunEndedError(
            f"run {run_id} is {found[0]}, not {MAY_WRITE}: nothing was written; re-execute it if still wanted"
        )


@dataclass(frozen=True, slots=True)
class Tick:
    """A sensor's latest tick that did not fail. ``status`` as Dagster writes it: STARTED, SKIPPED or SUCCESS."""

    status: str
    at: datetime


def last_tick(conn: Connection, dagster_schema: str, sensor: str) -> Tick | None:
    """The latest tick that began or ended without failing; None: no tick is known here.

    That is also so where Dagster keeps its storage elsewhere, or this role may not read it.
    """
    table = sql.Identifier(dagster_schema, "job_ticks")
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(has_schema_privilege(to_regnamespace(%s), 'USAGE'), false) "
            "AND coalesce(has_table_privilege(to_regclass(%s), 'SELECT'), false)",
            (sql.Identifier(dagster_schema).as_string(conn), table.as_string(conn)),
        )
        if not cursor.fetchone()[0]:
            return None
        cursor.execute(
            sql.SQL(
                "SELECT status, greatest(timestamp, update_timestamp) AT TIME ZONE 'UTC' FROM {} "
                "WHERE type = 'SENSOR' AND status <> 'FAILURE' AND tick_body LIKE %s ORDER BY id DESC LIMIT 1"
            ).format(table),
            (f'%"job_name": "{sensor}"%',),  # as Dagster stores TickData.instigator_name
        )
        found = cursor.fetchone()
    return Tick(*found) if found else None
