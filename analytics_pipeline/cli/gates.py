"""``analytics-pipeline gates``: domain partitions in quarantine, and how to release one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from analytics_pipeline.cli._shared import AsJson, console, open_database, print_json, table, utc
from analytics_pipeline.errors import PipelineError

#: As Dagster names the partitions, and as people write times.
HOUR_FORMATS = ("%Y-%m-%d-%H:%M", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Quarantined domain partitions: list and release them.", no_args_is_help=True)
    group.command("list")(list_gates)
    group.command("release")(release)
    app.add_typer(group, name="gates")


def list_gates(as_json: AsJson = False) -> None:
    """Show the domain partitions that are in quarantine, or released with rows that fail."""
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.status import read_gated

    with open_database(load_settings()) as conn:
        gated = read_gated(conn)
    if as_json:
        print_json(gated)
    elif not gated:
        typer.echo("quarantined domain partitions: none")
    else:
        columns = ("asset", "hour", "domain", "status", "rows", "failed", "pending items", "since",
                   "failing expectations")  # fmt: skip
        rows = [
            (p.asset, p.hour, p.domain, p.status, p.rows_seen, p.rows_failed, p.pending_items, p.updated_at,
             reasons(p.detail))
            for p in gated
        ]  # fmt: skip
        console().print(table("Gates", columns, rows))


def reasons(detail: dict[str, Any]) -> str:
    """The failing expectations of a domain partition with their counts, the most frequent first."""
    counts = detail.get("expectations") or {}
    return ", ".join(f"{name}: {n}" for name, n in sorted(counts.items(), key=lambda one: -one[1])) or "-"


def release(
    asset: Annotated[str, typer.Argument(help="As 'gates list' shows.")],
    hour: Annotated[str, typer.Argument(help="UTC, for example 2026-11-21T10:00Z.")],
    domain: Annotated[str, typer.Argument(help="For example sensor.")],
) -> None:
    """Release a domain partition from quarantine: the next run writes its good rows; rows that fail stay out.

    Of normalized_measurements, rows that fail become dead letters. Of window_aggregates, anomalies and kpis, a figure
    that fails its gate is never written: releasing one computes it again, and no more.
    """
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage import operator_actions

    start = parse_hour(hour)
    with open_database(load_settings()) as conn:
        operator_actions.release(conn, asset, start, domain)
        conn.commit()
    typer.echo(f"released: {asset}, {utc(start)}, {domain}; the next run writes its good rows")


def parse_hour(text: str) -> datetime:
    """The start of a UTC hour.

    Raises:
        PipelineError: not a time, or not a whole hour.
    """
    for form in HOUR_FORMATS:
        try:
            moment = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if (moment.minute, moment.second) == (0, 0):
            return moment
    raise PipelineError(f"hour: got {text!r}, takes a whole hour in UTC, for example 2026-11-21T10:00Z")
