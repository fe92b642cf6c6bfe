"""How old data is when it can be read: the whole stack as ``analytics-pipeline up`` starts it, at a set rate.

From the Kafka timestamp until the raw row is committed, and until the hour's KPIs count it; seen from outside
by the watcher of ``analytics-pipeline smoke``. The database is the benchmark's, the rest of the stack its own.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from sqlalchemy import Engine

from analytics_pipeline.cli._smoke_data import Kind
from analytics_pipeline.cli._smoke_watch import Sent, Watcher
from analytics_pipeline.embedded import Managed, PreferredPorts, Supervisor
from analytics_pipeline.embedded import Stack as EmbeddedStack
from analytics_pipeline.embedded.ports import choose_port
from analytics_pipeline.records import hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.ledger import pending_count
from benchmarks.kafka import PARTITIONS, create_topic, partition_of, produce_paced
from benchmarks.payloads import TOPIC, Stream
from benchmarks.pipeline import migrated
from benchmarks.processes import GIB, peak_bytes_of_session
from benchmarks.report import Figure, Say
from benchmarks.stack import ROOT, Stack

#: The factory that the watcher counts in the KPIs.
FACTORY, WARM_FACTORY = "live", "warm"
DURATION_S, DURATION_QUICK_S = 60, 3
WARM_EVENTS, WARM_RATE_PER_S = 200, 100
SETTLE_TIMEOUT_S = 180.0
POLL_S = 0.5
GOAL_PEAK_GIB = 1.0
PORTS = PreferredPorts(postgres=0, broker=27192, valkey=27379, webserver=27330, code_server=27400)


@dataclass(frozen=True)
class Rate:
    """Events a second, and the goals for the 95th percentiles in seconds."""

    per_s: int
    goal_raw_s: float | None
    goal_kpi_s: float


RATES = (Rate(2_000, 6.0, 8.0), Rate(10_000, None, 9.0))


class NamedSupervisor(Supervisor):
    """Remembers its children by name, so that their memory can be looked at."""

    def __init__(self, log_dir: Path) -> None:
        super().__init__(log_dir)
        self.named: dict[str, Managed] = {}

    def start(self, name: str, argv: Sequence[str], **more: Any) -> Managed:
        """As the supervisor does."""
        self.named[name] = super().start(name, argv, **more)
        return self.named[name]


class PipelineStack(EmbeddedStack):
    """What ``up`` starts, but for PostgreSQL: the database is on a server that runs already."""

    def start_servers(self) -> None:
        """The broker and Valkey."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.broker.start(self.state_dir, choose_port(PORTS.broker).port)
        self.valkey.start(self.state_dir, choose_port(PORTS.valkey).port)


@dataclass
class _Live:
    """The stack under measurement, and what was sent to it so far."""

    stack: PipelineStack
    engine: Engine
    sent: list[Sent] = field(default_factory=list)
    _next_offsets: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def send(self, rate_per_s: float, count: int, factory: str = FACTORY) -> tuple[list[Sent], float]:
        """Send at a rate; returns the messages and the most seconds that the producer fell behind."""
        stream = Stream(datetime.now(UTC), rate_per_s, count, factory=factory)
        paced = produce_paced(self.stack.broker.bootstrap_servers, stream)
        sent = []
        kind: Kind = "live" if factory == FACTORY else "warm"
        for number, (key, _) in enumerate(stream.messages()):
            partition = partition_of(key)
            hour = hour_of(stream.start + timedelta(seconds=number / rate_per_s))
            offset = self._next_offsets[partition]
            sent.append(Sent(kind, hour, partition, offset, paced.kafka_times_s[number]))
            self._next_offsets[partition] = offset + 1
        return sent, paced.behind_s

    def settle(self) -> None:
        """Return when all of it was drained and nothing is pending.

        Raises:
            RuntimeError: that took too long.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while left := self._left():
            self.stack.revive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{left} messages and pairs are left after {SETTLE_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def _left(self) -> int:
        with connection(self.engine) as conn, conn.cursor() as cursor:
            cursor.execute("SELECT coalesce(sum(next_offset), 0) FROM kafka_offset WHERE topic = %s", [TOPIC])
            return sum(self._next_offsets) - int(cursor.fetchone()[0]) + pending_count(conn)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One phase a rate, on one running stack."""
    duration_s = DURATION_QUICK_S if quick else DURATION_S
    state_dir = stack.state_dir / "pipeline"
    shutil.rmtree(state_dir, ignore_errors=True)
    figures: list[Figure] = []
    with stack.database("freshness") as database:
        supervisor = NamedSupervisor(state_dir / "log")
        try:
            live = _start(stack, supervisor, database, say)
            warm, _ = live.send(WARM_RATE_PER_S, WARM_EVENTS, WARM_FACTORY)
            live.settle()
            say(f"warm: {len(warm)} messages are in the KPIs")
            phases = _measure(live, duration_s, say)
            figures += [figure for rate, ages in phases for figure in _figures(rate, ages, duration_s)]
            figures += _peaks(supervisor)
            live.engine.dispose()
        finally:
            supervisor.close()
    return figures


def _start(stack: Stack, supervisor: Supervisor, database: dict[str, Any], say: Say) -> _Live:
    extra = {
        "DB_HOST": database["host"],
        "DB_PORT": str(database["port"]),
        "DB_USER": database["user"],
        "DB_PASSWORD": database["password"],
        "DB_NAME": database["dbname"],
    }
    pipeline = PipelineStack(
        supervisor,
        supervisor.log_dir.parent,
        ROOT / "dagster.yaml",
        ports=PORTS,
        say=say,
        extra_env=extra,
    )
    pipeline.start_servers()
    create_topic(pipeline.broker.bootstrap_servers)
    settings: Settings = migrated(stack, database, pipeline.broker.bootstrap_servers)
    pipeline.start_pipeline()
    say("the stack runs")
    return _Live(pipeline, engine_for(settings))


def _measure(live: _Live, duration_s: int, say: Say) -> list[tuple[Rate, _Ages]]:
    watcher = Watcher(live.engine, TOPIC)
    watcher.start()
    spans: list[tuple[Rate, int, int, float]] = []
    for rate in RATES:
        first = len(live.sent)
        sent, behind_s = live.send(rate.per_s, rate.per_s * duration_s)
        live.sent += sent
        live.settle()
        say(f"{rate.per_s:,} events/s for {duration_s} s: sent and in the KPIs")
        spans.append((rate, first, len(live.sent), behind_s))
    watcher.stop()
    # The KPIs of an hour count on from phase to phase, so that all of them are looked at together.
    raw_s, kpi_s = watcher.freshness_raw_s(live.sent), watcher.freshness_kpi_s(live.sent)
    return [(rate, _Ages(raw_s[first:last], kpi_s[first:last], behind_s)) for rate, first, last, behind_s in spans]


@dataclass(frozen=True)
class _Ages:
    """Seconds from the Kafka timestamp, a message each."""

    raw_s: Sequence[float]
    kpi_s: Sequence[float]
    producer_behind_s: float


def _figures(rate: Rate, ages: _Ages, duration_s: int) -> list[Figure]:
    detail = {"events": len(ages.raw_s), "duration_s": duration_s, "producer_behind_s": ages.producer_behind_s}
    figures = []
    for what, values, goal in (("raw", ages.raw_s, rate.goal_raw_s), ("KPI", ages.kpi_s, rate.goal_kpi_s)):
        if not all(map(math.isfinite, values)):
            raise RuntimeError(f"{rate.per_s} events/s: some messages were never seen in {what} rows")
        cuts = quantiles(values, n=100, method="inclusive")
        name = f"freshness to {what} row, {rate.per_s:,} events/s"
        figures.append(Figure(f"{name}, p50", cuts[49], "s", detail={**detail, "max_s": max(values)}))
        figures.append(Figure(f"{name}, p95", cuts[94], "s", goal, "at_most"))
    return figures


def _peaks(supervisor: NamedSupervisor) -> list[Figure]:
    """Of the processes that drain and derive under Dagster: with it, and with all that it imports."""
    return [
        Figure(
            f"peak memory, {who}, live",
            peak_bytes_of_session(supervisor.named[name].pid) / GIB,
            "GiB",
            GOAL_PEAK_GIB,
            "at_most",
        )
        for who, name in (("code server (drain)", "code-server"), ("Celery worker", "worker-live"))
    ]
