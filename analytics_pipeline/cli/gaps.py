"""``analytics-pipeline gaps``: offsets without a stored row. Each gap is recorded; a person accepts it."""

from __future__ import annotations

import os
import pwd
from typing import Annotated

import typer

from analytics_pipeline.cli._shared import AsJson, console, open_database, print_json, table
from analytics_pipeline.errors import PipelineError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Offsets without a stored row: list and accept them.", no_args_is_help=True)
    group.command("list")(list_gaps)
    group.command("accept")(accept)
    app.add_typer(group, name="gaps")


def list_gaps(
    every: Annotated[bool, typer.Option("--all", help="Also those that were accepted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the gaps that nobody accepted yet."""
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.operator_actions import read_gaps

    with open_database(load_settings()) as conn:
        gaps = read_gaps(conn, accepted_too=every)
    if as_json:
        print_json(gaps)
    elif not gaps:
        typer.echo("gaps: none" if every else "open gaps: none")
    else:
        columns = ("gap", "topic", "epoch", "partition", "from", "to", "reason", "recorded", "accepted", "by")
        rows = [
            (g.gap_id, g.topic, g.epoch, g.partition, g.from_offset, "end of log" if g.to_offset is None
             else g.to_offset, g.reason, g.recorded_at, g.accepted_at, g.accepted_by)
            for g in gaps
        ]  # fmt: skip
        console().print(table("Gaps", columns, rows))


def accept(
    gap_ids: Annotated[list[int] | None, typer.Argument(metavar="GAP...", help="As 'gaps list' shows.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    by: Annotated[str | None, typer.Option(help="Who accepts. Default: the user of this process.")] = None,
) -> None:
    """Record that you know of these gaps, so that 'status' no longer counts them."""
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.operator_actions import accept_gaps, read_gaps

    if bool(gap_ids) == every:
        raise PipelineError(
            "gaps accept: takes gap numbers or --all, and not both; 'analytics-pipeline gaps list' shows the numbers"
        )
    with open_database(load_settings()) as conn:
        wanted = [gap.gap_id for gap in read_gaps(conn)] if every else list(gap_ids or ())
        accepted = accept_gaps(conn, wanted, by or pwd.getpwuid(os.getuid()).pw_name)
        conn.commit()
    shown = ", ".join(map(str, accepted)) or "none, no such gap is open"
    typer.echo(f"accepted: {shown}")
