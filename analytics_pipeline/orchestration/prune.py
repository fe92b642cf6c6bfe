"""Keeps Dagster's own storage small: what the live path leaves behind, some 17,000 runs a day, goes after a while.

Kept, because pages are made from it: the latest materialization of every partition, the latest check result of every
check and partition for each outcome, every run that a person, a backfill or a schedule started, and of the
sensor's runs those that hold one of these, or a failure that nothing has made good since. In SQL on Dagster's
tables, since deleting a run the ordinary way deletes its partitions' status with it. PostgreSQL only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dagster import DagsterInstance
from dagster_postgres.event_log import PostgresEventLogStorage
from sqlalchemy import Connection, text

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.orchestration.tags import INCREMENTAL, MODE_TAG, PARENT_RUN_TAG

TABLES = ("event_logs", "runs", "run_tags", "asset_check_executions", "asset_event_tags", "job_ticks")

#: Runs whose rows go in one transaction.
RUNS_PER_TRANSACTION = 500

#: Of a run that stays: begin and end, for its page.
KEPT_EVENT_TYPES = ("PIPELINE_START", "PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED")

_LATEST = """
CREATE TEMP TABLE latest_materialization ON COMMIT PRESERVE ROWS AS
    SELECT max(id) AS id, asset_key, partition FROM event_logs
    WHERE dagster_event_type = 'ASSET_MATERIALIZATION' AND asset_key IS NOT NULL GROUP BY asset_key, partition;
CREATE UNIQUE INDEX ON latest_materialization (id);
CREATE INDEX ON latest_materialization (asset_key, partition);
CREATE TEMP TABLE latest_check_result ON COMMIT PRESERVE ROWS AS
    SELECT max(id) AS id, max(evaluation_event_storage_id) AS event_id FROM asset_check_executions
    GROUP BY asset_key, check_name, partition, execution_status;
CREATE UNIQUE INDEX ON latest_check_result (id);
CREATE INDEX ON latest_check_result (event_id);
ANALYZE latest_materialization, latest_check_result;
"""

#: Finished runs of the sensor that ended before the cutoff. ``drop``: nothing of the run is worth keeping.
_OLD_RUNS = """
CREATE TEMP TABLE old_run ON COMMIT PRESERVE ROWS AS
SELECT r.run_id, CASE r.status
    WHEN 'SUCCESS' THEN NOT EXISTS (
        SELECT FROM event_logs e JOIN latest_materialization l USING (id) WHERE e.run_id = r.run_id)
    ELSE NOT EXISTS (
        SELECT FROM event_logs e LEFT JOIN latest_materialization l
            ON l.asset_key = e.asset_key AND l.partition = e.partition AND l.id > e.id
        WHERE e.run_id = r.run_id AND l.id IS NULL
            AND e.dagster_event_type IN ('ASSET_MATERIALIZATION_PLANNED', 'ASSET_MATERIALIZATION'))
    END AS drop
FROM runs r JOIN run_tags t ON t.run_id = r.run_id AND t.key = :mode_tag AND t.value = :incremental
WHERE r.status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND r.end_time < :cutoff
    AND NOT EXISTS (SELECT FROM run_tags p WHERE p.run_id = r.run_id AND p.key = :parent_tag);
ANALYZE old_run;
"""

#: For a batch of old runs, in this order: a crash between two leaves nothing that points into the void.
_PER_BATCH = {
    "asset_event_tags": """
        DELETE FROM asset_event_tags g USING event_logs e
        WHERE g.event_id = e.id AND e.run_id = ANY(:runs)
            AND NOT EXISTS (SELECT FROM latest_materialization l WHERE l.id = e.id)
        """,
    "event_logs": """
        DELETE FROM event_logs e USING old_run o
        WHERE e.run_id = o.run_id AND o.run_id = ANY(:runs) AND (o.drop OR (
            NOT EXISTS (SELECT FROM latest_materialization l WHERE l.id = e.id)
            AND NOT EXISTS (SELECT FROM latest_check_result v WHERE v.event_id = e.id)
            AND NOT (coalesce(e.dagster_event_type, '') = ANY(:kept_types))))
        """,
    "asset_check_executions": """
        DELETE FROM asset_check_executions c WHERE c.run_id = ANY(:runs)
            AND (c.execution_status = 'PLANNED' OR NOT EXISTS (SELECT FROM latest_check_result v WHERE v.id = c.id))
        """,
    "run_tags": """
        DELETE FROM run_tags t USING old_run o WHERE t.run_id = o.run_id AND o.drop AND o.run_id = ANY(:runs)
        """,
    "runs": "DELETE FROM runs r USING old_run o WHERE r.run_id = o.run_id AND o.drop AND o.run_id = ANY(:runs)",
}

#: What no run reported: the drain's materializations and check results that newer ones replaced; what is left of runs
#: that a person deleted while they worked; and old ticks.
_AT_THE_END = {
    "event_logs": """
        DELETE FROM event_logs e
        WHERE e.timestamp < to_timestamp(:cutoff) AT TIME ZONE 'UTC'
            AND CASE e.run_id
                WHEN '' THEN e.dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_CHECK_EVALUATION')
                ELSE NOT EXISTS (SELECT FROM runs r WHERE r.run_id = e.run_id)
            END
            AND NOT EXISTS (SELECT FROM latest_materialization l WHERE l.id = e.id)
            AND NOT EXISTS (SELECT FROM latest_check_result v WHERE v.event_id = e.id)
        """,
    "job_ticks": "DELETE FROM job_ticks WHERE timestamp < to_timestamp(:cutoff) AT TIME ZONE 'UTC'",
}


@dataclass
class Pruned:
    """Figures of one pruning. Bytes are those of Dagster's tables with their indexes."""

    rows_before: dict[str, int]
    bytes_before: int
    deleted: dict[str, int] = field(default_factory=dict)
    rows_after: dict[str, int] = field(default_factory=dict)
    bytes_after: int = 0


def prune(instance: DagsterInstance, before: datetime, *, return_space: bool = False) -> Pruned:
    """Delete what is older than ``before`` and not needed.

    Args:
        return_space: rewrite the tables, so that the file system gets the space back; locks each of them for a
            while. Otherwise the space is used again by what comes.

    Raises:
        PipelineError: Dagster's storage is not PostgreSQL.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        raise PipelineError("Dagster's storage is pruned on PostgreSQL only: see 'storage' in dagster.yaml")
    with storage.index_connection() as conn:  # in autocommit: each statement is a transaction
        pruned = Pruned(_rows(conn), _bytes(conn))
        try:
            _delete(conn, before.astimezone(UTC).timestamp(), pruned.deleted)
        finally:
            conn.execute(text("DROP TABLE IF EXISTS latest_materialization, latest_check_result, old_run"))
        full = "FULL, " if return_space else ""
        for table in TABLES:
            conn.execute(text(f"VACUUM ({full}ANALYZE) {table}"))
        pruned.rows_after, pruned.bytes_after = _rows(conn), _bytes(conn)
    return pruned


def _delete(conn: Connection, cutoff: float, deleted: dict[str, int]) -> None:
    _execute_all(conn, _LATEST)
    tags = {"mode_tag": MODE_TAG, "incremental": INCREMENTAL, "parent_tag": PARENT_RUN_TAG}
    _execute_all(conn, _OLD_RUNS, cutoff=cutoff, **tags)
    runs = [row[0] for row in conn.execute(text("SELECT run_id FROM old_run ORDER BY run_id"))]
    for start in range(0, len(runs), RUNS_PER_TRANSACTION):
        batch = runs[start : start + RUNS_PER_TRANSACTION]
        for table, statement in _PER_BATCH.items():
            _count(conn, table, statement, deleted, runs=batch, kept_types=list(KEPT_EVENT_TYPES))
    for table, statement in _AT_THE_END.items():
        _count(conn, table, statement, deleted, cutoff=cutoff)


def _execute_all(conn: Connection, script: str, **parameters: Any) -> None:
    for statement in script.split(";\n"):
        if statement.strip():
            wanted = {name: value for name, value in parameters.items() if f":{name}" in statement}
            conn.execute(text(statement), wanted)


def _count(conn: Connection, table: str, statement: str, deleted: dict[str, int], **parameters: Any) -> None:
    wanted = {name: value for name, value in parameters.items() if f":{name}" in statement}
    rows = conn.execute(text(statement), wanted).rowcount
    deleted[table] = deleted.get(table, 0) + rows


def _rows(conn: Connection) -> dict[str, int]:
    return {table: int(_scalar(conn, f"SELECT count(*) FROM {table}")) for table in TABLES}


def _bytes(conn: Connection) -> int:
    return int(_scalar(conn, f"SELECT {' + '.join(f'pg_total_relation_size({table!r})' for table in TABLES)}"))


def _scalar(conn: Connection, query: str) -> Any:
    return conn.execute(text(query)).scalar_one()


def summary(pruned: Pruned) -> Sequence[str]:
    """The figures in words, one line each."""
    mib = 1024**2
    return [
        f"{table}: {pruned.rows_before[table]:,} rows before, {pruned.rows_after[table]:,} after"
        for table in TABLES
    ] + [f"size: {pruned.bytes_before / mib:,.1f} MiB before, {pruned.bytes_after / mib:,.1f} MiB after"]
