"""Payloads that nobody asked for: each becomes one dead letter, or what the design says; its neighbours land."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.crashing_processes import drain_and_tell_memory
from analytics_pipeline_tests.environments import Environment, Sent, open_environment, process_context, run_process
from analytics_pipeline_tests.invariants import assert_accounted_for, assert_invariants, assert_settled
from analytics_pipeline_tests.pipeline import reading

RAW, NORMALIZED = "raw_events", "normalized_measurements"
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Bad:
    """A payload, the stage that refuses it, and the reason that people count by."""

    name: str
    make: Callable[[], bytes | None]
    reason: str
    stage: str = RAW


def text(**changes: Any) -> bytes:
    """A good reading but for some fields; NaN and Infinity as Python writes them."""
    return json.dumps(json.loads(reading(datetime.now(UTC))) | changes).encode()


def spliced(old: bytes, new: bytes) -> bytes:
    """A good reading with some of its bytes exchanged, for what no JSON library would write."""
    good = reading(datetime.now(UTC), 23.7, note="plain")
    assert good.count(old) == 1
    return good.replace(old, new)


def without(field: str) -> bytes:
    fields = json.loads(text())
    del fields[field]
    return json.dumps(fields).encode()


def at(stamp: str) -> bytes:
    return reading(stamp)


def ahead(step: timedelta) -> bytes:
    return reading(datetime.now(UTC) + step)


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


BAD = [
    Bad("not JSON", lambda: b"temperature is 23.7", "not_json"),
    Bad("half of a JSON object", lambda: text()[:-5], "not_json"),
    Bad("two JSON objects", lambda: text() * 2, "not_json"),
    Bad("a byte order mark", lambda: b"\xef\xbb\xbf" + text(), "not_json"),
    Bad("UTF-16", lambda: text().decode().encode("utf-16"), "not_json"),
    Bad("an empty value", lambda: b"", "empty_value"),
    Bad("a null value", lambda: None, "null_value"),
    Bad("white space", lambda: b" \n ", "not_json"),
    Bad("a list", lambda: b"[" + text() + b"]", "not_an_object"),
    Bad("a text", lambda: b'"temperature"', "not_an_object"),
    Bad("a number", lambda: b"23.7", "not_an_object"),
    Bad("null", lambda: b"null", "not_an_object"),
    Bad("invalid UTF-8 in a name", lambda: spliced(b'"mc-01"', b'"mc-\xff"'), "not_utf8"),
    Bad("invalid UTF-8 where nobody reads", lambda: spliced(b'"plain"', b'"\xff\xfe"'), "not_utf8"),
    Bad("half of a UTF-8 character at the end", lambda: spliced(b'"plain"', b'"plain\xc3"'), "not_utf8"),
    Bad("a surrogate in UTF-8", lambda: spliced(b'"plain"', b'"\xed\xa0\x80"'), "not_utf8"),
    Bad("a lone surrogate in a name", lambda: spliced(b'"mc-01"', b'"mc\\ud800"'), "lone_surrogate"),
    Bad("a lone surrogate where nobody reads", lambda: spliced(b'"plain"', b'"\\udc00"'), "lone_surrogate"),
    Bad("an escaped NUL in a name", lambda: text(machine_id="mc\x0001"), "nul_character", NORMALIZED),
    Bad("a raw NUL byte in a name", lambda: spliced(b'"mc-01"', b'"mc\x0001"'), "not_json"),
    Bad("a raw NUL byte where nobody reads", lambda: spliced(b'"plain"', b'"\x00"'), "not_json"),
    Bad("a raw NUL byte after the object", lambda: text() + b"\x00", "not_json"),
    Bad("no time", lambda: without("time"), "field_missing"),
    Bad("no value", lambda: without("value"), "field_missing", NORMALIZED),
    Bad("no machine", lambda: without("machine_id"), "field_missing", NORMALIZED),
    Bad("an empty object", lambda: b"{}", "field_missing"),
    Bad("an empty name", lambda: text(metric=""), "metric_missing", NORMALIZED),
    Bad("a name of 1 MB", lambda: text(sensor_id="s" * 1_000_000), "name_too_long", NORMALIZED),
    Bad("a value as text", lambda: text(value="23.7"), "field_invalid", NORMALIZED),
    Bad("a value as a truth", lambda: text(value=True), "field_invalid", NORMALIZED),
    Bad("no value but null", lambda: text(value=None), "field_invalid", NORMALIZED),
    Bad("a list of values", lambda: text(value=[23.7]), "field_invalid", NORMALIZED),
    Bad("a value as an object", lambda: text(value={"v": 23.7}), "field_invalid", NORMALIZED),
    Bad("a name as a number", lambda: text(machine_id=17), "field_invalid", NORMALIZED),
    Bad("a time as a number", lambda: text(time=1_767_225_600), "field_invalid"),
    Bad("a time as null", lambda: text(time=None), "field_invalid"),
    Bad("a time in words", lambda: at("yesterday at noon"), "field_invalid"),
    Bad("NaN", lambda: text(value=float("nan")), "not_json"),
    Bad("Infinity", lambda: text(value=float("inf")), "not_json"),
    Bad("minus Infinity", lambda: text(value=float("-inf")), "not_json"),
    Bad("NaN where nobody reads", lambda: text(note=float("nan")), "not_json"),
    Bad("1e400", lambda: spliced(b"23.7", b"1e400"), "field_invalid", NORMALIZED),
    Bad("an integer of 5,000 digits", lambda: spliced(b"23.7", b"9" * 5000), "field_invalid", NORMALIZED),
    Bad("10,000 levels of lists", lambda: deep(10_000), "not_an_object"),
    Bad("10,000 levels in a value", lambda: spliced(b"23.7", deep(10_000)), "nested_too_deep"),
    Bad("10,000 levels in a time", lambda: text(time="?").replace(b'"?"', deep(10_000)), "field_invalid"),
    Bad("10,000 levels never closed", lambda: spliced(b"23.7", b'{"v":' * 10_000), "nested_too_deep"),
    Bad("10 MB", lambda: text(note="x" * (10 * MEBIBYTE)), "too_large"),
    Bad("10 MB of nothing", lambda: bytes(10 * MEBIBYTE), "too_large"),
    Bad("year 1", lambda: at("0001-01-01T00:00:00Z"), "before_partitions_start"),
    Bad("year 1, east of Greenwich", lambda: at("0001-01-01T00:00:00+14:00"), "before_partitions_start"),
    Bad("year 9999, west of Greenwich", lambda: at("9999-12-31T23:59:59-14:00"), "too_far_ahead"),
    Bad("year 1,000,000", lambda: at("1000000-01-01T00:00:00Z"), "field_invalid"),
    Bad("1 h ahead", lambda: ahead(HOUR), "too_far_ahead"),
    Bad("11 min ahead", lambda: ahead(timedelta(minutes=11)), "too_far_ahead"),
    Bad("the largest double", lambda: text(value=1.7976931348623157e308), "value_out_of_range", NORMALIZED),
    Bad("a value twice", lambda: text()[:-1] + b', "value": 24}', "duplicate_key", NORMALIZED),
    Bad("the same value twice", lambda: text()[:-1] + b', "value": 23.7}', "duplicate_key", NORMALIZED),
    Bad("a time twice", lambda: text()[:-1] + b',"time":"2026-01-01T00:00:00Z"}', "duplicate_key", NORMALIZED),
    Bad("a unit twice", lambda: text(unit="C")[:-1] + b', "unit": "F"}', "duplicate_key", NORMALIZED),
]


@dataclass(frozen=True)
class Odd:
    """A payload that looks strange, and is a measurement."""

    name: str
    make: Callable[[], bytes]


ODD = [
    Odd("fields that nobody knows", lambda: text(note="x", tags={"value": [1, None], "time": "?"})),
    Odd("a field that nobody knows twice", lambda: text(note="x")[:-1] + b', "note": "y"}'),
    Odd("1e400 where nobody reads", lambda: spliced(b'"plain"', b"1e400")),
    Odd("an escaped NUL where nobody reads", lambda: spliced(b'"plain"', b'"\\u0000"')),
    Odd("a surrogate pair", lambda: spliced(b'"plain"', b'"\\ud83d\\ude00"')),
    Odd("names in Thai and with a comma", lambda: text(machine_id='เตาเผา, "1"\\\n', factory_id="\U0001f3ed")),
    Odd("300 levels where nobody reads", lambda: spliced(b'"plain"', deep(300))),
    Odd("an integer beyond 64 bits", lambda: text(value=2**70)),
    Odd("the largest value that is taken", lambda: text(value=1e150)),
    Odd("too small for a double", lambda: spliced(b"23.7", b"1e-400")),
    Odd("minus zero", lambda: text(value=-0.0)),
    Odd("almost 1 MiB", lambda: text(note="x" * (MEBIBYTE - 1000))),
    Odd("9 min ahead", lambda: ahead(timedelta(minutes=9))),
    Odd("the partitions' first microsecond", lambda: at("2025-01-01T00:00:00Z")),
]


@dataclass
class BadInput:
    """Every payload was sent between two good ones, all in one batch, and everything was computed."""

    env: Environment
    drained: tuple[int, int, int]
    sent_by_name: dict[str, Sent]


@pytest.fixture(scope="module")
def bad_input(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[BadInput]:
    limits = {"drain_batch_bytes": 256 * MEBIBYTE, "unknown_topics": 1}
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, **limits) as env:
        sent_by_name: dict[str, Sent] = {}
        for number, one in enumerate([*BAD, *ODD]):
            partition, rejected = number % 2, isinstance(one, Bad)
            payload = one.make() if rejected else one.make().replace(b"s-001", one.name.encode())
            env.send([text(sensor_id=f"before {one.name}")], partition)
            sent_by_name[one.name] = env.send([payload], partition, rejected=rejected)[0]
            env.send([text(sensor_id=f"after {one.name}")], partition)
        drained = env.drain()
        env.pipeline.settle()
        yield BadInput(env, drained, sent_by_name)


@pytest.fixture(scope="module")
def env(bad_input: BadInput) -> Environment:
    """The environment of all those payloads: further messages share its partitions with them."""
    return bad_input.env


def dead_letters_at(env: Environment, one: Sent) -> list[tuple[Any, ...]]:
    return env.pipeline.query(
        "SELECT stage, reason, payload, hour, error, domain, key, headers FROM dead_letters "
        "JOIN domain_number USING (domain_id) "
        'WHERE topic = %s AND epoch = 1 AND partition = %s AND "offset" = %s',
        *(one.topic, one.partition, one.offset),
    )


def values_of(env: Environment, sensor_id: str) -> list[float]:
    rows = env.pipeline.query(
        "SELECT m.value FROM normalized_measurements m JOIN measurement_series s USING (series_id) "
        "WHERE s.sensor_id = %s ORDER BY m.event_time",
        sensor_id,
    )
    return [row[0] for row in rows]


def test_all_of_it_goes_through_in_one_batch_and_as_much_comes_out_as_went_in(bad_input: BadInput) -> None:
    rejected = sum(bad.stage == RAW for bad in BAD)
    messages = 3 * (len(BAD) + len(ODD))
    assert bad_input.drained == (messages, messages - rejected, rejected)
    assert bad_input.env.pipeline.count("ingest_batch") == 1


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_payload_is_one_dead_letter_and_its_neighbours_land(bad_input: BadInput, bad: Bad) -> None:
    env, sent = bad_input.env, bad_input.sent_by_name[bad.name]
    [(stage, reason, kept, hour, error, domain, *_)] = dead_letters_at(env, sent)
    assert (stage, reason, domain) == (bad.stage, bad.reason, "sensor")
    assert (None if kept is None else bytes(kept)) == sent.value
    if stage == RAW:  # no event time: the Kafka timestamp says where people find it
        assert hour == hour_of(datetime.fromtimestamp(sent.kafka_time_ms / 1000, UTC))
    assert error
    assert values_of(env, f"before {bad.name}") == values_of(env, f"after {bad.name}") == [23.7]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_an_odd_payload_that_can_be_read_is_a_measurement(bad_input: BadInput, odd: Odd) -> None:
    sent = bad_input.sent_by_name[odd.name]
    assert dead_letters_at(bad_input.env, sent) == []
    assert values_of(bad_input.env, odd.name) == [json.loads(sent.value or b"")["value"]]


def test_an_unknown_topic_is_all_dead_letters(env: Environment) -> None:
    unknown = env.settings.kafka_topics[1]
    payloads = [text(), b"not even JSON", None, b"\xff\x00"]
    sent = [env.send([payload], topic=unknown, rejected=True)[0] for payload in payloads]
    assert env.drain() == (4, 0, 4)
    for one in sent:
        [(stage, reason, kept, _, error, domain, *_)] = dead_letters_at(env, one)
        assert (stage, reason, domain) == (RAW, "unknown_topic", "unknown")
        assert (None if kept is None else bytes(kept)) == one.value
        assert unknown in error
    assert_settled(env.pipeline)  # dead letters of the drain ask for no work


@pytest.mark.parametrize(
    ("zone", "utc_hours"), [(None, 0), ("Asia/Bangkok", 7), ("Asia/Kolkata", 5.5), ("America/New_York", -5)]
)
def test_a_time_without_a_zone_is_in_the_zone_of_its_domain(
    postgres_server: DatabaseServer, kafka_broker: KafkaServer, zone: str | None, utc_hours: float
) -> None:
    zones = {"domain_time_zones": {"sensor": zone}} if zone else {}
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, **zones) as env:
        env.send([reading("2026-01-15T12:00:00"), reading("2026-01-15T12:00:01+01:00")])
        assert env.drain() == (2, 2, 0)
        times = [row[0] for row in env.pipeline.query('SELECT event_time FROM raw_events ORDER BY "offset"')]
        noon = datetime(2026, 1, 15, 12, tzinfo=UTC)
        assert times == [noon - timedelta(hours=utc_hours), noon - timedelta(seconds=3599)]


@pytest.mark.parametrize("order", ["one batch", "two batches", "two batches, the later one first"])
def test_of_the_same_identity_twice_the_later_message_wins(env: Environment, order: str) -> None:
    time, sensor = datetime.now(UTC), f"twice in {order}"
    early, late = (int(time.timestamp() * 1000) - ms for ms in (2000, 1000))
    first = (reading(time, 1.0, sensor_id=sensor), early)
    second = (reading(time, 2.0, sensor_id=sensor), late)
    for payload, kafka_ms in (second, first) if order.endswith("first") else (first, second):
        env.send([payload], timestamp=kafka_ms)
        if order != "one batch":
            env.drain()
            env.normalize()
    env.drain()
    env.normalize()
    assert values_of(env, sensor) == [2.0]
    raw = env.pipeline.query("SELECT count(*) FROM raw_events WHERE payload LIKE %s", f'%"{sensor}"%')
    assert raw == [(2,)]


KEYS_AND_HEADERS: list[tuple[str, bytes | None, list[tuple[str, bytes | None]] | None, Any]] = [
    ("a binary key", b"\x00\xff\xfe", None, None),
    ("an empty key", b"", None, None),
    ("a key of 1 MB", b"k" * MEBIBYTE, None, None),
    ("a name three times", None, [("a", b"1"), ("b", None), ("a", b"2"), ("a", b"1")],
     [["a", "1"], ["b", None], ["a", "2"], ["a", "1"]]),
    ("binary and empty headers", b"k", [("bin", b"\xff\x00"), ("nul", b"a\x00b"), ("", b"")],
     [["bin", {"hex": "ff00"}], ["nul", {"hex": "610062"}], ["", ""]]),
    ("text that reads like an escape", None, [("u", b"\\u0000"), ("v", b"\\ud800")],
     [["u", "\\u0000"], ["v", "\\ud800"]]),
    ("a header of 1 MB", None, [("big", b"x" * MEBIBYTE)], [["big", "x" * MEBIBYTE]]),
    ("1,000 headers", None, [(f"h{n}", b"v") for n in range(1000)], [[f"h{n}", "v"] for n in range(1000)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "headers", "stored"), [row[1:] for row in KEYS_AND_HEADERS], ids=[row[0] for row in KEYS_AND_HEADERS]
)
def test_strange_keys_and_headers_are_kept_with_good_and_bad_messages(
    env: Environment, key: bytes | None, headers: Any, stored: Any
) -> None:
    good = env.send([text()], key=key, headers=headers)[0]
    bad = env.send([b"bad"], key=key, headers=headers, rejected=True)[0]
    worse = env.send([text(value="23.7")], key=key, headers=headers, rejected=True)[0]
    assert env.drain() == (3, 2, 1)
    env.normalize()
    kept = env.pipeline.query(
        'SELECT key, headers FROM raw_events WHERE topic = %s AND partition = 0 AND "offset" = %s',
        env.topic,
        good.offset,
    )
    rejected = [dead_letters_at(env, one)[0][-2:] for one in (bad, worse)]
    for one in (*kept, *rejected):
        assert (None if one[0] is None else bytes(one[0])) == key
        assert one[1] == stored


@pytest.mark.parametrize(
    "kafka_ms", [1, 86_400_000, 253_402_300_799_999, 253_402_300_800_000, 10**16, 2**63 - 1], ids=str
)
def test_an_absurd_kafka_timestamp_stops_nothing(
    postgres_server: DatabaseServer, kafka_broker: KafkaServer, kafka_ms: int
) -> None:
    if kafka_broker.embedded is None and kafka_ms > 2e12:
        pytest.skip("Apache Kafka refuses timestamps more than an hour ahead, as it should")
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as env:
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        env.send([text(sensor_id="a"), text(sensor_id="b")], timestamp=kafka_ms)
        env.send([b"bad"], timestamp=kafka_ms, rejected=True)
        env.send([text(sensor_id="c")], 1, timestamp=now_ms)
        assert env.drain() == (4, 3, 1)
        env.normalize()
        assert [values_of(env, name) for name in "abc"] == [[23.7]] * 3
        newest = env.pipeline.query("SELECT max(last_kafka_time) FROM kafka_offset")[0][0]
        assert newest <= datetime.now(UTC) + HOUR, "one such message would make every other partition idle"
        env.pipeline.settle()
        assert_settled(env.pipeline)
        assert_accounted_for(env.pipeline, env.sent)


def test_after_all_of_it_every_invariant_holds(env: Environment) -> None:
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


def test_200_MB_of_payloads_that_are_too_large_are_drained_in_bounded_memory(
    postgres_server: DatabaseServer, kafka_broker: KafkaServer
) -> None:
    large = 20
    with open_environment(postgres_server, kafka_broker.bootstrap_servers) as env:
        env.pipeline.close()
        for _ in range(large):
            env.send([bytes(10 * MEBIBYTE)], rejected=True)
            env.send([text()])
        told = process_context().Queue()
        assert run_process(drain_and_tell_memory, env.settings, env.topics, 2 * large, told) == 0
        before_mib, peak_mib = told.get(timeout=10)
        env.renew()
        assert env.waiting() == []
        assert env.pipeline.count("dead_letters") == large
        assert env.pipeline.query("SELECT DISTINCT octet_length(payload) FROM dead_letters") == [
            (10 * MEBIBYTE,)
        ]
        assert peak_mib < 768, f"{before_mib} MiB before, {peak_mib} MiB at the peak"
