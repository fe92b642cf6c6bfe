"""Logs that begin anew, shrink or grow: written down, and nothing is read twice or passed over. Holes: test_gaps.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from analytics_pipeline.embedded import BrokerServer, Supervisor
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.sources.kafka import BrokerUnreachableError
from analytics_pipeline_tests.against_reference import assert_equals_reference, messages_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, create_topics, free_port, open_environment
from analytics_pipeline_tests.invariants import assert_invariants
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 2 * HOUR


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as it:
        yield it


@pytest.fixture
def own_broker(state_dir: Path, supervisor: Supervisor) -> Iterator[BrokerServer]:
    """A broker that this test may stop; always the embedded one, whose log is gone then."""
    server = BrokerServer(supervisor)
    server.start(state_dir, free_port())
    yield server
    server.stop()


def seconds(span: range) -> list[bytes]:
    return [reading(START + timedelta(seconds=20 * s), 20.0 + s % 5, sensor_id=f"s-{s % 3}") for s in span]


def recreate(env: Environment, kafka_broker: KafkaServer, partitions: int) -> None:
    """The topic is deleted and made again under its name, while a process drains it, where that can be.

    With the embedded broker it cannot: it answers fetches of a deleted topic with neither name nor id of it, at
    which librdkafka 2.16 crashes (in rd_kafka_metadata_update_op).
    """
    if kafka_broker.embedded is not None:
        env.pipeline.close()
    admin = AdminClient({"bootstrap.servers": env.settings.kafka_brokers, "log_level": 0})
    admin.delete_topics([env.topic])[env.topic].result(timeout=20)
    deadline = time.monotonic() + 20
    while True:
        try:
            create_topics(env.settings.kafka_brokers, [env.topic], partitions)
            break
        except KafkaException:  # the deletion continues in the background
            assert time.monotonic() < deadline
            time.sleep(0.1)
    if kafka_broker.embedded is not None:
        env.renew()
    begin_next_epoch(env)


def add_partitions(kafka_broker: KafkaServer, topic: str, partitions: int) -> None:
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(timeout=20)


def begin_next_epoch(env: Environment) -> None:
    env.epoch += 1
    env.producer = Producer({"bootstrap.servers": env.settings.kafka_brokers, "log_level": 0})


def epochs(env: Environment) -> list[tuple[Any, ...]]:
    return env.pipeline.query("SELECT DISTINCT epoch, reason FROM kafka_log ORDER BY epoch")


def gaps(env: Environment) -> list[tuple[Any, ...]]:
    return env.pipeline.query(
        "SELECT epoch, partition, from_offset, to_offset, reason FROM offset_gap ORDER BY 1, 2, 3"
    )


def finish(env: Environment) -> None:
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


# ---------------------------------------------------------------------- epochs


@pytest.mark.parametrize("more", [False, True], ids=["fewer messages than before", "more messages than before"])
def test_a_topic_that_is_made_again_begins_an_epoch_and_says_where_the_old_one_ended(
    env: Environment, kafka_broker: KafkaServer, more: bool
) -> None:
    env.send(seconds(range(30)))
    env.send(seconds(range(30, 40)), 1)
    env.drain()
    env.pipeline.settle()
    recreate(env, kafka_broker, 2)
    env.send(seconds(range(40, 90 if more else 50)))
    env.send(seconds(range(90, 95)), 1)
    finish(env)
    assert epochs(env) == [(1, "first seen"), (2, "topic id changed")]
    assert gaps(env) == [
        (1, 0, 30, None, "log ended: topic id changed"),
        (1, 1, 10, None, "log ended: topic id changed"),
    ]


def test_a_topic_made_again_is_not_read_on_in_the_old_epoch_when_its_bounds_are_unknown(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    env.send(seconds(range(30)))
    env.drain()
    recreate(env, kafka_broker, 2)
    env.send(seconds(range(40, 90)))
    reader = env.pipeline.drain._reader

    def fail(*_: Any) -> Any:
        del reader.bounds  # only once
        raise BrokerUnreachableError("no answer")

    reader.bounds = fail  # type: ignore[method-assign]
    assert env.pipeline.tick().messages == 0
    finish(env)


def test_a_topic_that_is_made_again_with_fewer_partitions_begins_one_epoch_and_no_more(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    env.send(seconds(range(30)))
    env.send(seconds(range(30, 40)), 1)
    env.drain()
    recreate(env, kafka_broker, 1)
    for part in range(4):
        env.send(seconds(range(40 + part * 10, 50 + part * 10)))
        env.drain()
    finish(env)
    assert [epoch for epoch, _ in epochs(env)] == [1, 2]
    offsets = env.pipeline.query("SELECT partition, epoch, next_offset FROM kafka_offset ORDER BY 1")
    assert offsets == [(0, 2, 40), (1, 1, 10)]


def test_a_partition_that_comes_back_in_a_later_epoch_is_read_from_its_beginning(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot add partitions")
    env.send(seconds(range(30)))
    env.send(seconds(range(30, 40)), 1)
    env.drain()
    recreate(env, kafka_broker, 1)
    env.send(seconds(range(40, 50)))
    env.drain()
    add_partitions(kafka_broker, env.topic, 2)
    begin = env.epoch
    begin_next_epoch(env)  # only for a producer that knows of the new partition
    env.epoch = begin
    env.send(seconds(range(50, 53)), 1)
    env.send(seconds(range(53, 60)))
    finish(env)
    offsets = env.pipeline.query("SELECT partition, epoch, next_offset FROM kafka_offset ORDER BY 1")
    assert offsets == [(0, 2, 17), (1, 2, 3)]


def test_partitions_that_are_added_are_read_from_their_beginning(env: Environment, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot add partitions")
    env.send(seconds(range(10)))
    env.drain()
    add_partitions(kafka_broker, env.topic, 3)
    begin_next_epoch(env)
    env.epoch = 1
    env.send(seconds(range(10, 20)), 2)
    finish(env)
    assert epochs(env) == [(1, "first seen")]


@pytest.mark.parametrize("messages", [5, 60], ids=["fewer messages than before", "more messages than before"])
def test_a_broker_that_lost_its_log_begins_an_epoch(
    own_broker: BrokerServer, postgres_server: DatabaseServer, state_dir: Path, messages: int
) -> None:
    """As each `make demo` does: the embedded broker keeps nothing on disk."""
    with open_environment(postgres_server, own_broker.bootstrap_servers) as env:
        env.send(seconds(range(30)))
        env.drain()
        begin_next_epoch(env)  # the producer of before would ask the new broker for the topic, and so make it
        own_broker.stop()
        own_broker.start(state_dir, own_broker.port)
        assert env.pipeline.tick().messages == 0  # the topic is not there yet: nothing to do, nothing wrong
        create_topics(own_broker.bootstrap_servers, [env.topic], 2)
        env.send(seconds(range(30, 30 + messages)))
        finish(env)
        assert epochs(env) == [(1, "first seen"), (2, "topic id changed")]


BEYOND_ITS_END = "the embedded broker answers a fetch beyond the end of a log with nothing, not with an error"


def test_a_log_that_ends_before_the_next_offset_begins_an_epoch_also_without_topic_ids(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    """Brokers older than Kafka 2.8 have no topic ids."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    reader = env.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: replace(info, topic_id=None) for name, info in describe(topics).items()
    }
    env.send(seconds(range(30)))
    env.drain()
    recreate(env, kafka_broker, 2)
    env.send(seconds(range(30, 40)))
    finish(env)
    assert [epoch for epoch, _ in epochs(env)] == [1, 2]
    assert "before offset 30" in epochs(env)[1][1]
    assert gaps(env)[0][:4] == (1, 0, 30, None)


def test_a_log_that_was_cut_short_begins_an_epoch_where_it_diverges(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    """An unclean election: the same partition ends before what was read. The other partitions go on."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    env.send(seconds(range(30)))
    env.send(seconds(range(30, 40)), 1)
    env.drain()
    env.pipeline.settle()
    with env.pipeline.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE kafka_offset SET next_offset = next_offset + 7 WHERE partition = 0")
    env.pipeline.tick()
    env.send(seconds(range(40, 60)))
    for _ in range(3):
        env.pipeline.tick()
    env.pipeline.settle()
    columns = "partition, epoch, begin_offset, end_offset"
    logs = env.pipeline.query(f"SELECT {columns} FROM kafka_log ORDER BY 1, 2")
    assert logs == [(0, 1, 0, 37), (0, 2, 30, None), (1, 1, 0, None)], "only the partition that was cut short"
    assert gaps(env)[0][:4] == (1, 0, 37, None)
    assert env.pipeline.count("raw_events") == 60, "what both epochs share is not read a second time"
    assert_equals_reference(env.pipeline, messages_of(env.sent), {})


def test_of_a_log_that_was_cut_short_and_grew_again_what_diverges_is_read_again(
    env: Environment, kafka_broker: KafkaServer
) -> None:
    """Offsets 20 to 29 were read from what was cut away; by now other messages stand there."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    env.send(seconds(range(30)))
    env.drain()
    with env.pipeline.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE raw_events SET payload = payload || ' ' WHERE \"offset\" >= 20")
        conn.exec_driver_sql("UPDATE kafka_offset SET next_offset = next_offset + 7 WHERE partition = 0")
    env.send(seconds(range(30, 35)))
    for _ in range(3):
        env.pipeline.tick()
    logs = env.pipeline.query("SELECT epoch, begin_offset FROM kafka_log WHERE partition = 0 ORDER BY 1")
    assert logs == [(1, 0), (2, 20)]
    rows = env.pipeline.query("SELECT epoch, min(\"offset\"), count(*) FROM raw_events GROUP BY 1 ORDER BY 1")
    assert rows == [(1, 0, 30), (2, 20, 15)]


def test_a_topic_id_that_the_broker_tells_only_later_is_filled_in(env: Environment) -> None:
    reader = env.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: replace(info, topic_id=None) for name, info in describe(topics).items()
    }
    env.send(seconds(range(3)))
    env.drain()
    ids = "SELECT DISTINCT kafka_topic_id IS NULL FROM kafka_log"
    assert env.pipeline.query(ids) == [(True,)]
    reader.describe = describe  # type: ignore[method-assign]
    env.send(seconds(range(3, 6)))
    finish(env)
    assert env.pipeline.query(ids) == [(False,)]
    assert epochs(env) == [(1, "first seen")]
