"""Logs with holes: aborted transactions, and what retention took. Written down, and nothing is passed over."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, Sent, open_environment
from analytics_pipeline_tests.integration.test_epochs import epochs, finish, gaps, seconds


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as it:
        yield it


@pytest.fixture
def transactional(kafka_broker: KafkaServer) -> Producer:
    name = f"test-{uuid.uuid4().hex}"
    it = Producer({"bootstrap.servers": kafka_broker.bootstrap_servers, "transactional.id": name, "log_level": 0})
    it.init_transactions(20)
    return it


def test_aborted_messages_are_gaps_and_control_records_are_only_counted(
    env: Environment, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    plain = env.producer
    env.send(seconds(range(5)))
    env.producer = transactional
    transactional.begin_transaction()
    env.send(seconds(range(5, 15)))
    transactional.commit_transaction(20)
    wait_for_marker(env, kafka_broker, 15)
    env.producer = plain
    env.send(seconds(range(30, 32)))  # between the control records, or they would be one hole
    env.producer = transactional
    transactional.begin_transaction()
    aborted = env.send(seconds(range(15, 25)))
    transactional.abort_transaction(20)
    wait_for_marker(env, kafka_broker, 28)
    env.producer = plain
    env.send(seconds(range(25, 30)))
    hidden = hide_aborted(env, aborted, kafka_broker)
    finish(env)
    recorded = {offset for _, _, begin, end, _ in gaps(env) for offset in range(begin, end)}
    assert hidden <= recorded, "what was aborted is a gap"
    [(told,)] = env.pipeline.query("SELECT sum(messages)::int FROM ingest_batch")
    [(end,)] = env.pipeline.query("SELECT next_offset::int FROM kafka_offset WHERE partition = 0")
    assert end - told - len(hidden) == 2, "one control record for each transaction"
    alone = 1 if hidden else 2
    assert end - told - len(recorded) == alone, "control records by themselves are not recorded as gaps"


def wait_for_marker(env: Environment, kafka_broker: KafkaServer, offset: int) -> None:
    """Apache Kafka writes the control record a moment after it says that a transaction has ended."""
    if kafka_broker.embedded is not None:
        return
    reader = Consumer(
        {
            "bootstrap.servers": kafka_broker.bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "isolation.level": "read_uncommitted",
        }
    )
    try:
        deadline = time.monotonic() + 20
        while reader.get_watermark_offsets(TopicPartition(env.topic, 0), timeout=5)[1] <= offset:
            assert time.monotonic() < deadline, "no control record came"
            time.sleep(0.05)
    finally:
        reader.close()


def hide_aborted(env: Environment, aborted: list[Sent], kafka_broker: KafkaServer) -> set[int]:
    """Apache Kafka hides aborted messages; the embedded broker shows them, so that there they count."""
    if kafka_broker.embedded is not None:
        return set()
    env.sent = [one for one in env.sent if one not in aborted]
    return {one.offset for one in aborted}


def test_a_log_that_ends_with_an_aborted_transaction_is_drained_to_its_end(
    env: Environment, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    env.send(seconds(range(5)))
    plain, env.producer = env.producer, transactional
    transactional.begin_transaction()
    aborted = env.send(seconds(range(5, 8)))
    transactional.abort_transaction(20)
    env.producer = plain
    hide_aborted(env, aborted, kafka_broker)
    deadline = time.monotonic() + 20
    while env.pipeline.query("SELECT max(next_offset) FROM kafka_offset") != [(9,)]:
        env.pipeline.tick()
        assert time.monotonic() < deadline
    assert env.pipeline.tick().lag_messages == 0
    finish(env)


def test_messages_behind_an_open_transaction_wait_for_it(
    env: Environment, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker shows messages before their transaction is committed")
    env.send(seconds(range(5)))
    plain, env.producer = env.producer, transactional
    transactional.begin_transaction()
    env.send(seconds(range(5, 8)))
    env.producer = plain
    env.send(seconds(range(8, 12)))
    drained = sum(env.pipeline.tick().messages for _ in range(5))
    assert drained == 5
    transactional.commit_transaction(20)
    finish(env)


def test_what_retention_took_before_it_was_read_is_a_gap(env: Environment, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    env.send(seconds(range(10)))
    env.send(seconds(range(10, 15)), 1)
    env.drain()
    env.pipeline.close()  # it would have fetched ahead what is about to expire
    expired = env.send(seconds(range(15, 25)))
    delete_before(kafka_broker, env.topic, expired[-3].offset)
    env.renew()
    env.send(seconds(range(25, 30)))
    env.sent = [one for one in env.sent if one not in expired[:-3]]
    finish(env)
    assert gaps(env) == [(1, 0, 10, 17, "expired before it was read")]
    assert epochs(env) == [(1, "first seen")]


def test_a_partition_whose_messages_all_expired_goes_on_with_the_next_one(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    env.send(seconds(range(10)))
    env.drain()
    env.pipeline.close()
    expired = env.send(seconds(range(10, 20)))
    delete_before(kafka_broker, env.topic, expired[-1].offset + 1)
    env.renew()
    for _ in range(3):
        env.pipeline.tick()
    env.sent = [one for one in env.sent if one not in expired]
    env.send(seconds(range(20, 25)))
    finish(env)
    assert gaps(env) == [(1, 0, 10, 20, "expired before it was read")]


def delete_before(kafka_broker: KafkaServer, topic: str, offset: int) -> None:
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(timeout=20)
