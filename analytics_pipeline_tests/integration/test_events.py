"""Events: live equals the rebuild and the naive reference, for any split, order, duplication, lateness and slices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import psycopg2
import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.against_reference import assert_events_equal_reference, event_messages_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, events, open_domains, topic_of, with_domain
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_live_equals_rebuild, assert_settled
from analytics_pipeline_tests.pipeline import Pipeline, reading

HOURS = 3
START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR
ALL = [START + HOUR * number for number in range(HOURS)]


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_events: Environment) -> Environment:
    begin_anew(opened_events, partitions=2)
    return opened_events


def send(env: Environment, values: Sequence[bytes], kafka_s: int = 0, partition: int = 0, **more: bool) -> None:
    """What is sent with a greater ``kafka_s`` wins over what has the same identity."""
    stamp = int((START + 10 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    env.send(values, partition, topic=topic_of(env, "events"), timestamp=stamp, **more)


def assert_right(env: Environment) -> None:
    """The tables are those of the reference, they are counted, and a rebuild changes no bit."""
    assert_settled(env.pipeline)
    messages = event_messages_of([one for one in env.sent if b'"what"' in one.value])
    assert_events_equal_reference(env.pipeline, messages)
    _assert_counted(env, len(messages))
    assert_live_equals_rebuild(env.pipeline)
    _assert_counted(env, len(messages))


def _assert_counted(env: Environment, messages: int) -> None:
    """Every event that was sent is stored, or is counted as one that lost."""
    assert_content_is_counted(env.pipeline)
    told = env.pipeline.query(
        "SELECT coalesce(sum(rows), 0)::int, coalesce(sum(rows_superseded), 0)::int FROM partition_status "
        "WHERE asset = 'normalized_measurements' AND domain = 'events'"
    )
    assert sum(told[0]) == messages


def some_events(rng: random.Random, count: int) -> list[bytes]:
    """Few ids, times and contents, so that identities meet, also in other hours."""
    found = []
    for _ in range(count):
        more: dict[str, object] = {"value": rng.choice([None, 0.1, 0.2, 1e9 + 0.1, -0.0, rng.random()])}
        if rng.random() < 0.5:
            more["id"] = f"e-{rng.randrange(12)}"
        if rng.random() < 0.3:
            more["properties"] = {"b": rng.randrange(2), "a": ["ü", None]}
        if rng.random() < 0.2:
            more["tenant"] = None
        minute = rng.choice([0, 1, 59, 60, 61, 119, 120, rng.randrange(60 * HOURS)])
        time = START + timedelta(minutes=minute, microseconds=rng.choice([0, 1, 59_999_999]))
        found.append(events.message(time, rng.choice("ab"), rng.choice(["x", "y"]), **more))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_any_split_order_duplication_and_lateness_gives_the_reference(env: Environment, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 3, 5])):
        its = some_events(rng, rng.choice([1, 10, 60]))
        for partition in range(2):
            send(env, [*its[partition::2], *rng.sample(its, len(its) // 5)], rng.randrange(3), partition)
        env.drain()
        if rng.random() < 0.6:
            _settle_in_some_order(env, rng)
    env.pipeline.settle()
    assert_right(env)


def _settle_in_some_order(env: Environment, rng: random.Random) -> None:
    """Some of the pending work, in slices of some hours."""
    for asset in rng.choices(DERIVED[:2], k=4):
        env.pipeline.deriver.derive_hours(asset, rng.sample(ALL, rng.randrange(1, 4)), "incremental", "test")


def test_a_slice_that_crashes_before_its_commit_leaves_nothing_and_is_done_again(env: Environment) -> None:
    rng = random.Random(3)
    for _ in range(2):
        send(env, some_events(rng, 40))
        env.drain()
        for asset in DERIVED[:2]:
            stored = env.pipeline.snapshot()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(env.pipeline.deriver.protocol, "_commit", _crash)
                with pytest.raises(psycopg2.OperationalError, match="gone"):
                    env.pipeline.deriver.derive_hours(asset, ALL, "incremental", "test")
            assert env.pipeline.snapshot() == stored
            env.pipeline.deriver.derive_hours(asset, ALL, "incremental", "test")
    env.pipeline.settle()
    assert_right(env)


def _crash(_connection: object) -> None:
    raise psycopg2.OperationalError("the server is gone")


# ---------------------------------------------------------------------- one id in several hours


def test_an_id_seen_in_several_hours_is_the_last_one_whatever_the_order_of_arrival(env: Environment) -> None:
    for number, order in enumerate(permutations(range(3))):
        for at in order:
            message = events.message(ALL[at] + timedelta(minutes=5), "a", id=f"e-{number}", value=float(at))
            send(env, [message], kafka_s=at)
            env.drain()
            env.pipeline.settle()
    assert env.pipeline.query("SELECT event_time, count(*) FROM normalized_events GROUP BY 1") == [
        (ALL[2] + timedelta(minutes=5), 6)
    ]
    assert_right(env)


def test_an_id_that_moves_within_its_hour_leaves_nothing_behind(env: Environment) -> None:
    for minute in (5, 50, 20):
        send(env, [events.message(START + timedelta(minutes=minute), "a", id="e")], kafka_s=minute)
        env.drain()
        env.pipeline.settle()
    assert_right(env)


def test_an_event_that_lost_to_one_in_an_expired_hour_is_the_event_again(env: Environment) -> None:
    for at in (0, 1):
        send(env, [events.message(ALL[at] + timedelta(minutes=5), "a", id="e")], kafka_s=-at)
        send(env, [events.message(ALL[at] + timedelta(minutes=5), "a", id=f"own-{at}")])
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT event_time FROM normalized_events WHERE event_id = 'e'") == [
        (ALL[0] + timedelta(minutes=5),)
    ]
    with connection(env.pipeline.engine) as conn:
        expire(conn, ["events", "press"], ALL[1] + timedelta(days=1), 1)
    env.pipeline.settle()
    assert env.pipeline.query("SELECT event_time FROM normalized_events WHERE event_id = 'e'") == [
        (ALL[1] + timedelta(minutes=5),)
    ]
    assert_live_equals_rebuild(env.pipeline)


def test_an_id_that_a_rebuild_takes_from_its_hour_is_the_event_of_another_again(env: Environment) -> None:
    for at, what in enumerate("ab"):
        send(env, [events.message(ALL[at] + timedelta(minutes=5), what, id="e")], kafka_s=-at)
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT event_time FROM normalized_events") == [(ALL[0] + timedelta(minutes=5),)]
    changed = with_domain(env, replace(events.DOMAIN, events=lambda its: events.of(its) if its.what == "b" else ()))
    assert not changed.deriver.derive_hours("normalized_measurements", ALL[:1], "full", "test").errors
    changed.settle()
    assert env.pipeline.query("SELECT event_time FROM normalized_events") == [(ALL[1] + timedelta(minutes=5),)]
    assert env.pipeline.query("SELECT event_time FROM event_identities") == [(ALL[1] + timedelta(minutes=5),)]
    assert_live_equals_rebuild(changed)
    changed.close()


def test_two_slices_that_meet_one_id_at_once_leave_it_in_one_hour(env: Environment) -> None:
    for winner in (0, 1):
        times = [ALL[at] + timedelta(minutes=5) for at in (0, 1)]
        for at, time in enumerate(times):
            send(env, [events.message(time, "a", id=f"e-{winner}")], kafka_s=10 * winner + (at == winner))
        env.drain()
        holding, other = Gate(), Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
        before(env.pipeline.deriver.protocol, "_works", holding.hold)  # its snapshot is open
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(_normalize, env.pipeline.deriver, ALL[0])
            holding.wait_until_reached()
            _normalize(other.deriver, ALL[1])
            holding.let_go()
            running.result(PATIENCE_S)
        other.close()
        env.renew()
        env.pipeline.settle()
    assert_right(env)


def _normalize(deriver: Deriver, hour: datetime) -> None:
    done = deriver.derive_hours("normalized_measurements", [hour], "incremental", "test")
    assert not done.errors


# ---------------------------------------------------------------------- dead letters, other domains


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("nul_character", {"properties": {"a": "x\0y"}}),
        ("nul_character", {"entity": "x\0y"}),
        ("name_too_long", {"user": "u" * 257}),
        ("name_empty", {"entity": ""}),
        ("event_id_too_long", {"id": "ü" * 101}),
        ("properties_too_long", {"properties": {"a": "x" * 300_000}}),
        ("value_out_of_range", {"value": 1e200}),
    ],
)
def test_an_event_that_cannot_be_stored_is_a_dead_letter(
    env: Environment, reason: str, fields: dict[str, object]
) -> None:
    good = events.message(START, "a", properties={"text": "\\u0000 \\ ü \" \n, is fine"}, user='a "quoted", name')
    send(env, [good])
    send(env, [events.message(START, **{"what": "a", "entity": "x"} | fields)], rejected=True)
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT reason FROM dead_letters") == [(reason,)]
    assert env.pipeline.query("SELECT properties->>'text' FROM analytics_event") == [("\\u0000 \\ ü \" \n, is fine",)]
    assert_right(env)


def test_a_domain_whose_events_fail_does_not_hold_back_another(env: Environment) -> None:
    bad = [events.message(START + timedelta(seconds=n), "a", entity="") for n in range(150)]
    send(env, bad, rejected=True)
    env.send([reading(START, 20.0)], topic=topic_of(env, "press"))
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT asset, status FROM partition_state WHERE status <> 'open'") == [
        ("normalized_measurements", "quarantined")
    ]
    assert env.pipeline.count("normalized_events") == 0
    assert env.pipeline.count("window_aggregates") == 4


def test_a_payload_may_give_samples_and_events(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> None:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [events.BOTH]) as env:
        stamps = [START + timedelta(minutes=n) for n in range(5)]
        env.send([events.message(time, "a", value=float(n), gauge="g") for n, time in enumerate(stamps)])
        env.send([events.message(START, "b", value=2.0, gauge="g\0", id="e")], rejected=True)
        env.drain()
        env.pipeline.settle()
        assert env.pipeline.count("normalized_measurements") == 5
        assert env.pipeline.query("SELECT reason, ordinal FROM dead_letters") == [("nul_character", 0)]
        rolled = env.pipeline.query(
            "SELECT event_type, count_n, sum_val, avg_val FROM analytics_event_rollup WHERE window_s = 3600 ORDER BY 1"
        )
        assert rolled == [("a", 5, 10.0, 2.0), ("b", 1, 2.0, 2.0)]
        assert_content_is_counted(env.pipeline)
        assert_live_equals_rebuild(env.pipeline)
