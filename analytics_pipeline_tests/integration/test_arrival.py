"""When a message arrives, where a topic begins, how far it is: what the drain makes of everybody's clocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from confluent_kafka import Producer

from analytics_pipeline.domains import Registry
from analytics_pipeline.flow.drain import Drain
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.sources.kafka import BrokerUnreachableError, TopicInfo
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.invariants import assert_accounted_for
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.worlds import World, create_topics, open_world

NOW = hour_of(datetime.now(UTC)) - HOUR


@pytest.fixture
def world(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[World]:
    options = {"future_tolerance_s": 5, "drain_batch_messages": 10, "allowed_lateness_s": 0}
    with open_world(postgres_server, kafka_broker.bootstrap_servers, **options) as it:
        yield it


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# ---------------------------------------------------------------------- arrival


def test_each_batch_of_a_tick_has_its_own_arrival(world: World) -> None:
    """Fifteen seconds into a tick, a message of that moment is not ahead of its arrival."""
    passed = iter(range(0, 10_000, 10))
    known = world.pipeline
    drain = Drain(world.settings, known.engine, known.registry, clock=lambda: float(next(passed)))
    for batch in range(3):
        world.send([reading(NOW + timedelta(seconds=10 * batch + n / 100), float(n)) for n in range(10)])
    while world.waiting():
        drain.tick(NOW)
    drain.close()
    assert world.pipeline.query("SELECT reason FROM dead_letters") == []
    arrivals = world.pipeline.query("SELECT DISTINCT arrived_at FROM raw_events")
    assert len(arrivals) == world.pipeline.count("ingest_batch") >= 3
    assert_accounted_for(world.pipeline, world.sent)


def test_a_clock_that_is_ahead_neither_moves_the_watermark_nor_makes_others_late(world: World) -> None:
    world.settings = world.settings.model_copy(update={"future_tolerance_s": 600})
    world.renew()
    ahead = NOW + timedelta(seconds=590)
    world.send([reading(ahead, 1.0)], timestamp=ms(ahead) if ms(ahead) < ms(datetime.now(UTC)) else None)
    world.drain(NOW)
    [(watermark,)] = world.pipeline.query("SELECT watermark_time FROM kafka_offset WHERE partition = 0")
    assert watermark - NOW < timedelta(seconds=60), "no later than it arrived"
    world.send([reading(NOW + timedelta(seconds=120), 2.0)], timestamp=ms(NOW + timedelta(seconds=120)))
    world.drain(NOW + timedelta(seconds=121))
    assert world.pipeline.query("SELECT sum(late_rows)::int FROM ingest_batch_hour") == [(0,)]


def test_a_batch_is_late_by_what_the_batches_before_it_in_the_same_tick_brought(world: World) -> None:
    values = [reading(NOW + timedelta(minutes=minute), 1.0) for minute in [10] * 10 + [5] * 10]
    world.send(values, timestamp=ms(NOW + timedelta(minutes=10)))
    world.drain(NOW + HOUR)
    assert world.pipeline.query("SELECT sum(late_rows)::int FROM ingest_batch_hour") == [(10,)]


# ---------------------------------------------------------------------- local times


@pytest.mark.parametrize(("kafka_utc", "event_utc"), [("00:31", "00:30"), ("01:31", "01:30")])
def test_a_local_time_that_occurs_twice_is_the_one_nearer_to_the_kafka_time(
    world: World, kafka_utc: str, event_utc: str
) -> None:
    """Clocks in Berlin go back from 3:00 to 2:00 on 2025-10-26, at 01:00 UTC."""
    [sensor] = world.pipeline.registry.domains
    local = Registry((replace(sensor, time_zone=ZoneInfo("Europe/Berlin")),), world.pipeline.registry.topics)
    world.pipeline.close()
    world.pipeline = Pipeline(world.settings, world.pipeline.engine, local)
    kafka = datetime.fromisoformat(f"2025-10-26T{kafka_utc}:00+00:00")
    world.send([reading("2025-10-26T02:30:00", 1.0)], timestamp=ms(kafka))
    world.drain()
    times = world.pipeline.query("SELECT to_char(event_time, 'HH24:MI') FROM raw_events")
    assert times == [(event_utc,)]


# ---------------------------------------------------------------------- where reading begins


def test_latest_skips_only_what_was_there_when_the_settings_first_named_the_topic_and_says_so(
    postgres_server: DatabaseServer, kafka_broker: KafkaServer
) -> None:
    brokers = kafka_broker.bootstrap_servers
    with open_world(postgres_server, brokers, first_offset="latest") as world:
        late_topic = f"{world.topic}.later"
        old = world.send([reading(NOW + timedelta(seconds=n), float(n)) for n in range(20)])
        for one in old:  # one by one: the embedded broker shows the end of its log less the last batch
            assert one.offset >= 0
        [sensor] = world.pipeline.registry.domains
        registry = Registry((replace(sensor, topics=(world.topic, late_topic)),), (world.topic, late_topic))
        world.pipeline.close()
        world.pipeline = Pipeline(world.settings, world.pipeline.engine, registry)
        world.pipeline.tick()
        [(skipped,)] = world.pipeline.query("SELECT to_offset::int FROM offset_gap WHERE from_offset = 0")
        assert world.pipeline.query("SELECT reason FROM offset_gap") == [("skipped: FIRST_OFFSET is latest",)]
        create_topics(brokers, [late_topic], 1)
        world.producer = Producer({"bootstrap.servers": brokers, "log_level": 2})
        world.send([reading(NOW, 1.0), reading(NOW, 2.0)], topic=late_topic)
        world.sent = [one for one in world.sent if one.topic == late_topic or one.offset >= skipped]
        world.drain()
        assert world.pipeline.query("SELECT count(*) FROM raw_events WHERE topic = %s", late_topic) == [(2,)]
        assert_accounted_for(world.pipeline, world.sent)


# ---------------------------------------------------------------------- partitions that do not answer


def test_a_partition_without_a_leader_is_named_and_holds_up_no_other(world: World) -> None:
    reader = world.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: TopicInfo(name, info.topic_id, (0,), (1,)) for name, info in describe(topics).items()
    }
    world.send([reading(NOW, 1.0)])
    outcomes = [world.pipeline.tick(), world.pipeline.tick()]
    assert sum(one.messages for one in outcomes) == 1
    assert f"{world.topic}[1]: no broker leads this partition now" in outcomes[0].troubles
    assert "no broker leads" in (outcomes[1].skip_reason or "")
    reader.describe = describe  # type: ignore[method-assign]
    world.send([reading(NOW, 2.0)], 1)
    world.drain()
    assert_accounted_for(world.pipeline, world.sent)


def test_a_partition_that_cannot_be_asked_is_left_out_of_the_lag(world: World) -> None:
    world.send([reading(NOW, 1.0)])
    world.drain()
    reader = world.pipeline.drain._reader
    bounds = reader.bounds

    def refuse(topic: str, partition: int) -> tuple[int, int]:
        if partition == 1:
            raise BrokerUnreachableError("no leader")
        return bounds(topic, partition)

    reader.bounds = refuse  # type: ignore[method-assign]
    assert world.pipeline.drain.look() == 0


def test_what_an_open_transaction_holds_back_is_lag(world: World, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker shows messages before their transaction is committed")
    brokers = kafka_broker.bootstrap_servers
    transactional = Producer({"bootstrap.servers": brokers, "transactional.id": world.topic, "log_level": 2})
    transactional.init_transactions(20)
    world.send([reading(NOW, 1.0)])
    world.drain()
    plain, world.producer = world.producer, transactional
    transactional.begin_transaction()
    world.send([reading(NOW, 2.0), reading(NOW, 3.0)])
    lags = [world.pipeline.tick().lag_messages for _ in range(5)]
    assert lags[-1] == 2
    transactional.commit_transaction(20)
    world.producer = plain
    world.drain()
    assert_accounted_for(world.pipeline, world.sent)
