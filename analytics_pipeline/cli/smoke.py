"""``analytics-pipeline smoke``: the whole stack, a fixed set of messages, the invariants; one line of JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from analytics_pipeline.cli._session import Session
    from analytics_pipeline.cli._smoke_checks import SmokeResult
    from analytics_pipeline.cli._smoke_data import Payloads, Planned
    from analytics_pipeline.cli._smoke_watch import Sent, Watcher

STATE_DIR = Path(".state") / "smoke"

#: The p95 of freshness to KPI above which the run counts as failed.
MAX_KPI_P95_S = 15.0

WARM_UP_TIMEOUT_S = 90.0
PENDING_TIMEOUT_S = 180.0
POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(smoke)


def smoke(
    state_dir: Annotated[Path, typer.Option(help="Emptied first.")] = STATE_DIR,
) -> None:
    """Start the stack, stream 20,000 messages through it, and hold it to the invariants.

    Prints one line of JSON on stdout, last; everything else goes to stderr. Exits with 1 if anything was lost or
    doubled, if a count is not what follows from what was sent, or if the p95 to KPI is above 15 s.
    """
    from analytics_pipeline.cli._session import open_session

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

    with open_session(state_dir, say, fresh=True) as session:
        say("starting workers, code location, daemon and web page")
        session.stack.start_pipeline()
        report = _run(session, say)
    print(json.dumps(report), flush=True)
    if not report["ok"]:
        raise typer.Exit(1)


def _run(session: Session, say: Callable[[str], None]) -> dict[str, Any]:
    from analytics_pipeline.cli import _smoke_data as data
    from analytics_pipeline.cli._smoke_checks import compare
    from analytics_pipeline.cli._smoke_watch import Watcher
    from analytics_pipeline.domains.sensor import Reading

    topics = [topic for domain in session.registry if domain.payload is Reading for topic in domain.topics]
    say(f"sending {data.WARM_UP} messages to {len(topics)} topics to warm the workers up")
    warm = _send(session, topics, data.warm_up(), data.Payloads(datetime.now(UTC) - timedelta(seconds=1)))
    watcher = Watcher(session.engine, topics)
    watcher.start()
    pending, sent = _wait_until_done(session, topics, warm, WARM_UP_TIMEOUT_S), []
    if pending == 0:
        say(f"sending {data.MESSAGES - data.WARM_UP:,} messages at {data.MESSAGES_PER_S:,} a second")
        sent = _send(session, topics, data.plan(), data.Payloads(datetime.now(UTC)))
        say("waiting until nothing is pending")
        pending = _wait_until_done(session, topics, sent, PENDING_TIMEOUT_S)
    watcher.stop()
    result = compare(session.engine, topics, [*warm, *sent])
    for difference in result.differences:
        say(f"difference: {difference}")
    return _report([*warm, *sent], result, watcher, pending)


def _send(
    session: Session, topics: Sequence[str], messages: Iterable[Planned], payloads: Payloads
) -> list[Sent]:
    """Send each message when it is due, to the topics in turn; return them in that order, with their positions."""
    from confluent_kafka import Producer

    from analytics_pipeline.cli._smoke_watch import Sent
    from analytics_pipeline.records import hour_of

    producer = Producer({**session.settings.kafka_config(), "linger.ms": 5, "log_level": 0})
    started = time.monotonic()
    confirmed: list[tuple[int, Sent]] = []
    for planned in messages:
        while (early_s := started + planned.after_s - time.monotonic()) > 0:
            producer.poll(min(early_s, 0.01))
        hour = hour_of(payloads.sent_at(planned))

        def note(error: Any, message: Any, planned: Planned = planned, hour: datetime = hour) -> None:
            if error is not None:
                raise RuntimeError(f"message {planned.number} was not taken by the broker: {error}")
            kafka_time_s = message.timestamp()[1] / 1000
            it = Sent(planned.kind, hour, message.topic(), message.partition(), message.offset(), kafka_time_s)
            confirmed.append((planned.number, it))

        topic = topics[planned.turn % len(topics)]
        producer.produce(topic, payloads.of(planned), planned.key, on_delivery=note)
    producer.flush(30)
    return [it for _, it in sorted(confirmed, key=lambda pair: pair[0])]


def _wait_until_done(session: Session, topics: Sequence[str], sent: Sequence[Sent], timeout_s: float) -> int:
    """Wait until all of it was drained and nothing is pending; return how much still is when time is up."""
    from analytics_pipeline.storage.engine import connection

    last: dict[tuple[str, int], int] = {}
    for message in sent:
        log = message.topic, message.partition
        last[log] = max(message.offset, last.get(log, -1))
    deadline = time.monotonic() + timeout_s
    while True:
        session.stack.revive()
        with connection(session.engine) as conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT topic, partition, next_offset FROM kafka_offset WHERE topic = ANY(%s)", [list(topics)]
            )
            stored = {(topic, partition): next_offset for topic, partition, next_offset in cursor.fetchall()}
            cursor.execute("SELECT count(*) FROM pending_work")
            (items,) = cursor.fetchone()
            behind = sum(max(0, offset + 1 - stored.get(log, 0)) for log, offset in last.items())
            pending = int(behind) + int(items)
        if pending == 0 or time.monotonic() > deadline:
            return pending
        time.sleep(POLL_S)


def _report(sent: Sequence[Sent], result: SmokeResult, watcher: Watcher, pending: int) -> dict[str, Any]:
    live = [message for message in sent if message.kind == "live"]
    to_raw, to_kpi = watcher.freshness_raw_s(live), watcher.freshness_kpi_s(live)
    kpi_p95_s = _percentile(to_kpi, 95)
    fresh = kpi_p95_s is not None and kpi_p95_s <= MAX_KPI_P95_S
    return {
        "messages_sent": len(sent),
        "rows": result.rows,
        "dead_letters": result.dead_letters,
        "lost": result.lost,
        "doubled": result.doubled,
        "pending": pending,
        "freshness_raw_p50_s": _percentile(to_raw, 50),
        "freshness_raw_p95_s": _percentile(to_raw, 95),
        "freshness_kpi_p50_s": _percentile(to_kpi, 50),
        "freshness_kpi_p95_s": kpi_p95_s,
        "run_p50_s": result.run_p50_s and round(result.run_p50_s, 3),
        "runs": result.runs,
        "failed_runs": result.failed_runs,
        "differences": list(result.differences),
        "ok": not (result.lost or result.doubled or result.differences or pending) and fresh,
    }


def _percentile(values: Sequence[float], percent: int) -> float | None:
    """None when so many never arrived that the percentile is unknown."""
    if len(values) < 2:
        return None
    value = statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
    return round(value, 2) if math.isfinite(value) else None
