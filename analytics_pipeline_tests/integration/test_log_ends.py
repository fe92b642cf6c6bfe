"""What a reader takes for the end of a log that arrives little by little."""

from __future__ import annotations

import time
import uuid

import pytest
from confluent_kafka import Producer

from analytics_pipeline.cli.offsets import _read_to_end
from analytics_pipeline.messages import LogPartition
from analytics_pipeline.settings import load_settings
from analytics_pipeline.sources import kafka
from analytics_pipeline.sources.kafka import LogReader, Position
from analytics_pipeline_tests.conftest import KafkaServer

MESSAGES = 30_000


@pytest.fixture(autouse=True)
def little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is asked so briefly that it mostly has less than it may give, long before the end."""
    monkeypatch.setattr(kafka, "CHUNK_WAIT_S", 0.001)


@pytest.fixture
def topic(kafka_broker: KafkaServer) -> str:
    name = f"ends-{uuid.uuid4().hex[:8]}"
    kafka_broker.create_topic(name, 1)
    return name


def produce(server: KafkaServer, topic: str, count: int, size: int = 20) -> None:
    producer = Producer({"bootstrap.servers": server.bootstrap_servers, "log_level": 0, "linger.ms": 50})
    for number in range(count):
        producer.produce(topic, b"x" * size, partition=0)
        if number % 5_000 == 0:
            producer.poll(0)
    assert producer.flush(30) == 0


@pytest.mark.parametrize("size", [20, 2000])
def test_a_reader_is_at_the_end_only_when_it_read_all_that_was_acknowledged(
    kafka_broker: KafkaServer, topic: str, size: int
) -> None:
    produce(kafka_broker, topic, MESSAGES, size)
    reader = LogReader(load_settings(_env_file=None, kafka_brokers=kafka_broker.bootstrap_servers))
    log = LogPartition(topic, 1, 0)
    found, deadline = 0, time.monotonic() + 20
    try:
        reader.assign({log: Position(0)})
        while not reader.at_end and time.monotonic() < deadline:
            found += sum(len(part) for part in reader.read(100_000, 1 << 28, deadline))
    finally:
        reader.close()
    assert found == MESSAGES


def test_the_end_that_seek_reads_to_is_the_end(kafka_broker: KafkaServer, topic: str) -> None:
    produce(kafka_broker, topic, MESSAGES)
    settings = load_settings(_env_file=None, kafka_brokers=kafka_broker.bootstrap_servers)
    for known in (0, 1, MESSAGES // 2, MESSAGES - 1, MESSAGES):
        assert _read_to_end(settings, topic, 0, known) == MESSAGES, known
