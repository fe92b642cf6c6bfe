"""``analytics-pipeline status``: lag, freshness, and what is pending, quarantined or failed. Changes nothing.

Exit code 1 when the drain sensor has stopped ticking: every other figure here then looks as good as it did before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from analytics_pipeline.cli._shared import AsJson, age, console, open_database, print_json, table, utc
from analytics_pipeline.cli.gates import reasons

if TYPE_CHECKING:
    from analytics_pipeline.settings import Settings
    from analytics_pipeline.storage.dagster_tables import Tick
    from analytics_pipeline.storage.status import PipelineStatus

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
    from analytics_pipeline.storage.status import read_status

    settings = load_settings()
    with open_database(settings) as conn:
        overview = read_status(conn)
        tick = last_tick(conn, settings.dagster_schema, SENSOR)
    stopped = _stopped(settings, tick, overview.now)
    if as_json:
        lags = [partition.lag_messages for partition in overview.partitions]
        lag = None if None in lags else sum(filter(None, lags))
        pending = sum(one.domain_partitions for one in overview.pending)
        ticks = {"last_tick_at": tick.at if tick else None, "ticking": tick is not None and stopped is None}
        print_json({"lag_messages": lag, "pending_domain_partitions": pending, **ticks, "overview": overview})
    else:
        screen = console()
        ticked = age(tick.at, overview.now) if tick else "never; start the daemon and the code location"
        screen.print(f"last tick of {SENSOR}: {ticked}")
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
        f"nothing is drained: {SENSOR} last ticked without an error {age(tick.at, now)}, its interval is "
        f"{interval_s} s; check that the daemon and the code server run and that the sensor is on"
    )


def _parts(seen: PipelineStatus) -> Iterator[Table | str]:
    now = seen.now
    yield f"last batch committed: {age(seen.last_batch_at, now)}"
    for domain, moment in seen.final_until.items():
        yield f"windows of {domain} are final up to: {utc(moment)} ({age(moment, now)})"
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
    if seen.quarantined:
        yield table(
            "Quarantined; correct the data or the rule, or accept one with 'analytics-pipeline gates release'",
            ("asset", "hour", "domain", "rows", "failed", "failing expectations"),
            [(g.asset, g.hour, g.domain, g.rows_seen, g.rows_failed, reasons(g.detail)) for g in seen.quarantined],
        )
    if seen.failed:
        yield table(
            "Failed, retried automatically",
            ("asset", "hour", "domain", "attempts", "next try", "error"),
            [(f.asset, f.hour, f.domain, f.attempts, f.next_try_at, f.error) for f in seen.failed],
        )
    if seen.open_gaps:
        yield f"open gaps: {seen.open_gaps}; see 'analytics-pipeline gaps list'"
    if seen.dead_letters_last_day:
        yield table(
            "Dead letters of the last 24 hours of event time",
            ("reason", "dead letters"),
            seen.dead_letters_last_day.items(),
        )


def _pending(seen: PipelineStatus) -> Table | str:
    if not seen.pending:
        return "pending work: none"
    return table(
        "Pending work",
        ("asset", "hours", "domain partitions", "items", "oldest"),
        [
            (p.asset, p.hours, p.domain_partitions, p.pending_items, age(p.oldest_pending_at, seen.now))
            for p in seen.pending
        ],
    )
