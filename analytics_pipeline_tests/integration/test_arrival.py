"""When a message arrives, where a topic begins, how far it is: what the drain makes of everybody's clocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from confluent_kafka import Producer

from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.domains import Registry
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.sources.kafka import BrokerUnreachableError, TopicInfo
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, create_topics, open_environment
from analytics_pipeline_tests.invariants import assert_accounted_for
from analytics_pipeline_tests.pipeline import Pipeline, reading

NOW = hour_of(datetime.now(UTC)) - HOUR


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    options = {"future_tolerance_s": 5, "drain_batch_messages": 10, "allowed_lateness_s": 0}
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, **options) as it:
        yield it


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# ---------------------------------------------------------------------- arrival


def test_each_batch_of_a_tick_has_its_own_arrival(env: Environment) -> None:
    """Fifteen seconds into a tick, a message of that moment is not ahead of its arrival."""
    passed = iter(range(0, 10_000, 10))
    known = env.pipeline
    drain = Drain(env.settings, known.engine, known.registry, clock=lambda: float(next(passed)))
    for batch in range(3):
        env.send([reading(NOW + timedelta(seconds=10 * batch + n / 100), float(n)) for n in range(10)])
    while env.waiting():
        drain.tick(NOW)
    drain.close()
    assert env.pipeline.query("SELECT reason FROM dead_letters") == []
    arrivals = env.pipeline.query("SELECT DISTINCT arrived_at FROM raw_events")
    assert len(arrivals) == env.pipeline.count("ingest_batch") >= 3
    assert_accounted_for(env.pipeline, env.sent)


def test_a_clock_that_is_ahead_neither_moves_the_watermark_nor_makes_others_late(env: Environment) -> None:
    env.settings = env.settings.model_copy(update={"future_tolerance_s": 600})
    env.renew()
    ahead = NOW + timedelta(seconds=590)
    env.send([reading(ahead, 1.0)], timestamp=ms(ahead) if ms(ahead) < ms(datetime.now(UTC)) else None)
    env.drain(NOW)
    [(watermark,)] = env.pipeline.query("SELECT watermark_time FROM kafka_offset WHERE partition = 0")
    assert watermark - NOW < timedelta(seconds=60), "no later than it arrived"
    env.send([reading(NOW + timedelta(seconds=120), 2.0)], timestamp=ms(NOW + timedelta(seconds=120)))
    env.drain(NOW + timedelta(seconds=121))
    assert env.pipeline.query("SELECT sum(late_rows)::int FROM ingest_batch_hour") == [(0,)]


def test_a_batch_is_late_by_what_the_batches_before_it_in_the_same_tick_brought(env: Environment) -> None:
    values = [reading(NOW + timedelta(minutes=minute), 1.0) for minute in [10] * 10 + [5] * 10]
    env.send(values, timestamp=ms(NOW + timedelta(minutes=10)))
    env.drain(NOW + HOUR)
    assert env.pipeline.query("SELECT sum(late_rows)::int FROM ingest_batch_hour") == [(10,)]


# ---------------------------------------------------------------------- local times


@pytest.mark.parametrize(("kafka_utc", "event_utc"), [("00:31", "00:30"), ("01:31", "01:30")])
def test_a_local_time_that_occurs_twice_is_the_one_nearer_to_the_kafka_time(
    env: Environment, kafka_utc: str, event_utc: str
) -> None:
    """Clocks in Berlin go back from 3:00 to 2:00 on 2025-10-26, at 01:00 UTC."""
    [sensor] = env.pipeline.registry.domains
    local = Registry((replace(sensor, time_zone=ZoneInfo("Europe/Berlin")),), env.pipeline.registry.topics)
    env.pipeline.close()
    env.pipeline = Pipeline(env.settings, env.pipeline.engine, local)
    kafka = datetime.fromisoformat(f"2025-10-26T{kafka_utc}:00+00:00")
    env.send([reading("2025-10-26T02:30:00", 1.0)], timestamp=ms(kafka))
    env.drain()
    times = env.pipeline.query("SELECT to_char(event_time, 'HH24:MI') FROM raw_events")
    assert times == [(event_utc,)]


# ---------------------------------------------------------------------- where reading begins


def test_latest_skips_only_what_was_there_when_the_settings_first_named_the_topic_and_says_so(
    postgres_server: DatabaseServer, kafka_broker: KafkaServer
) -> None:
    brokers = kafka_broker.bootstrap_servers
    with open_environment(postgres_server, brokers, first_offset="latest") as env:
        late_topic = f"{env.topic}.later"
        old = env.send([reading(NOW + timedelta(seconds=n), float(n)) for n in range(20)])
        for one in old:  # one by one: the embedded broker shows the end of its log less the last batch
            assert one.offset >= 0
        [sensor] = env.pipeline.registry.domains
        registry = Registry((replace(sensor, topics=(env.topic, late_topic)),), (env.topic, late_topic))
        env.pipeline.close()
        env.pipeline = Pipeline(env.settings, env.pipeline.engine, registry)
        env.pipeline.tick()
        [(skipped,)] = env.pipeline.query("SELECT to_offset::int FROM offset_gap WHERE from_offset = 0")
        assert env.pipeline.query("SELECT reason FROM offset_gap") == [("skipped: FIRST_OFFSET is latest",)]
        create_topics(brokers, [late_topic], 1)
        env.producer = Producer({"bootstrap.servers": brokers, "log_level": 2})
        env.send([reading(NOW, 1.0), reading(NOW, 2.0)], topic=late_topic)
        env.sent = [one for one in env.sent if one.topic == late_topic or one.offset >= skipped]
        env.drain()
        assert env.pipeline.query("SELECT count(*) FROM raw_events WHERE topic = %s", late_topic) == [(2,)]
        assert_accounted_for(env.pipeline, env.sent)


# ---------------------------------------------------------------------- partitions that do not answer


def test_a_partition_without_a_leader_is_named_and_holds_up_no_other(env: Environment) -> None:
    reader = env.pipeline.drain._reader
    describe = reader.describe
    reader.describe = lambda topics: {  # type: ignore[method-assign]
        name: TopicInfo(name, info.topic_id, (0,), (1,)) for name, info in describe(topics).items()
    }
    env.send([reading(NOW, 1.0)])
    outcomes = [env.pipeline.tick(), env.pipeline.tick()]
    assert sum(one.messages for one in outcomes) == 1
    assert f"{env.topic}[1]: no broker leads this partition now" in outcomes[0].troubles
    assert "no broker leads" in (outcomes[1].skip_reason or "")
    reader.describe = describe  # type: ignore[method-assign]
    env.send([reading(NOW, 2.0)], 1)
    env.drain()
    assert_accounted_for(env.pipeline, env.sent)


def test_a_partition_that_cannot_be_asked_is_left_out_of_the_lag(env: Environment) -> None:
    env.send([reading(NOW, 1.0)])
    env.drain()
    reader = env.pipeline.drain._reader
    bounds = reader.bounds

    def refuse(topic: str, partition: int) -> tuple[int, int]:
        if partition == 1:
            raise BrokerUnreachableError("no leader")
        return bounds(topic, partition)

    reader.bounds = refuse  # type: ignore[method-assign]
    assert env.pipeline.drain.look() == 0


def test_what_an_open_transaction_holds_back_is_lag(env: Environment, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker shows messages before their transaction is committed")
    brokers = kafka_broker.bootstrap_servers
    transactional = Producer({"bootstrap.servers": brokers, "transactional.id": env.topic, "log_level": 2})
    transactional.init_transactions(20)
    env.send([reading(NOW, 1.0)])
    env.drain()
    plain, env.producer = env.producer, transactional
    transactional.begin_transaction()
    env.send([reading(NOW, 2.0), reading(NOW, 3.0)])
    lags = [env.pipeline.tick().lag_messages for _ in range(5)]
    assert lags[-1] == 2
    transactional.commit_transaction(20)
    env.producer = plain
    env.drain()
    assert_accounted_for(env.pipeline, env.sent)
