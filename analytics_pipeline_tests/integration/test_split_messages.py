"""Messages that carry samples of many times: every sample is a raw event of its own, in the hour of its time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.domains import Registry
from analytics_pipeline.errors import BelowRetentionError
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.storage import batches
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.offset_ranges import checksum
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, Sent, open_environment
from analytics_pipeline_tests.pipeline import Pipeline, reading

FIRST = hour_of(datetime.now(UTC)) - 4 * HOUR
HOURS = [FIRST, FIRST + HOUR, FIRST + 2 * HOUR]
TABLES = ("raw_events", "dead_letters")


def split_trace(payload: bytes) -> list[tuple[datetime, bytes]]:
    """A trace: what its samples share, and a list of [time, value]. Each sample becomes a plain reading."""
    trace = json.loads(payload)
    shared = trace["shared"]
    texts = [
        value.encode() if isinstance(value, str) else reading(time, value, **shared)
        for time, value in trace["samples"]
    ]
    times = [datetime.fromisoformat(time) for time, _ in trace["samples"]]
    return list(zip(times, texts, strict=True))


def trace(sensor: str, samples: Sequence[tuple[datetime, Any]]) -> bytes:
    return json.dumps(
        {"shared": {"sensor_id": sensor}, "samples": [[time.isoformat(), value] for time, value in samples]}
    ).encode()


def over_two_hours(sensor: str, hour: int, value: float = 1.0) -> bytes:
    """Three samples before the end of an hour, three after."""
    edge = HOURS[hour] + HOUR
    return trace(sensor, [(edge + timedelta(seconds=20 * n), value + n) for n in range(-3, 3)])


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, retention_days=0) as it:
        become(it, split=split_trace)
        yield it


def become(env: Environment, **changes: Any) -> None:
    """Another process, with the domain changed."""
    [sensor] = env.pipeline.registry.domains
    env.pipeline.close()
    registry = Registry((replace(sensor, **changes),), env.pipeline.registry.topics)
    env.pipeline = Pipeline(env.settings, env.pipeline.engine, registry)


def fill(env: Environment) -> list[Sent]:
    sent = env.send([over_two_hours("s-1", 0), over_two_hours("s-2", 1), over_two_hours("s-3", 0, 5.0)])
    sent += env.send([over_two_hours("s-4", 1)], 1)
    # Unreadable as a whole; one element of three that is no reading; nothing in it.
    bad = [b"no trace", trace("s-5", [(FIRST, 1.0), (FIRST, "no reading"), (HOURS[1], 2.0)]), trace("s-6", [])]
    sent += env.send(bad)
    env.drain()
    env.pipeline.settle()
    return sent


def rebuild(env: Environment, hour: datetime) -> None:
    rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, hour, "by hand")
    env.pipeline.settle()


def dead_letters(env: Environment) -> list[tuple[Any, ...]]:
    return env.pipeline.query('SELECT "offset", ordinal, reason, is_element FROM dead_letters ORDER BY 1, 2')


def test_each_element_is_a_raw_event_of_its_own_time_and_a_bad_one_a_dead_letter(env: Environment) -> None:
    sent = fill(env)
    rows = env.pipeline.query(
        "SELECT date_trunc('hour', event_time), count(*), min(ordinal), max(ordinal) FROM raw_events GROUP BY 1 "
        "ORDER BY 1"
    )
    assert rows == [(HOURS[0], 7, 0, 2), (HOURS[1], 13, 0, 5), (HOURS[2], 6, 3, 5)]
    assert dead_letters(env) == [
        (3, 0, "not_json", False),
        (4, 1, "not_json", True),
        (5, 0, "no_elements", False),
    ]
    assert env.pipeline.count("normalized_measurements") == 26
    sums = ", ".join(f"sum({column})::int" for column in ("messages", "raw_rows", "dead_letters"))
    assert env.pipeline.query(f"SELECT {sums} FROM ingest_batch") == [(len(sent), 26, 3)]


def test_a_checksum_of_the_originals_stays_with_the_batch(env: Environment) -> None:
    sent = fill(env)
    with connection(env.pipeline.engine) as conn:
        ids = [one.batch_id for one in batches.batches_after(conn, 0)]
        [ranges] = batches.read_ranges(conn, ids)
    parts = [[one for one in sent if one.partition == number] for number in (0, 1)]
    expected = [checksum([one.value for one in part], [one.offset for one in part]) for part in parts]
    assert ranges.checksum.tolist() == expected


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_hours_of_a_split_message_are_rebuilt_alone_and_in_any_order(env: Environment, order: tuple[int, ...]) -> None:
    fill(env)
    before = env.pipeline.snapshot()
    for number in order:
        rebuild(env, HOURS[number])
        assert env.pipeline.snapshot() == before


@pytest.mark.parametrize("hour", [0, 1, 2])
def test_elements_that_vanished_come_back_whichever_hour_is_rebuilt(env: Environment, hour: int) -> None:
    fill(env)
    before = env.pipeline.snapshot()
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM raw_events WHERE ordinal IN (1, 4)")
        cursor.execute("DELETE FROM dead_letters")
        conn.commit()
    rebuild(env, HOURS[hour])
    rebuild(env, hour_of(datetime.now(UTC)))  # where those without a time are
    for one in HOURS:
        rebuild(env, one)
    assert env.pipeline.snapshot() == before


def test_the_only_element_of_a_message_stays_an_element_when_it_is_rebuilt(env: Environment) -> None:
    env.send([trace("s-1", [(FIRST, "no reading")])])
    env.drain()
    assert dead_letters(env) == [(0, 0, "not_json", True)]
    rebuild(env, hour_of(datetime.now(UTC)))
    assert dead_letters(env) == [(0, 0, "not_json", True)]


def test_the_only_element_of_a_message_that_a_rebuild_rejects_comes_back(env: Environment) -> None:
    env.send([trace("s-1", [(FIRST, 1.0)])])
    env.drain()
    env.pipeline.settle()
    before = env.pipeline.snapshot()

    def broken(_: Any) -> datetime:
        raise OSError("no such zone")

    [sensor] = env.pipeline.registry.domains
    become(env, event_time=broken)
    rebuild(env, FIRST)
    assert dead_letters(env) == [(0, 0, "domain_error", True)]
    become(env, event_time=sensor.event_time)
    rebuild(env, hour_of(datetime.now(UTC)))
    assert env.pipeline.snapshot() == before


def test_with_the_retention_floor_between_its_hours_a_rebuild_changes_nothing(env: Environment) -> None:
    fill(env)
    with connection(env.pipeline.engine) as conn:
        floor = expire(conn, ["sensor"], HOURS[1] + timedelta(days=1), 1)
    assert floor.floor == HOURS[1]
    before = env.pipeline.snapshot(TABLES)
    assert sorted(env.pipeline.hours()) == HOURS[1:]
    with pytest.raises(BelowRetentionError):
        rebuild(env, HOURS[0])
    for hour in (HOURS[2], HOURS[1]):
        rebuild(env, hour)
        assert env.pipeline.snapshot(TABLES) == before


def test_elements_that_can_be_read_now_join_the_others(env: Environment) -> None:
    fill(env)

    def lenient(payload: bytes) -> list[tuple[datetime, bytes]]:
        if payload == b"no trace":
            return [(time, reading(time, 7.0, sensor_id="late")) for time in (FIRST, HOURS[2])]
        return split_trace(payload)

    become(env, split=lenient)
    rebuild(env, hour_of(datetime.now(UTC)))
    assert [one[0] for one in dead_letters(env)] == [4, 5]
    rows = env.pipeline.query('SELECT ordinal, event_time FROM raw_events WHERE "offset" = 3 ORDER BY 1')
    assert rows == [(0, FIRST), (1, HOURS[2])]


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        (lambda _: [(None, b"x")], "not_json"),
        (lambda _: [("today", reading(FIRST))], "domain_error"),
        (lambda _: [(FIRST + HOUR, reading(FIRST))], "domain_error"),
        (lambda _: [(FIRST, reading(FIRST).replace(b"mc-01", b"mc\x0001"))], "not_json"),
        (lambda _: [(FIRST, reading(FIRST).replace(b"mc-01", b"mc-\xff1"))], "not_utf8"),
        (lambda _: [(FIRST, b"")], "empty_value"),
        (lambda _: [(FIRST, "text")], "domain_error"),
        (lambda _: [FIRST], "domain_error"),
        (lambda _: None, "domain_error"),
        (lambda _: {}["samples"], "domain_error"),
        (lambda _: [(FIRST, b"x" * 2_000_000)], "too_large"),
        (lambda _: [(FIRST + timedelta(days=1), reading(FIRST + timedelta(days=1)))], "too_far_ahead"),
    ],
)
def test_whatever_a_split_gives_is_one_dead_letter_and_its_neighbours_land(
    env: Environment, split: Any, reason: str
) -> None:
    odd = b'{"odd": true}'
    become(env, split=lambda payload: split(payload) if payload == odd else split_trace(payload))
    env.send([over_two_hours("s-1", 0), odd, over_two_hours("s-2", 0)])
    assert env.drain() == (3, 12, 1)
    assert [(one[0], one[2]) for one in dead_letters(env)] == [(1, reason)]
    rebuild(env, hour_of(datetime.now(UTC)))
    assert [(one[0], one[2]) for one in dead_letters(env)] == [(1, reason)]
