"""Logs that begin anew, shrink, grow or have holes: written down, and nothing is read twice or passed over."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from analytics_pipeline.embedded import BrokerServer, Supervisor
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.invariants import assert_equals_reference, assert_invariants, messages_of
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.worlds import Sent, World, create_topics, free_port, open_world

START = hour_of(datetime.now(UTC)) - 2 * HOUR


@pytest.fixture
def world(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[World]:
    with open_world(postgres_server, kafka_broker.bootstrap_servers) as it:
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


def recreate(world: World, kafka_broker: KafkaServer, partitions: int) -> None:
    """The topic is deleted and made again under its name, while a process drains it, where that can be.

    With the embedded broker it cannot: it answers fetches of a deleted topic with neither name nor id of it, at
    which librdkafka 2.16 crashes (in rd_kafka_metadata_update_op).
    """
    if kafka_broker.embedded is not None:
        world.pipeline.close()
    admin = AdminClient({"bootstrap.servers": world.settings.kafka_brokers, "log_level": 0})
    admin.delete_topics([world.topic])[world.topic].result(timeout=20)
    deadline = time.monotonic() + 20
    while True:
        try:
            create_topics(world.settings.kafka_brokers, [world.topic], partitions)
            break
        except KafkaException:  # the deletion goes on in the background
            assert time.monotonic() < deadline
            time.sleep(0.1)
    if kafka_broker.embedded is not None:
        world.renew()
    begin_next_epoch(world)


def add_partitions(kafka_broker: KafkaServer, topic: str, partitions: int) -> None:
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(timeout=20)


def begin_next_epoch(world: World) -> None:
    world.epoch += 1
    world.producer = Producer({"bootstrap.servers": world.settings.kafka_brokers, "log_level": 0})


def epochs(world: World) -> list[tuple[Any, ...]]:
    return world.pipeline.query("SELECT DISTINCT epoch, reason FROM kafka_log ORDER BY epoch")


def gaps(world: World) -> list[tuple[Any, ...]]:
    return world.pipeline.query(
        "SELECT epoch, partition, from_offset, to_offset, reason FROM offset_gap ORDER BY 1, 2, 3"
    )


def finish(world: World) -> None:
    world.drain()
    world.pipeline.settle()
    assert_invariants(world)


# ---------------------------------------------------------------------- epochs


@pytest.mark.parametrize("more", [False, True], ids=["fewer messages than before", "more messages than before"])
def test_a_topic_that_is_made_again_begins_an_epoch_and_says_where_the_old_one_ended(
    world: World, kafka_broker: KafkaServer, more: bool
) -> None:
    world.send(seconds(range(30)))
    world.send(seconds(range(30, 40)), 1)
    world.drain()
    world.pipeline.settle()
    recreate(world, kafka_broker, 2)
    world.send(seconds(range(40, 90 if more else 50)))
    world.send(seconds(range(90, 95)), 1)
    finish(world)
    assert epochs(world) == [(1, "first seen"), (2, "topic id changed")]
    assert gaps(world) == [
        (1, 0, 30, None, "log ended: topic id changed"),
        (1, 1, 10, None, "log ended: topic id changed"),
    ]


def test_a_topic_that_is_made_again_with_fewer_partitions_begins_one_epoch_and_no_more(
    world: World, kafka_broker: KafkaServer
) -> None:
    world.send(seconds(range(30)))
    world.send(seconds(range(30, 40)), 1)
    world.drain()
    recreate(world, kafka_broker, 1)
    for part in range(4):
        world.send(seconds(range(40 + part * 10, 50 + part * 10)))
        world.drain()
    finish(world)
    assert [epoch for epoch, _ in epochs(world)] == [1, 2]
    offsets = world.pipeline.query("SELECT partition, epoch, next_offset FROM kafka_offset ORDER BY 1")
    assert offsets == [(0, 2, 40), (1, 1, 10)]


def test_a_partition_that_comes_back_in_a_later_epoch_is_read_from_its_beginning(
    world: World, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot add partitions")
    world.send(seconds(range(30)))
    world.send(seconds(range(30, 40)), 1)
    world.drain()
    recreate(world, kafka_broker, 1)
    world.send(seconds(range(40, 50)))
    world.drain()
    add_partitions(kafka_broker, world.topic, 2)
    begin = world.epoch
    begin_next_epoch(world)  # only for a producer that knows of the new partition
    world.epoch = begin
    world.send(seconds(range(50, 53)), 1)
    world.send(seconds(range(53, 60)))
    finish(world)
    offsets = world.pipeline.query("SELECT partition, epoch, next_offset FROM kafka_offset ORDER BY 1")
    assert offsets == [(0, 2, 17), (1, 2, 3)]


def test_partitions_that_are_added_are_read_from_their_beginning(world: World, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot add partitions")
    world.send(seconds(range(10)))
    world.drain()
    add_partitions(kafka_broker, world.topic, 3)
    begin_next_epoch(world)
    world.epoch = 1
    world.send(seconds(range(10, 20)), 2)
    finish(world)
    assert epochs(world) == [(1, "first seen")]


@pytest.mark.parametrize("messages", [5, 60], ids=["fewer messages than before", "more messages than before"])
def test_a_broker_that_lost_its_log_begins_an_epoch(
    own_broker: BrokerServer, postgres_server: DatabaseServer, state_dir: Path, messages: int
) -> None:
    """As each `make demo` does: the embedded broker keeps nothing on disk."""
    with open_world(postgres_server, own_broker.bootstrap_servers) as world:
        world.send(seconds(range(30)))
        world.drain()
        begin_next_epoch(world)  # the producer of before would ask the new broker for the topic, and so make it
        own_broker.stop()
        own_broker.start(state_dir, own_broker.port)
        assert world.pipeline.tick().messages == 0  # the topic is not there yet: nothing to do, nothing wrong
        create_topics(own_broker.bootstrap_servers, [world.topic], 2)
        world.send(seconds(range(30, 30 + messages)))
        finish(world)
        assert epochs(world) == [(1, "first seen"), (2, "topic id changed")]


BEYOND_ITS_END = "the embedded broker answers a fetch beyond the end of a log with nothing, not with an error"


def test_a_log_that_ends_before_the_next_offset_begins_an_epoch_also_without_topic_ids(
    world: World, kafka_broker: KafkaServer
) -> None:
    """Brokers older than Kafka 2.8 have no topic ids."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    reader = world.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: replace(info, topic_id=None) for name, info in describe(topics).items()
    }
    world.send(seconds(range(30)))
    world.drain()
    recreate(world, kafka_broker, 2)
    world.send(seconds(range(30, 40)))
    finish(world)
    assert [epoch for epoch, _ in epochs(world)] == [1, 2]
    assert "before offset 30" in epochs(world)[1][1]
    assert gaps(world)[0][:4] == (1, 0, 30, None)


def test_a_log_that_was_cut_short_begins_an_epoch_where_it_diverges(
    world: World, kafka_broker: KafkaServer
) -> None:
    """An unclean election: the same partition ends before what was read. The other partitions go on."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    world.send(seconds(range(30)))
    world.send(seconds(range(30, 40)), 1)
    world.drain()
    world.pipeline.settle()
    with world.pipeline.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE kafka_offset SET next_offset = next_offset + 7 WHERE partition = 0")
    world.pipeline.tick()
    world.send(seconds(range(40, 60)))
    for _ in range(3):
        world.pipeline.tick()
    world.pipeline.settle()
    columns = "partition, epoch, begin_offset, end_offset"
    logs = world.pipeline.query(f"SELECT {columns} FROM kafka_log ORDER BY 1, 2")
    assert logs == [(0, 1, 0, 37), (0, 2, 30, None), (1, 1, 0, None)], "only the partition that was cut short"
    assert gaps(world)[0][:4] == (1, 0, 37, None)
    assert world.pipeline.count("raw_events") == 60, "what both epochs share is not read a second time"
    assert_equals_reference(world.pipeline, messages_of(world.sent), {})


def test_of_a_log_that_was_cut_short_and_grew_again_what_diverges_is_read_again(
    world: World, kafka_broker: KafkaServer
) -> None:
    """Offsets 20 to 29 were read from what was cut away; by now other messages stand there."""
    if kafka_broker.embedded is not None:
        pytest.skip(BEYOND_ITS_END)
    world.send(seconds(range(30)))
    world.drain()
    with world.pipeline.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE raw_events SET payload = payload || ' ' WHERE \"offset\" >= 20")
        conn.exec_driver_sql("UPDATE kafka_offset SET next_offset = next_offset + 7 WHERE partition = 0")
    world.send(seconds(range(30, 35)))
    for _ in range(3):
        world.pipeline.tick()
    logs = world.pipeline.query("SELECT epoch, begin_offset FROM kafka_log WHERE partition = 0 ORDER BY 1")
    assert logs == [(1, 0), (2, 20)]
    rows = world.pipeline.query("SELECT epoch, min(\"offset\"), count(*) FROM raw_events GROUP BY 1 ORDER BY 1")
    assert rows == [(1, 0, 30), (2, 20, 15)]


def test_a_topic_id_that_the_broker_tells_only_later_is_filled_in(world: World) -> None:
    reader = world.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: replace(info, topic_id=None) for name, info in describe(topics).items()
    }
    world.send(seconds(range(3)))
    world.drain()
    ids = "SELECT DISTINCT kafka_topic_id IS NULL FROM kafka_log"
    assert world.pipeline.query(ids) == [(True,)]
    reader.describe = describe  # type: ignore[method-assign]
    world.send(seconds(range(3, 6)))
    finish(world)
    assert world.pipeline.query(ids) == [(False,)]
    assert epochs(world) == [(1, "first seen")]


# ---------------------------------------------------------------------- holes


@pytest.fixture
def transactional(kafka_broker: KafkaServer) -> Producer:
    name = f"test-{uuid.uuid4().hex}"
    it = Producer({"bootstrap.servers": kafka_broker.bootstrap_servers, "transactional.id": name, "log_level": 0})
    it.init_transactions(20)
    return it


def test_aborted_messages_are_gaps_and_control_records_are_only_counted(
    world: World, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    plain = world.producer
    world.send(seconds(range(5)))
    world.producer = transactional
    transactional.begin_transaction()
    world.send(seconds(range(5, 15)))
    transactional.commit_transaction(20)
    wait_for_marker(world, kafka_broker, 15)
    world.producer = plain
    world.send(seconds(range(30, 32)))  # between the control records, or they would be one hole
    world.producer = transactional
    transactional.begin_transaction()
    aborted = world.send(seconds(range(15, 25)))
    transactional.abort_transaction(20)
    wait_for_marker(world, kafka_broker, 28)
    world.producer = plain
    world.send(seconds(range(25, 30)))
    hidden = hide_aborted(world, aborted, kafka_broker)
    finish(world)
    recorded = {offset for _, _, begin, end, _ in gaps(world) for offset in range(begin, end)}
    assert hidden <= recorded, "what was aborted is a gap"
    [(told,)] = world.pipeline.query("SELECT sum(messages)::int FROM ingest_batch")
    [(end,)] = world.pipeline.query("SELECT next_offset::int FROM kafka_offset WHERE partition = 0")
    assert end - told - len(hidden) == 2, "one control record for each transaction"
    alone = 1 if hidden else 2
    assert end - told - len(recorded) == alone, "control records by themselves are not recorded as gaps"


def wait_for_marker(world: World, kafka_broker: KafkaServer, offset: int) -> None:
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
        while reader.get_watermark_offsets(TopicPartition(world.topic, 0), timeout=5)[1] <= offset:
            assert time.monotonic() < deadline, "no control record came"
            time.sleep(0.05)
    finally:
        reader.close()


def hide_aborted(world: World, aborted: list[Sent], kafka_broker: KafkaServer) -> set[int]:
    """Apache Kafka hides aborted messages; the embedded broker shows them, so that there they count."""
    if kafka_broker.embedded is not None:
        return set()
    world.sent = [one for one in world.sent if one not in aborted]
    return {one.offset for one in aborted}


def test_a_log_that_ends_with_an_aborted_transaction_is_drained_to_its_end(
    world: World, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    world.send(seconds(range(5)))
    plain, world.producer = world.producer, transactional
    transactional.begin_transaction()
    aborted = world.send(seconds(range(5, 8)))
    transactional.abort_transaction(20)
    world.producer = plain
    hide_aborted(world, aborted, kafka_broker)
    deadline = time.monotonic() + 20
    while world.pipeline.query("SELECT max(next_offset) FROM kafka_offset") != [(9,)]:
        world.pipeline.tick()
        assert time.monotonic() < deadline
    assert world.pipeline.tick().lag_messages == 0
    finish(world)


def test_messages_behind_an_open_transaction_wait_for_it(
    world: World, transactional: Producer, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker shows messages before their transaction is committed")
    world.send(seconds(range(5)))
    plain, world.producer = world.producer, transactional
    transactional.begin_transaction()
    world.send(seconds(range(5, 8)))
    world.producer = plain
    world.send(seconds(range(8, 12)))
    drained = sum(world.pipeline.tick().messages for _ in range(5))
    assert drained == 5
    transactional.commit_transaction(20)
    finish(world)


def test_what_retention_took_before_it_was_read_is_a_gap(world: World, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    world.send(seconds(range(10)))
    world.send(seconds(range(10, 15)), 1)
    world.drain()
    world.pipeline.close()  # it would have fetched ahead what is about to expire
    expired = world.send(seconds(range(15, 25)))
    delete_before(kafka_broker, world.topic, expired[-3].offset)
    world.renew()
    world.send(seconds(range(25, 30)))
    world.sent = [one for one in world.sent if one not in expired[:-3]]
    finish(world)
    assert gaps(world) == [(1, 0, 10, 17, "expired before it was read")]
    assert epochs(world) == [(1, "first seen")]


def test_a_partition_whose_messages_all_expired_goes_on_with_the_next_one(
    world: World, kafka_broker: KafkaServer
) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    world.send(seconds(range(10)))
    world.drain()
    world.pipeline.close()
    expired = world.send(seconds(range(10, 20)))
    delete_before(kafka_broker, world.topic, expired[-1].offset + 1)
    world.renew()
    for _ in range(3):
        world.pipeline.tick()
    world.sent = [one for one in world.sent if one not in expired]
    world.send(seconds(range(20, 25)))
    finish(world)
    assert gaps(world) == [(1, 0, 10, 20, "expired before it was read")]


def delete_before(kafka_broker: KafkaServer, topic: str, offset: int) -> None:
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(timeout=20)
