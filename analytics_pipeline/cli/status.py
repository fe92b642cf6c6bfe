"""``analytics-pipeline status``: lag, freshness, what is pending, quarantined or failed. Changes nothing.

Exit code 1 when the drain sensor has stopped ticking: every other figure here then looks as good as it did before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from analytics_pipeline.cli._shared import AsJson, age, console, open_database, print_json, table
from analytics_pipeline.cli.gates import reasons

if TYPE_CHECKING:
    from analytics_pipeline.settings import Settings
    from analytics_pipeline.storage.dagster_tables import Tick
    from analytics_pipeline.storage.overview import Overview

#: As orchestration/sensors.py names it; importing that would import Dagster.
SENSOR = "drain_kafka"
#: Dagster's daemon looks no more often than this, whatever the sensor's interval.
DAEMON_INTERVAL_S = 5
INTERVALS_ALLOWED = 3
#: How long Dagster lets one tick run.
LONGEST_TICK_S = 60


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(as_json: AsJson = False) -> None:
    """Show how the pipeline stands, from the database: lag is as of the last tick.

    Exit code 1 when the drain sensor has not ticked for three of its intervals.
    """
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.dagster_tables import last_tick
    from analytics_pipeline.storage.overview import read_overview

    settings = load_settings()
    with open_database(settings) as conn:
        overview = read_overview(conn)
        tick = last_tick(conn, settings.dagster_schema, SENSOR)
    stopped = _stopped(settings, tick, overview.now)
    if as_json:
        lags = [partition.lag_messages for partition in overview.partitions]
        lag = None if None in lags else sum(filter(None, lags))
        pending = sum(waiting.pairs for waiting in overview.waiting)
        ticks = {"last_tick_at": tick.at if tick else None, "ticking": tick is not None and stopped is None}
        print_json({"lag_messages": lag, "pending_pairs": pending, **ticks, "overview": overview})
    else:
        screen = console()
        screen.print(
            f"last tick of {SENSOR} {age(tick.at, overview.now)}" if tick else f"{SENSOR} has not ticked yet"
        )
        for part in _parts(overview):
            screen.print(part)
    if stopped:
        typer.echo(f"error: {stopped}", err=True)
        raise typer.Exit(1)


def _stopped(settings: Settings, tick: Tick | None, now: datetime) -> str | None:
    """Why the sensor is taken for stopped; None while it ticks, and before its first tick."""
    if tick is None:
        return None
    interval_s = max(settings.drain_interval_s, DAEMON_INTERVAL_S)
    allowed_s = INTERVALS_ALLOWED * interval_s + (LONGEST_TICK_S if tick.status == "STARTED" else 0)
    if (now - tick.at).total_seconds() <= allowed_s:
        return None
    return (
        f"{SENSOR} last ticked without failing {age(tick.at, now)}, its interval is {interval_s} s: nothing is "
        "drained; see that the daemon and the code server run, and that the sensor is on"
    )


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
