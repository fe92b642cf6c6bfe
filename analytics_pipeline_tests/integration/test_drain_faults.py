"""One partition, message or domain that is wrong: it is told, nothing of it is lost, the others are drained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from analytics_pipeline.domains import Registry
from analytics_pipeline.domains.base import Domain, Expect
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.sources.kafka import BrokerUnreachableError
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, open_environment
from analytics_pipeline_tests.invariants import assert_accounted_for, assert_invariants
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.raw_produce import produce_with_headers

START = hour_of(datetime.now(UTC)) - 2 * HOUR
TICKS = 20


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, unknown_topics=1) as it:
        yield it


def seconds(span: range) -> list[bytes]:
    return [reading(START + timedelta(seconds=20 * s), 20.0 + s % 5, sensor_id=f"s-{s % 3}") for s in span]


def finish(env: Environment) -> None:
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


def tick_on(env: Environment) -> None:
    """Some ticks: that a log ends may be seen before the client says so, which it does in a later tick then."""
    for _ in range(TICKS):
        env.pipeline.tick()


def fails_once(target: Any, place: str, error: BaseException) -> None:
    """Lets a method of an object raise the next time that it is called."""

    def fail(*_: Any, **__: Any) -> None:
        delattr(target, place)
        raise error

    setattr(target, place, fail)


# ---------------------------------------------------------------------- partitions


@pytest.mark.parametrize("place", ["_advance", "_see_ends", "_take_error"])
def test_what_was_taken_when_reading_fails_is_read_again(env: Environment, place: str) -> None:
    reader = env.pipeline.drain._reader
    env.send(seconds(range(3)))
    env.send(seconds(range(3, 6)), 1)
    env.drain()
    env.send(seconds(range(10, 110)))
    fails_once(reader, place, RuntimeError("a fault in the middle"))
    with pytest.raises(RuntimeError):
        tick_on(env)
    finish(env)
    assert env.pipeline.count("offset_gap") == 0


def test_a_client_that_is_ahead_of_the_database_begins_anew(env: Environment) -> None:
    """Whatever the reason: its own position is compared with ours, and what it handed out is asked for again."""
    reader = env.pipeline.drain._reader
    env.send(seconds(range(3)))
    env.drain()
    env.send(seconds(range(3, 40)))
    stolen: list[Any] = []
    while len(stolen) < 37:
        stolen += [one for one in reader._client().consume(100, 0.5) if one.error() is None]
    finish(env)
    assert env.pipeline.count("offset_gap") == 0


def test_a_gap_right_after_an_error_is_read_again_before_it_is_believed(env: Environment) -> None:
    reader = env.pipeline.drain._reader
    env.send(seconds(range(3)))
    env.drain()
    reader.forget()  # as after any error
    env.send(seconds(range(3, 40)))
    take = reader._take

    def drop_the_first(chunk: Any, slices: Any) -> Any:
        messages = [one for one in chunk if one.error() is None]
        if messages:
            del reader._take  # only once
            chunk = [one for one in chunk if one is not messages[0]]
        return take(chunk, slices)

    reader._take = drop_the_first  # type: ignore[method-assign]
    finish(env)
    assert env.pipeline.count("offset_gap") == 0


def test_a_partition_that_expired_holds_up_no_other(env: Environment, kafka_broker: KafkaServer) -> None:
    if kafka_broker.embedded is not None:
        pytest.skip("the embedded broker cannot delete records")
    env.send(seconds(range(10)))
    env.send(seconds(range(10, 20)), 1)
    env.drain()
    env.pipeline.close()
    expired = env.send(seconds(range(20, 30)), 1)
    admin = kafka_broker.admin()  # held: its futures fail when it is collected
    for future in admin.delete_records([TopicPartition(env.topic, 1, expired[-1].offset)]).values():
        future.result(timeout=20)
    env.sent = [one for one in env.sent if one not in expired[:-1]]
    env.renew()
    env.send(seconds(range(30, 130)))
    fails_once(env.pipeline.drain._reader, "bounds", BrokerUnreachableError("no answer"))
    outcome = env.pipeline.tick()
    assert outcome.messages == 100, "the other partition"
    assert "no answer" in " ".join(outcome.troubles)
    outcome = env.pipeline.tick()
    assert "retention passed offsets 10 to 18" in " ".join(outcome.troubles)
    finish(env)
    assert env.pipeline.query("SELECT partition, from_offset, to_offset FROM offset_gap") == [(1, 10, 19)]


def test_offsets_are_resolved_only_when_no_batch_is_being_written(env: Environment) -> None:
    drain = env.pipeline.drain
    resolve, seen = drain._logs.resolve, []

    def look(moved: Any) -> list[str]:
        seen.append(drain._writing)
        return resolve(moved)

    drain._logs.resolve = look  # type: ignore[method-assign]
    env.send(seconds(range(30)))
    env.drain()
    assert seen
    assert set(seen) == {None}


# ---------------------------------------------------------------------- messages


def test_a_header_name_that_is_no_text_is_one_dead_letter(env: Environment) -> None:
    good = seconds(range(4))
    env.send(good[:2])
    produce_with_headers(env.settings.kafka_brokers, env.topic, 0, good[2], [(b"trace\xff\xfe", b"1")])
    env.send(good[3:])
    outcome = env.pipeline.tick()
    while outcome.messages == 0:
        outcome = env.pipeline.tick()
    env.pipeline.tick()
    rejected = env.pipeline.query("SELECT \"offset\", reason, convert_from(payload, 'UTF8') FROM dead_letters")
    assert rejected == [(2, "headers_unreadable", good[2].decode())]
    assert env.pipeline.count("raw_events") == 3
    assert_accounted_for_but_one(env)


def assert_accounted_for_but_one(env: Environment) -> None:
    """The message that was sent by hand is not among those that the environment knows of."""
    both = 'SELECT "offset" FROM raw_events UNION ALL SELECT "offset" FROM dead_letters ORDER BY 1'
    rows = env.pipeline.query(both)
    assert rows == [(0,), (1,), (2,), (3,)]


# ---------------------------------------------------------------------- domains


def with_domain(env: Environment, **changes: Any) -> Domain:
    """A second domain, on the topic that nobody claimed: the sensor domain with some changes."""
    [sensor] = env.pipeline.registry.domains
    faulty = replace(sensor, name="faulty", topics=(env.settings.kafka_topics[1],), **changes)
    registry = Registry((faulty, sensor), tuple(env.settings.kafka_topics))
    env.pipeline.close()
    env.pipeline = Pipeline(env.settings, env.pipeline.engine, registry)
    return faulty


ERRORS: list[Callable[[], BaseException]] = [
    lambda: KeyError("time"),
    lambda: OSError("no such zone"),
    lambda: OverflowError("too large"),
    lambda: ValueError("year 0 is out of range"),
    lambda: ZeroDivisionError("no samples"),
    lambda: RuntimeError("x" * 10_000),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error()).__name__)
def test_whatever_a_domain_raises_for_a_message_is_a_dead_letter_of_it(
    env: Environment, error: Callable[[], BaseException]
) -> None:
    def event_time(envelope: Any) -> datetime:
        if envelope.time.second == 20:
            raise error()
        return envelope.time  # type: ignore[no-any-return]

    with_domain(env, event_time=event_time)
    env.send(seconds(range(6)))
    env.send(seconds(range(6)), topic=env.settings.kafka_topics[1])
    messages, raw, dead = env.drain()
    assert (messages, raw, dead) == (12, 10, 2)
    rejected = env.pipeline.query("SELECT topic, reason, error FROM dead_letters")
    assert {one[:2] for one in rejected} == {(env.settings.kafka_topics[1], "domain_error")}
    assert all(f"faulty raised {type(error()).__name__}" in one[2] for one in rejected)


@pytest.mark.parametrize("result", [None, "2026-01-01", 17.0])
def test_an_event_time_that_is_no_time_is_a_dead_letter(env: Environment, result: Any) -> None:
    with_domain(env, event_time=lambda _: result)
    env.send(seconds(range(3)), topic=env.settings.kafka_topics[1])
    assert env.drain() == (3, 0, 3)
    assert env.pipeline.query("SELECT DISTINCT reason FROM dead_letters") == [("domain_error",)]


def test_a_domain_whose_suite_raises_is_held_back_alone_and_said(env: Environment) -> None:
    nowhere = Expect("raw_events", "expect_column_values_to_not_be_null", "nowhere", "missing")
    with_domain(env, expectations=(nowhere,))
    env.send(seconds(range(50)))
    other = env.settings.kafka_topics[1]
    env.send(seconds(range(30)), topic=other)
    outcomes = [env.pipeline.tick() for _ in range(2)]
    env.send(seconds(range(50, 60)), 1)
    outcomes.append(env.pipeline.tick())
    assert sum(one.messages for one in outcomes) == 60
    assert all("no column 'nowhere'" in one.held_back["faulty"] for one in outcomes)
    assert "faulty is held back" in (outcomes[1].skip_reason or "")
    assert {one.topic for one in env.waiting()} == {other}
    assert outcomes[-1].lag_messages > 0

    with_domain_healed(env)
    finish_two_domains(env)


def with_domain_healed(env: Environment) -> None:
    """As after a deployment: the same process could not know the fixed domain."""
    faulty, sensor = env.pipeline.registry.domains
    env.pipeline.close()
    registry = Registry((replace(faulty, expectations=()), sensor), env.pipeline.registry.topics)
    env.pipeline = Pipeline(env.settings, env.pipeline.engine, registry)


def finish_two_domains(env: Environment) -> None:
    env.drain()
    assert env.pipeline.count("raw_events") == 90
    assert env.pipeline.count("offset_gap") == 0
    assert_accounted_for(env.pipeline, env.sent)
