"""Puts streams into Kafka, flat out or at a set rate, and reads them back. Measures nothing on its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from benchmarks.payloads import TOPIC, Stream

PARTITIONS = 4
#: Messages between two looks at the clock when producing at a rate.
PACED_SLICES_PER_S = 100
READ_TIMEOUT_S = 60.0
CONSUME_MESSAGES = 10_000


def create_topic(brokers: str, topic: str = TOPIC, partitions: int = PARTITIONS) -> None:
    """Create the topic; it must not exist."""
    admin = AdminClient({"bootstrap.servers": brokers})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(30)


def _producer(brokers: str, linger_ms: int) -> Producer:
    return Producer(
        {
            "bootstrap.servers": brokers,
            "linger.ms": linger_ms,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1_000_000,
        }
    )


def partition_of(key: bytes) -> int:
    """By the sensor's number: even, and the same on every broker."""
    return int(key[-3:]) % PARTITIONS


class _Deliveries:
    """Counts what the broker did not take."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            self.failed += 1

    def finish(self, producer: Producer) -> None:
        left = producer.flush(READ_TIMEOUT_S)
        if left or self.failed:
            raise RuntimeError(f"{TOPIC}: {left} messages not delivered in time, {self.failed} refused")


def produce_all(brokers: str, stream: Stream, *topics: str) -> float:
    """Flat out, to one topic, or to several in turn. Returns seconds."""
    producer, deliveries, started = _producer(brokers, 20), _Deliveries(), time.monotonic()
    topics = topics or (TOPIC,)
    for number, (key, value) in enumerate(stream.messages()):
        topic = topics[number % len(topics)]
        producer.produce(topic, value, key, partition=partition_of(key), on_delivery=deliveries)
        if number % 5_000 == 0:
            producer.poll(0)
    deliveries.finish(producer)
    return time.monotonic() - started


@dataclass(frozen=True)
class Paced:
    """What was sent at a rate: the Kafka timestamp of each message in order, seconds since the epoch, and the
    most seconds that the producer fell behind."""

    kafka_times_s: list[float]
    behind_s: float


def produce_paced(brokers: str, stream: Stream) -> Paced:
    """At the stream's own rate, by wall clock."""
    producer, deliveries = _producer(brokers, 5), _Deliveries()
    slice_size = max(1, round(stream.rate_per_s / PACED_SLICES_PER_S))
    started, behind_s, times_s = time.monotonic(), 0.0, []
    for first in range(0, stream.count, slice_size):
        due = started + first / stream.rate_per_s
        ahead_s = due - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        behind_s = max(behind_s, -ahead_s)
        now_ms = time.time_ns() // 1_000_000
        for key, value in stream.messages(first, first + slice_size):
            producer.produce(
                TOPIC, value, key, partition=partition_of(key), on_delivery=deliveries, timestamp=now_ms
            )
            times_s.append(now_ms / 1000)
        producer.poll(0)
    deliveries.finish(producer)
    return Paced(times_s, behind_s)


def read_all(brokers: str, count: int) -> Iterator[list[Any]]:
    """All messages of the topic from its beginning, in lists, until ``count`` came."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "benchmarks.read", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
    deadline = time.monotonic() + READ_TIMEOUT_S
    try:
        while count > 0:
            messages = [m for m in consumer.consume(CONSUME_MESSAGES, 1.0) if m.error() is None]
            count -= len(messages)
            if messages:
                yield messages
            elif time.monotonic() > deadline:
                raise RuntimeError(f"{TOPIC}: {count} messages did not arrive within {READ_TIMEOUT_S:.0f} s")
    finally:
        consumer.close()
