"""The whole stack as ``analytics-pipeline up`` starts it, fed at a set rate and watched from outside.

The database is the benchmark's, the rest of the stack its own. Measures nothing on its own.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from benchmarks.kafka import PARTITIONS, create_topic, partition_of, produce_paced
from benchmarks.payloads import SENSORS, TOPIC, Stream
from benchmarks.pipeline import migrated
from benchmarks.processes import peak_bytes_of_session
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import ROOT, Stack

#: The factory that the watcher counts in the KPIs.
FACTORY, WARM_FACTORY = "live", "warm"
WARM_EVENTS, WARM_RATE_PER_S = 200, 100
SETTLE_TIMEOUT_S = 180.0
POLL_S = 0.5
BROKER = "broker"
#: The process whose child drains.
CODE_SERVER = "code-server"
PORTS = PreferredPorts(postgres=0, broker=27192, valkey=27379, webserver=27330, code_server=27400)

Fill = Callable[[dict[str, Any]], None]


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


@dataclass(frozen=True)
class Ages:
    """Seconds from the Kafka timestamp until the raw row and until the KPIs, a message each."""

    raw_s: Sequence[float]
    kpi_s: Sequence[float]
    producer_behind_s: float


@dataclass(frozen=True)
class Phase:
    """A range of live messages, by their indexes among all that were sent."""

    first: int
    last: int
    producer_behind_s: float


@dataclass
class Live:
    """The stack under measurement, and what was sent to it so far. Make it with ``running_live``."""

    stack: PipelineStack
    supervisor: NamedSupervisor
    engine: Engine
    sent: list[Sent] = field(default_factory=list)
    _next_offsets: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def phase(
        self, rate_per_s: float, duration_s: int, *, start: datetime | None = None, sensors: int = SENSORS
    ) -> Phase:
        """Send live messages at a rate, by wall clock.

        Args:
            start: event time of the first one; None: now.
        """
        first = len(self.sent)
        stream = Stream(
            start or datetime.now(UTC),
            rate_per_s,
            round(rate_per_s * duration_s),
            factory=FACTORY,
            sensors=sensors,
        )
        sent, behind_s = self._send(stream)
        self.sent += sent
        return Phase(first, len(self.sent), behind_s)

    def warm_up(self) -> None:
        """A few messages go all the way, so that nothing is done for the first time later."""
        self._send(Stream(datetime.now(UTC), WARM_RATE_PER_S, WARM_EVENTS, factory=WARM_FACTORY))
        self.settle()

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

    def wait_seen(self, watcher: Watcher) -> None:
        """Return when the watcher saw the KPIs count every live message, whatever else is pending.

        Raises:
            RuntimeError: that took too long.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while not all(map(math.isfinite, watcher.freshness_kpi_s(self.sent))):
            self.stack.revive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the KPIs do not count every message after {SETTLE_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def watch(self) -> Watcher:
        """Begin to look; the caller stops it."""
        watcher = Watcher(self.engine, [TOPIC])
        watcher.start()
        return watcher

    def ages(self, watcher: Watcher, phases: Sequence[Phase]) -> list[Ages]:
        """Of each phase that the watcher saw, from the first message on.

        The KPIs of an hour count on from phase to phase, so that all messages are looked at together.
        """
        raw_s, kpi_s = watcher.freshness_raw_s(self.sent), watcher.freshness_kpi_s(self.sent)
        return [Ages(raw_s[p.first : p.last], kpi_s[p.first : p.last], p.producer_behind_s) for p in phases]

    def _send(self, stream: Stream) -> tuple[list[Sent], float]:
        paced = produce_paced(self.stack.broker.bootstrap_servers, stream)
        sent = []
        kind: Kind = "live" if stream.factory == FACTORY else "warm"
        for number, (key, _) in enumerate(stream.messages()):
            partition = partition_of(key)
            hour = hour_of(stream.start + timedelta(seconds=number / stream.rate_per_s))
            offset = self._next_offsets[partition]
            sent.append(Sent(kind, hour, TOPIC, partition, offset, paced.kafka_times_s[number]))
            self._next_offsets[partition] = offset + 1
        return sent, paced.behind_s

    def _left(self) -> int:
        with connection(self.engine) as conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT (SELECT coalesce(sum(next_offset), 0) FROM kafka_offset WHERE topic = %s), "
                "(SELECT count(*) FROM pending_work)",
                [TOPIC],
            )
            drained, pending = cursor.fetchone()
            return sum(self._next_offsets) - int(drained) + int(pending)


def peaks(live: Live, when: str) -> list[Figure]:
    """The most memory of the processes that drain and derive under Dagster: with it, and with all that it imports."""
    return [
        memory_figure(f"{'drain' if name == CODE_SERVER else name}, {when}", peak_bytes_of_session(managed.pid))
        for name, managed in live.supervisor.named.items()
        if name == CODE_SERVER or name.startswith("worker-")
    ]


@contextmanager
def running_live(
    stack: Stack, name: str, say: Say, fill: Fill | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Live]:
    """Start everything on a database of its own, warm; stop it afterwards.

    Args:
        name: of the database.
        fill: called with the migrated database, before anything runs on it.
        settings: of the pipeline's processes, beside those of the stack.
    """
    state_dir = stack.state_dir / "pipeline"
    shutil.rmtree(state_dir, ignore_errors=True)
    with stack.database(name) as database:
        supervisor = NamedSupervisor(state_dir / "log")
        try:
            live = _start(stack, supervisor, database, say, fill, settings or {})
            live.warm_up()
            say("warm: the first messages are in the KPIs")
            yield live
            live.engine.dispose()
        finally:
            supervisor.close()


def _start(
    stack: Stack,
    supervisor: NamedSupervisor,
    database: dict[str, Any],
    say: Say,
    fill: Fill | None,
    extra_settings: Mapping[str, str],
) -> Live:
    extra = {
        **extra_settings,
        "DB_HOST": database["host"],
        "DB_PORT": str(database["port"]),
        "DB_USER": database["user"],
        "DB_PASSWORD": database["password"],
        "DB_NAME": database["dbname"],
    }
    state_dir = supervisor.log_dir.parent
    pipeline = PipelineStack(supervisor, state_dir, ROOT / "dagster.yaml", ports=PORTS, say=say, extra_env=extra)
    pipeline.start_servers()
    create_topic(pipeline.broker.bootstrap_servers)
    settings: Settings = migrated(stack, database, pipeline.broker.bootstrap_servers)
    if fill:
        fill(database)
        stack.checkpoint()
    pipeline.start_pipeline()
    say("the stack runs")
    return Live(pipeline, supervisor, engine_for(settings))


def percentile_figures(
    name: str, values: Sequence[float], goal_p95_s: float | None, detail: dict[str, Any]
) -> list[Figure]:
    """p50 and p95 in seconds.

    Raises:
        RuntimeError: a message was never seen.
    """
    if not all(map(math.isfinite, values)):
        raise RuntimeError(f"{name}: some messages were never seen")
    cuts = quantiles(values, n=100, method="inclusive")
    return [
        Figure(f"{name}, p50", cuts[49], "s", detail={**detail, "events": len(values), "max_s": max(values)}),
        Figure(f"{name}, p95", cuts[94], "s", goal_p95_s, "at_most"),
    ]
