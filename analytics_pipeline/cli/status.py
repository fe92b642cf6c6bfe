"""``analytics-pipeline status``: lag, freshness, what is pending, quarantined or failed. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from analytics_pipeline.cli._shared import AsJson, age, console, open_database, print_json, table
from analytics_pipeline.cli.gates import reasons

if TYPE_CHECKING:
    from analytics_pipeline.storage.overview import Overview


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(as_json: AsJson = False) -> None:
    """Show how the pipeline stands, from the database: lag is as of the last tick."""
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.overview import read_overview

    with open_database(load_settings()) as conn:
        overview = read_overview(conn)
    if as_json:
        lags = [partition.lag_messages for partition in overview.partitions]
        lag = None if None in lags else sum(filter(None, lags))
        pending = sum(waiting.pairs for waiting in overview.waiting)
        print_json({"lag_messages": lag, "pending_pairs": pending, "overview": overview})
        return
    screen = console()
    for part in _parts(overview):
        screen.print(part)


def _parts(seen: Overview) -> Iterator[Table | str]:
    now = seen.now
    yield f"last batch committed {age(seen.last_batch_at, now)}"
    for domain, moment in seen.final_until.items():
        yield f"windows of {domain} are final up to {age(moment, now)}"
    if seen.partitions:
        yield table(
            "Lag, as of the last tick",
            ("topic", "partition", "next offset", "lag", "moved"),
            [
                (p.topic, p.partition, p.next_offset, p.lag_messages, age(p.updated_at, now))
                for p in seen.partitions
            ],
        )
    yield _pending(seen)
    if seen.gated:
        yield table(
            "Quarantined: 'gates release' lets one through",
            ("asset", "hour", "domain", "rows", "failed", "failing expectations"),
            [(g.asset, g.hour, g.domain, g.rows_seen, g.rows_failed, reasons(g.detail)) for g in seen.gated],
        )
    if seen.failed:
        yield table(
            "Failed, retried automatically",
            ("asset", "hour", "domain", "attempt", "next try", "error"),
            [(f.asset, f.hour, f.domain, f.attempt, f.next_try_at, f.error) for f in seen.failed],
        )
    if seen.open_gaps:
        yield f"{seen.open_gaps} open gaps: 'analytics-pipeline gaps list'"
    if seen.dead_letters_last_day:
        yield table("Dead letters of the last 24 hours", ("reason", "letters"), seen.dead_letters_last_day.items())


def _pending(seen: Overview) -> Table | str:
    if not seen.waiting:
        return "nothing is pending"
    return table(
        "Pending",
        ("asset", "hours", "pairs", "marks", "oldest"),
        [(w.asset, w.hours, w.pairs, w.marks, age(w.oldest_mark_at, seen.now)) for w in seen.waiting],
    )
