"""Outcomes of commits: written with the rows, read by whoever reports them to Dagster, each reported once."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extras import execute_values

from analytics_pipeline.records import DomainOutcome, ExpectationOutcome, GateResult
from analytics_pipeline.storage.engine import Connection

#: Reported outcomes stay this long, for people. At a commit a second each day would be millions of rows.
KEPT_AFTER_REPORT = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutcome:
    """One row of ``partition_outcome``."""

    outcome_id: int
    asset: str
    hour: datetime
    run_id: str
    mode: str
    duration_s: float
    domain: DomainOutcome
    #: Somebody began to report it, and did not note that it was done.
    begun: bool


def write(
    connection: Connection,
    asset: str,
    outcomes: Sequence[tuple[int, datetime, DomainOutcome]],
    *,
    run_id: str,
    mode: str,
    duration_s: float,
) -> list[int]:
    """Record what this transaction did to some (domain number, hour); returns the ids."""
    if not outcomes:
        return []
    with connection.cursor() as cursor:
        found = execute_values(
            cursor,
            "INSERT INTO partition_outcome (asset, domain_id, hour, run_id, mode, rows, rows_written, "
            "dead_letters, late_rows, rows_failed, quarantined, gate, duration_s) VALUES %s RETURNING outcome_id",
            [
                (asset, domain_id, hour, run_id, mode, one.rows, one.written, one.dead_letters, one.late_rows,
                 one.rows_failed, one.quarantined, json.dumps(_gate_json(one)), duration_s)
                for domain_id, hour, one in outcomes
            ],
            page_size=1000,
            fetch=True,
        )  # fmt: skip
    return [row[0] for row in found]


def _gate_json(outcome: DomainOutcome) -> dict[str, Any]:
    gate = outcome.gate
    return {
        "rows": gate.rows,
        "rows_seen": outcome.rows_seen,
        "failed": len(gate.reasons),
        "expectations": [
            [one.name, one.column, one.reason, one.failed, list(one.sample_rows)]
            for one in gate.outcomes
            if one.failed
        ],
    }


def _domain_outcome(asset: str, domain: str, row: Sequence[Any]) -> DomainOutcome:
    rows, written, dead_letters, late_rows, rows_failed, quarantined, gate = row
    expectations = tuple(
        ExpectationOutcome(name=name, column=column, reason=reason, failed=failed, sample_rows=tuple(sample))
        for name, column, reason, failed, sample in gate["expectations"]
    )
    reasons = dict.fromkeys(range(gate["failed"]), "")
    return DomainOutcome(
        domain=domain,
        rows=rows,
        written=written,
        dead_letters=dead_letters,
        late_rows=late_rows,
        gate=GateResult(asset=asset, domain=domain, rows=gate["rows"], reasons=reasons, outcomes=expectations),
        quarantined=quarantined,
        rows_seen=gate["rows_seen"],
        rows_failed=rows_failed,
    )


def unreported(connection: Connection, unfinished_runs: Collection[str], limit: int) -> list[StoredOutcome]:
    """Outcomes that nobody reported yet, the newest hours first, but for those of runs that still report."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT o.outcome_id, o.asset, o.hour, o.run_id, o.mode, o.duration_s, o.report_begun_at IS NOT NULL, "
            "d.domain, o.rows, o.rows_written, o.dead_letters, o.late_rows, o.rows_failed, o.quarantined, o.gate "
            "FROM partition_outcome o JOIN domain_number d USING (domain_id) "
            "WHERE o.reported_at IS NULL AND o.run_id <> ALL(%s::text[]) "
            "ORDER BY o.hour DESC, o.outcome_id DESC LIMIT %s",
            (list(unfinished_runs), limit),
        )
        return [
            StoredOutcome(
                outcome_id=row[0],
                asset=row[1],
                hour=row[2],
                run_id=row[3],
                mode=row[4],
                duration_s=row[5],
                begun=row[6],
                domain=_domain_outcome(row[1], row[7], row[8:]),
            )
            for row in cursor.fetchall()
        ]


def mark_begun(connection: Connection, outcome_ids: Sequence[int]) -> None:
    """These are about to be reported: should that not be noted afterwards, it must be looked for."""
    _mark(connection, "report_begun_at", outcome_ids)


def mark_reported(connection: Connection, outcome_ids: Sequence[int]) -> None:
    """These are shown now."""
    _mark(connection, "reported_at", outcome_ids)


def _mark(connection: Connection, column: str, outcome_ids: Sequence[int]) -> None:
    if outcome_ids:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE partition_outcome SET {column} = clock_timestamp() WHERE outcome_id = ANY(%s)",
                (list(outcome_ids),),
            )


def prune(connection: Connection, now: datetime) -> int:
    """Drop what was reported long ago; returns how many rows."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM partition_outcome WHERE reported_at < %s", (now - KEPT_AFTER_REPORT,))
        return int(cursor.rowcount)
