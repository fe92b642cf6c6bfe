"""A database, a topic and what was sent to it: the ground on which fault tests stand. Not here: assertions."""

from __future__ import annotations

import multiprocessing
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from analytics_pipeline.domains import Registry, registry_for
from analytics_pipeline.embedded import choose_port
from analytics_pipeline.records import HourOutcome
from analytics_pipeline.settings import Settings, load_settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.conftest import DatabaseServer, quiet
from analytics_pipeline_tests.pipeline import Pipeline

#: As .ci/kafka.sh lets the broker take.
MAX_MESSAGE_BYTES = 20 * 1024 * 1024
DRAIN_TIMEOUT_S = 60.0


class Sent(NamedTuple):
    """One message as the broker took it. ``rejected``: the test expects a dead letter instead of a measurement."""

    topic: str
    epoch: int
    partition: int
    offset: int
    kafka_time_ms: int
    value: bytes | None
    rejected: bool


@dataclass(repr=False)
class Environment:
    """One pipeline over one database and some topics, and everything that was sent to it."""

    settings: Settings
    topics: Mapping[str, str]
    pipeline: Pipeline
    producer: Producer
    sent: list[Sent] = field(default_factory=list)
    epoch: int = 1

    @property
    def topic(self) -> str:
        return self.settings.kafka_topics[0]

    def send(
        self,
        values: Iterable[bytes | None],
        partition: int = 0,
        *,
        topic: str | None = None,
        rejected: bool = False,
        **more: Any,
    ) -> list[Sent]:
        """Produce to one partition; returns when the broker has everything, with where it put each."""
        delivered: list[Sent] = []
        name = topic or self.topic

        def report(value: bytes | None, error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            delivered.append(
                Sent(name, self.epoch, partition, message.offset(), message.timestamp()[1], value, rejected)
            )

        count = 0
        for value in values:
            self.producer.produce(
                name,
                value,
                partition=partition,
                on_delivery=lambda error, message, value=value: report(value, error, message),
                **more,
            )
            self.producer.poll(0)
            count += 1
        assert self.producer.flush(30) == 0
        assert len(delivered) == count
        self.sent += delivered
        return delivered

    def drain(self, now: datetime | None = None) -> tuple[int, int, int]:
        """Tick until everything that was sent is below the stored offsets; returns (messages, raw, dead)."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        messages = raw = dead = 0
        while True:
            outcome = self.pipeline.tick(now)
            messages += outcome.messages
            raw += outcome.raw_rows
            dead += outcome.dead_letters
            waiting = self.waiting()
            if not waiting:
                return messages, raw, dead
            assert time.monotonic() < deadline, f"not drained within {DRAIN_TIMEOUT_S:.0f} s: {waiting[:5]}"

    def waiting(self) -> list[Sent]:
        """What was sent and is not below the stored offsets."""
        stored = {
            (topic, partition): (epoch, next_offset)
            for topic, partition, epoch, next_offset in self.pipeline.query(
                "SELECT topic, partition, epoch, next_offset FROM kafka_offset"
            )
        }
        return [
            one for one in self.sent if (one.epoch, one.offset) >= stored.get((one.topic, one.partition), (0, 0))
        ]

    def normalize(self) -> list[HourOutcome]:
        """Do what is pending of the first derived asset only."""
        with connection(self.pipeline.engine) as conn:
            hours = [one.hour for one in actionable_hours(conn) if "normalized_measurements" in one.assets]
        derive = self.pipeline.deriver.derive
        return [derive("normalized_measurements", hour, "incremental", "test") for hour in hours]

    def renew(self) -> Pipeline:
        """Another process takes over: nothing but the database is remembered."""
        self.pipeline.close()
        self.pipeline = Pipeline(self.settings, engine_for(self.settings), self.pipeline.registry)
        return self.pipeline


@contextmanager
def open_environment(
    server: DatabaseServer, brokers: str, *, partitions: int = 2, unknown_topics: int = 0, **options: Any
) -> Iterator[Environment]:
    """A fresh database and topic for one test; both sides are let go of afterwards.

    ``unknown_topics`` adds topics that are drained but that no domain claims.
    """
    names = [f"test.readings.{uuid.uuid4().hex[:12]}" for _ in range(1 + unknown_topics)]
    topics = {name: "sensor" if name == names[0] else "nobody" for name in names}

    def registry(settings: Settings) -> Registry:
        return registry_for(settings).with_topics(topics)

    with open_topics(server, brokers, topics, registry, partitions=partitions, **options) as env:
        yield env


@contextmanager
def open_topics(
    server: DatabaseServer,
    brokers: str,
    topics: Mapping[str, str],
    registry: Callable[[Settings], Registry],
    *,
    partitions: int,
    **options: Any,
) -> Iterator[Environment]:
    """A fresh database and these topics, ``{topic: domain}``, with the domains that a registry gives them."""
    create_topics(brokers, list(topics), partitions)
    database = f"test_{uuid.uuid4().hex[:16]}"
    server.execute(f"CREATE DATABASE {database}")
    settings = load_settings(
        _env_file=None,
        db_host=server.host,
        db_port=server.port,
        db_user=server.user,
        db_password=server.password,
        db_name=database,
        kafka_brokers=brokers,
        kafka_topics=list(topics),
        **options,
    )
    try:
        domains = registry(settings)
        migrate(settings, domains.domain_topics)
        env = Environment(
            settings,
            topics,
            Pipeline(settings, engine_for(settings), domains),
            # Held by the environment alone: a producer that lives on asks a new broker for its topic, and so makes it.
            Producer(quiet(brokers) | {"message.max.bytes": MAX_MESSAGE_BYTES}),
        )
        try:
            yield env
        finally:
            env.pipeline.close()
    finally:
        engine_for(settings).dispose()
        server.drop(database)


def create_topics(brokers: str, names: Sequence[str], partitions: int) -> None:
    """Create topics that take large messages, and return when every partition answers."""
    admin = AdminClient(quiet(brokers))  # held: its futures fail when it is collected
    config = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    made = admin.create_topics([NewTopic(name, partitions, 1, config=config) for name in names])
    for future in made.values():
        future.result(timeout=20)
    waiting = {TopicPartition(name, number) for name in names for number in range(partitions)}
    deadline = time.monotonic() + 20
    while waiting:  # Apache Kafka elects leaders a moment after it says that a topic is made
        asked = admin.list_offsets(dict.fromkeys(waiting, OffsetSpec.earliest()), request_timeout=5)
        waiting = {where for where, future in asked.items() if not _answered(future)}
        assert time.monotonic() < deadline, f"no leader: {waiting}"


def _answered(future: Future[Any]) -> bool:
    try:
        future.result(timeout=10)
    except KafkaException:
        time.sleep(0.05)
        return False
    return True


@lru_cache(maxsize=1)
def process_context() -> ForkServerContext:
    """Starts processes that have the package imported already: it takes seconds, and dozens are killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["analytics_pipeline_tests.crashing_processes"])
    return context


def run_process(target: Any, *arguments: Any, timeout_s: float = 60.0) -> int | None:
    """Run a function in a process of its own to its end, whatever that is; returns the exit code."""
    process = process_context().Process(target=target, args=arguments, daemon=True)
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{target.__name__} still ran after {timeout_s:.0f} s")
    return process.exitcode


def free_port() -> int:
    """For a server of a test's own; from a random start, so that two sessions rarely ask for the same."""
    return choose_port(random.randrange(30_000, 40_000)).port
