"""What the UI shows beside an asset, a materialization and a check. Shapes values only; reads no table."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from dagster import MetadataValue, TableColumn, TableColumnConstraints, TableSchema

from analytics_pipeline.assets.catalog import BY_NAME
from analytics_pipeline.records import BatchHour, DomainOutcome, DomainState, GateResult, HourOutcome
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.row_counts import RawTotals

Metadata = dict[str, Any]

#: Bars of the plot: one per minute of the hour.
PLOT_MINUTES = 60
PLOT_HEIGHT_PX = 48
PLOT_BAR_PX = 5

#: Sample positions shown per check, so that a flood of bad rows does not fill Dagster's event log.
SAMPLES_SHOWN = 20

#: Of an hour that retention took.
EXPIRED_METADATA: Metadata = {"dagster/row_count": 0, "retention": "taken"}


def definition_metadata(asset: str, settings: Settings) -> Metadata:
    """Column schema with units, and table name: the same for every partition."""
    table = BY_NAME[asset].table
    columns = [
        TableColumn(
            name=column.name,
            type=column.type,
            description=f"{column.description} [{column.unit}]" if column.unit else column.description,
            constraints=TableColumnConstraints(nullable=column.nullable),
        )
        for column in (*table.columns, *table.bookkeeping)
    ]
    return {
        "dagster/column_schema": TableSchema(columns=columns),
        "dagster/table_name": f"{settings.db_name}.{settings.db_schema}.{table.name}",
    }


def outcome_metadata(outcome: HourOutcome, held: Sequence[DomainState] = ()) -> Metadata:
    """What one run did to one partition, and what the partition holds over all of its domains."""
    rows = {state.domain: state.rows for state in held} | {d.domain: d.rows for d in outcome.domains}
    metadata: Metadata = {
        "dagster/row_count": sum(rows.values()),
        "rows_written": sum(domain.written for domain in outcome.domains),
        "late_rows": outcome.late_rows,
        "dead_letters": outcome.dead_letters,
        "duration_s": round(outcome.duration_s, 4),
        "mode": outcome.mode,
    }
    if len(rows) > 1:
        metadata["rows_by_domain"] = MetadataValue.json(rows)
    return metadata


def check_metadata(
    outcome: HourOutcome, others: Sequence[DomainState] = (), failed: Mapping[str, str | None] | None = None
) -> Metadata:
    """What the gate said about one partition: counts, what failed where, and a table by domain."""
    failing = [failure for domain in outcome.domains for failure in _failing(domain.gate)]
    metadata: Metadata = {
        "rows_checked": sum(domain.gate.rows for domain in outcome.domains),
        "rows_failed": sum(len(domain.gate.reasons) for domain in outcome.domains),
    }
    if failing:
        metadata["failing_expectations"] = MetadataValue.json(failing)
    if outcome.quarantined:
        metadata["quarantined"] = ", ".join(outcome.quarantined)
        metadata["whole_content"] = MetadataValue.json(
            {d.domain: _whole_content(d) for d in outcome.domains if d.quarantined}
        )
    if len(outcome.domains) + len(others) > 1 or failed:
        metadata["domains"] = MetadataValue.md(_domain_table(outcome, others, failed or {}))
    return metadata


def _domain_table(
    outcome: HourOutcome, others: Sequence[DomainState], failed: Mapping[str, str | None]
) -> str:
    rows = {d.domain: (d.rows, d.rows_failed, "quarantined" if d.quarantined else "written") for d in outcome.domains}
    rows |= {s.domain: (s.rows, s.rows_failed, s.status) for s in others}
    for domain, error in failed.items():
        its = rows.get(domain, (0, 0, ""))
        rows[domain] = (its[0], its[1], f"failed: {(error or '').splitlines()[0][:200] if error else ''}")
    lines = [f"| {name} | {its[0]} | {its[1]} | {its[2].replace('|', '/')} |" for name, its in sorted(rows.items())]
    return "\n".join(["| domain | rows | failed rows | state |", "|---|---:|---:|---|", *lines])


def _whole_content(domain: DomainOutcome) -> Mapping[str, int]:
    return {"rows_seen": domain.rows_seen, "rows_failed": domain.rows_failed}


def _failing(gate: GateResult) -> Sequence[Metadata]:
    return [
        {
            "domain": gate.domain,
            "expectation": outcome.name,
            "column": outcome.column,
            "reason": outcome.reason,
            "failed": outcome.failed,
            "sample_rows": list(outcome.sample_rows[:SAMPLES_SHOWN]),
        }
        for outcome in gate.outcomes
        if outcome.failed
    ]


def drained_metadata(batch_hours: Sequence[BatchHour], batches: Sequence[int], totals: RawTotals) -> Metadata:
    """What the drain added to one partition, over the batches that are reported together."""
    return {
        "dagster/row_count": totals.rows,
        "rows_written": sum(one.raw_rows for one in batch_hours),
        "late_rows": sum(one.late_rows for one in batch_hours),
        "dead_letters": sum(one.dead_letters for one in batch_hours),
        "batches": f"{batches[0]}-{batches[-1]}" if len(batches) > 1 else str(batches[0]),
        "mode": "drain",
    }


def drained_check_metadata(batch_hours: Sequence[BatchHour], totals: RawTotals) -> Metadata:
    """What the drain refused in one partition: over the whole hour, and why in the batches reported."""
    metadata: Metadata = {
        "rows_checked": totals.rows + totals.dead_letters,
        "rows_failed": totals.dead_letters,
    }
    reasons: dict[str, int] = {}
    for one in batch_hours:
        for reason, count in one.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    if reasons:
        samples = [sample for one in batch_hours for sample in one.samples][:SAMPLES_SHOWN]
        metadata["failing_expectations"] = MetadataValue.json(reasons)
        metadata["sample_positions"] = MetadataValue.json(samples)
    return metadata


def plot_metadata(rows_per_minute: Sequence[int]) -> Metadata:
    """Rows per minute of the hour as small bars, drawn without a plotting library. Empty for an empty hour."""
    highest = max(rows_per_minute, default=0)
    if not highest:
        return {}
    bars = "".join(
        f'<rect x="{minute * PLOT_BAR_PX}" y="{PLOT_HEIGHT_PX - height}" width="{PLOT_BAR_PX - 1}" '
        f'height="{height}"/>'
        for minute, rows in enumerate(rows_per_minute)
        if (height := -(-rows * PLOT_HEIGHT_PX // highest))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PLOT_MINUTES * PLOT_BAR_PX}" '
        f'height="{PLOT_HEIGHT_PX}" fill="#4f43dd">{bars}</svg>'
    )
    image = base64.b64encode(svg.encode()).decode()
    return {
        "rows_per_minute": MetadataValue.md(
            f"![rows per minute](data:image/svg+xml;base64,{image})\n\nhighest: {highest} rows in a minute"
        )
    }
