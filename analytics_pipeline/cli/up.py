"""``analytics-pipeline up``: the whole pipeline on this machine, data streaming in. ``make demo`` runs it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from analytics_pipeline.cli._shared import first_line

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from analytics_pipeline.cli._session import Session

STATE_DIR = Path(".state")

TICK_S = 0.1
LOOK_EVERY_S = 5.0
HOURS_PER_DAY = 24
#: The live tail keeps so many hours pending: its own, and at the full hour the one before.
LIVE_HOURS = 2

AWAY = "the database does not answer"

_PROGRESS_SQL = """
SELECT (SELECT coalesce(sum(rows), 0) FROM partition_state WHERE asset = 'raw_events'),
       (SELECT count(*) FROM dead_letters),
       (SELECT count(DISTINCT hour) FROM pending_work),
       (SELECT coalesce(sum(rows), 0) FROM partition_state WHERE asset = 'kpis')
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(up)


def up(
    state_dir: Annotated[Path, typer.Option(help="Keeps the database and the logs.")] = STATE_DIR,
    data: Annotated[bool, typer.Option(help="Stream the water flow and a live tail.")] = True,
) -> None:
    """Start everything on this machine, stream data, and stop it all on Ctrl-C or SIGTERM.

    Servers: PostgreSQL, a Kafka-protocol broker, Valkey. A second start continues from the database.
    """
    from analytics_pipeline.cli._session import open_session

    screen = _Screen()
    try:
        with screen.status, open_session(state_dir, screen.say) as session:
            _run(session, screen, stream=data)
    except KeyboardInterrupt:
        screen.say(f"stopped; the database stays in {state_dir}; remove that folder to begin anew")


class _Screen:
    """Lines with the seconds since the start, and one line that changes in place (on a terminal only)."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.status = self.console.status("starting", refresh_per_second=2)
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/]  {text}", soft_wrap=True)


def _run(session: Session, screen: _Screen, *, stream: bool) -> None:
    from confluent_kafka import Producer

    quiet = {"log_level": 0}  # that the broker goes before the producer is no news here
    producer = Producer({**session.settings.kafka_config(), "linger.ms": 20, **quiet})
    if stream:
        _set_limits(session)
        _send_history(session, producer, screen)
    screen.say("starting workers, code location, daemon and web page (about 20 s)")
    session.stack.start_pipeline()
    environment = session.stack.write_environment()
    screen.say("everything runs; Ctrl-C stops it all")
    screen.console.print(_what_to_see(session, environment), soft_wrap=True)
    try:
        _stream(session, producer, screen, stream=stream)
    finally:
        producer.flush(2)


def _set_limits(session: Session) -> None:
    """Limits for the flow, so that the KPI of time in spec has something to say."""
    from analytics_pipeline.cli import _demo_data as demo
    from analytics_pipeline.storage.engine import connection

    with connection(session.engine) as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO analytics_spec_limits (tenant_id, factory_id, metric, lsl, usl, note) "
            "VALUES (%s, %s, %s, %s, %s, 'demo') ON CONFLICT DO NOTHING",
            (demo.TENANT, demo.FACTORY, demo.METRIC, demo.LOWER_LIMIT, demo.UPPER_LIMIT),
        )
        conn.commit()


def _send_history(session: Session, producer: Producer, screen: _Screen) -> None:
    """The real series, once: a database that holds events already has it."""
    from analytics_pipeline.cli import _demo_data as demo
    from analytics_pipeline.storage.engine import connection

    with connection(session.engine) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM raw_events)")
        if cursor.fetchone()[0]:
            screen.say(
                "the database holds events already: continuing from there. The broker's log begins anew, which is "
                "recorded as a new epoch and a gap"
            )
            return
    messages = list(demo.history(demo.load_flow(), datetime.now(UTC)))
    for payload in messages:
        producer.produce(demo.TOPIC, payload, key=demo.MAIN)
    producer.flush(30)
    screen.say(
        f"sent {len(messages)} hourly readings of a real water flow, moved to end now: "
        f"{round(len(messages) / HOURS_PER_DAY)} days, which are computed in the first minutes"
    )


def _stream(session: Session, producer: Producer, screen: _Screen, *, stream: bool) -> None:
    """Until interrupted: send what is due, start again what ended, show how far things are."""
    from analytics_pipeline.cli import _demo_data as demo

    tail = demo.LiveTail(demo.load_flow(), datetime.now(UTC)) if stream else None
    sent, look_at, caught_up, away = 0, 0.0, False, False
    while True:
        if tail is not None:
            for machine, payload in tail.due(datetime.now(UTC)):
                producer.produce(demo.TOPIC, payload, key=machine)
                sent += 1
        producer.poll(TICK_S)
        if time.monotonic() >= look_at:
            session.stack.revive()
            progress, pending = _progress(session)
            screen.status.update(f"{sent:,} sent live; {progress}")
            if away != progress.startswith(AWAY):
                away = not away
                screen.say(progress if away else f"the database answers again: {progress}")
            if not caught_up and pending is not None and pending <= LIVE_HOURS:
                caught_up = True
                screen.say(f"the history is computed: {progress}")
            look_at = time.monotonic() + LOOK_EVERY_S
        time.sleep(TICK_S)


def _progress(session: Session) -> tuple[str, int | None]:
    """In words, and the hours that are pending; None while nothing was drained, or the database does not answer.

    The database may recover from a killed session, which ends all others: the pipeline continues when it is back.
    """
    import psycopg2
    from sqlalchemy.exc import SQLAlchemyError

    from analytics_pipeline.storage.engine import connection

    try:
        with connection(session.engine) as conn, conn.cursor() as cursor:
            cursor.execute(_PROGRESS_SQL)
            raw, dead, hours, kpis = cursor.fetchone()
    except (psycopg2.Error, SQLAlchemyError) as error:
        return f"{AWAY}: {first_line(getattr(error, 'orig', None) or error)}", None
    words = f"{raw:,} raw, {dead:,} dead letters, {kpis:,} KPIs, {hours:,} hours with pending work"
    return words, hours if raw else None


def _near(path: Path) -> Path:
    """As a person in this folder would write it."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def _what_to_see(session: Session, environment: Path) -> str:
    stack = session.stack
    location = f"{stack.web_url}/locations/analytics_pipeline"
    database = f"{stack.postgres.host}:{stack.postgres.port}/{session.settings.db_name}"
    lines = (
        ("Dagster", stack.web_url),
        ("how data flows, live", f"{stack.web_url}/assets/kpis?view=lineage&lineageScope=upstream&lineageDepth=5"),
        ("the drain, each second", f"{location}/sensors/drain_kafka"),
        ("recompute hours", f"{stack.web_url}/assets/kpis, button Materialize"),
        ("results", f"postgresql://{session.settings.db_user}@{database}, views analytics.analytics_agg, _kpi, …"),
        ("", f"the password is in {_near(environment)}"),
        ("status", f"{_near(Path(sys.argv[0]))} --env-file {_near(environment)} status"),
        ("Kafka", f"{stack.broker.bootstrap_servers}, topics {', '.join(session.registry.topics)}"),
        ("logs", str(_near(stack.supervisor.log_dir))),
    )
    return "\n" + "\n".join(f"  [bold]{what:22}[/]{where}" for what, where in lines) + "\n"
