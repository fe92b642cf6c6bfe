"""A commit of the drain over 50 topics with 100 partitions each, all of which have a message: the database's part.

The bookkeeping is what a commit leaves besides raw events and pending work, times the seconds of a day.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any

from confluent_kafka import Producer

from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.domains import Registry
from analytics_pipeline.domains.sensor import DOMAIN
from analytics_pipeline.quality.gates import warm_up
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import engine_for
from benchmarks.kafka import create_topic
from benchmarks.payloads import Stream
from benchmarks.pipeline import migrated
from benchmarks.processes import Worker
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.stored import maintain, session

TOPICS, TOPICS_QUICK = 50, 5
PARTITIONS, PARTITIONS_QUICK = 100, 20
COMMITS, COMMITS_QUICK = 15, 5
SECONDS_OF_DAY = 86_400
GOAL_COMMIT_S, GOAL_GB_A_DAY = 0.3, 1.0
FLUSH_TIMEOUT_S = 60

_BOOKKEEPING = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
    WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'ingest_batch%'
"""


class TimedDrain(Drain):
    """Notes the seconds of each transaction."""

    commits_s: tuple[float, ...] = ()

    def _write(self, batch: Any) -> None:
        began_s = time.monotonic()
        super()._write(batch)
        self.commits_s += (time.monotonic() - began_s,)


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """Commits with one message of each partition; the first of them, which places the partitions, is not counted."""
    topics, partitions, commits = (
        (TOPICS_QUICK, PARTITIONS_QUICK, COMMITS_QUICK) if quick else (TOPICS, PARTITIONS, COMMITS)
    )
    names = [f"{DOMAIN.topics[0]}.{number}" for number in range(topics)]
    with stack.database("partitions") as database, stack.broker() as brokers:
        for name in names:
            create_topic(brokers, name, partitions)
        settings = migrated(stack, database, brokers)
        with Worker(commit_of_all, settings, names, partitions) as worker:
            worker.wait_ready().go(1)
            worker.wait()
            maintain(database, "VACUUM FULL")
            before = _bookkeeping_bytes(database)
            worker.go(commits)
            done = worker.wait()
        maintain(database, "VACUUM FULL")
        grown = _bookkeeping_bytes(database) - before
    per_day = grown / commits * SECONDS_OF_DAY / 1e9
    many = f"{topics} x {partitions} partitions"
    say(f"{many}: {median(done.result):.3f} s a commit, {per_day:.2f} GB a day")
    detail = {"commits": commits, "max_s": max(done.result)}
    return [
        Figure(f"a commit over {many}", median(done.result), "s", GOAL_COMMIT_S, "at_most", detail),
        Figure(f"bookkeeping of a commit a second over {many}", per_day, "GB/day", GOAL_GB_A_DAY, "at_most"),
        memory_figure(f"drain, {many}", done.peak_bytes),
    ]


def _bookkeeping_bytes(database: dict[str, Any]) -> int:
    with session(database) as cursor:
        cursor.execute(_BOOKKEEPING)
        return int(cursor.fetchone()[0])


def commit_of_all(settings: Settings, topics: list[str], partitions: int) -> Callable[[int], list[float]]:
    """Produce a message to each partition and drain them; returns the seconds of each transaction."""
    warm_up()
    registry = Registry((DOMAIN,), tuple(topics)).with_topics(dict.fromkeys(topics, DOMAIN.name))
    drain, producer = TimedDrain(settings, engine_for(settings), registry), _producer(settings)

    def work(commits: int) -> list[float]:
        found: list[float] = []
        for _ in range(commits):
            _produce(producer, topics, partitions)
            drained, drain.commits_s = 0, ()
            while drained < len(topics) * partitions:
                drained += drain.tick(datetime.now(UTC)).messages
            found.append(math.fsum(drain.commits_s))
        return found

    return work


def _producer(settings: Settings) -> Producer:
    return Producer({"bootstrap.servers": settings.kafka_brokers, "linger.ms": 100})


def _produce(producer: Producer, topics: list[str], partitions: int) -> None:
    stream = Stream(datetime.now(UTC), len(topics) * partitions, len(topics) * partitions)
    for number, (key, value) in enumerate(stream.messages()):
        producer.produce(topics[number // partitions], value, key, partition=number % partitions)
        producer.poll(0)
    if left := producer.flush(FLUSH_TIMEOUT_S):
        raise RuntimeError(f"{left} messages were not delivered")
