"""Counters: live equals the rebuild and the naive reference, for any order and slices, to the bit."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.records import DERIVED, HOUR, hour_of, to_us
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.counter_invariants import (
    assert_counters_equal_reference,
    counter_messages_of,
    stored_increments,
)
from analytics_pipeline_tests.domains import begin_anew, counters, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_live_equals_rebuild, assert_settled
from analytics_pipeline_tests.pipeline import Pipeline, reading

HOURS = 8
START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR
ALL = [START + HOUR * number for number in range(HOURS)]
LARGEST = 2**63 - 1

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_counters: Environment) -> Environment:
    begin_anew(opened_counters)
    return opened_counters


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def send(env: Environment, *values: bytes, kafka_s: int = 0, rejected: bool = False) -> None:
    """What is sent with a greater ``kafka_s`` wins over what has the same identity."""
    stamp = int((START + 20 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    env.send(values, topic=topic_of(env, "counters"), timestamp=stamp, rejected=rejected)
    env.drain()


def show(env: Environment, minutes: float, count: Any, counter: str = "pieces", kafka_s: int = 0) -> None:
    """One reading, computed at once."""
    send(env, counters.message(at(minutes), count, counter=counter), kafka_s=kafka_s)
    env.pipeline.settle()


def assert_right(env: Environment) -> None:
    """The tables are those of the reference, they are counted, and a rebuild changes no bit."""
    assert_settled(env.pipeline)
    assert_counters_equal_reference(env.pipeline, counter_messages_of(sent(env)))
    assert_content_is_counted(env.pipeline)
    assert_live_equals_rebuild(env.pipeline)
    assert_content_is_counted(env.pipeline)


def sent(env: Environment) -> list[Any]:
    return [one for one in env.sent if one.topic == topic_of(env, "counters")]


def hourly(env: Environment) -> list[tuple[Any, ...]]:
    return env.pipeline.query(
        "SELECT bucket_start, increment, reason FROM counter_increments WHERE window_s = 3600 ORDER BY 1"
    )


# ---------------------------------------------------------------------- what is counted


def test_what_a_counter_does_is_told_apart_and_counted(env: Environment) -> None:
    shown = [(0, 900), (1, 950), (2, 990), (3, 20), (4, 60), (5, 10), (6, 500), (7, 501)]
    send(env, *(counters.message(at(minute), count) for minute, count in shown))
    env.pipeline.settle()
    ((key, found),) = stored_increments(env.pipeline, 3600).items()
    assert key == (to_us(START), ("l-1", "pieces"))
    assert found[:8] == (50 + 40 + 30 + 40 + 10 + 1, None, 8, 1, 1, 1, 2, 0)
    assert_right(env)


def test_master_data_says_where_the_counter_of_a_machine_rolls_over_from_a_time_on(env: Environment) -> None:
    shown = [(10, 99_990), (20, 5), (70, 99_995), (80, 7)]
    send(env, *(counters.message(at(minute), count, counter="coins") for minute, count in shown))
    env.pipeline.settle()
    undeclared = [(ALL[0], 5, None), (ALL[1], 99_990 + 7, None)]
    assert hourly(env) == undeclared, "the falls are resets: nobody says where it begins again"
    edit(
        env,
        "INSERT INTO analytics_counter_limits (machine_id, metric, modulus, valid_from) "
        "VALUES ('l-1', 'coins', 100000, %s), ('l-2', 'coins', 99999, '-infinity')",
        ALL[1],
    )
    env.pipeline.settle()
    assert hourly(env) == [undeclared[0], (ALL[1], 99_990 + 12, None)], "not before it holds"
    edit(env, "UPDATE analytics_counter_limits SET valid_from = '-infinity' WHERE machine_id = 'l-1'")
    env.pipeline.settle()
    assert hourly(env) == [(ALL[0], 15, None), (ALL[1], 99_990 + 12, None)]
    assert env.pipeline.query("SELECT sum(roll_overs) FROM counter_increments WHERE window_s = 3600") == [(2,)]
    assert_settled(env.pipeline)
    assert_live_equals_rebuild(env.pipeline)


def edit(env: Environment, statement: str, *values: Any) -> None:
    """A person edits master data."""
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(statement, values)
        conn.commit()


def test_an_increment_belongs_to_the_window_of_the_later_reading(env: Environment) -> None:
    show(env, 59.9, 100)
    show(env, 60.5, 130)
    assert hourly(env) == [(ALL[0], None, "first_reading"), (ALL[1], 30, None)]
    assert_right(env)


def test_the_last_reading_is_carried_in_from_any_age(env: Environment) -> None:
    show(env, -60 * 24 * 40, 100)
    show(env, 450, 130)
    assert hourly(env)[1:] == [(ALL[7], 30, None)]
    assert stored_increments(env.pipeline, 60)[to_us(at(450)), ("l-1", "pieces")].gaps_spanned == 1
    assert_right(env)


def test_counts_beyond_what_a_float_holds_are_exact(env: Environment) -> None:
    first = 2**53 + 1
    for minute, count in enumerate([first, first + 1, first + 4, 2**62 + 1, 2**62 + 2, LARGEST]):
        show(env, minute, count, "coins")
    assert hourly(env) == [(ALL[0], LARGEST - first, None)]
    assert env.pipeline.query("SELECT last_reading FROM analytics_counter WHERE window_s = 3600") == [(LARGEST,)]
    assert_right(env)


def test_a_sum_that_no_int64_holds_is_unknown(env: Environment) -> None:
    for minute, count in enumerate([0, LARGEST, 0, 1]):
        show(env, minute, count, "coins")
    assert hourly(env) == [(ALL[0], None, "overflow")]
    assert_right(env)


def test_the_view_says_whose_counter_it_is_and_whether_more_may_come(env: Environment) -> None:
    for minute, count in ((50, 100), (51, 130), (200, 150)):
        show(env, minute, count)
    view = (
        "SELECT bucket_end - bucket_start, domain, machine_id, metric, unit, increment, reason, readings, state "
        "FROM analytics_counter WHERE window_s = 3600 ORDER BY bucket_start"
    )
    whose = (HOUR, "counters", "l-1", "pieces", "1")
    assert env.pipeline.query(view) == [(*whose, 30, None, 2, "final"), (*whose, 20, None, 1, "provisional")]
    show(env, 51, 110, kafka_s=1)
    assert env.pipeline.query(view) == [(*whose, 10, None, 2, "revised 1"), (*whose, 40, None, 1, "provisional")]
    assert_right(env)


# ---------------------------------------------------------------------- late, out of order, replaced


@pytest.mark.parametrize("later", [1.2, 8, 70, 400])
def test_a_reading_that_comes_late_changes_the_window_of_the_next_one(env: Environment, later: float) -> None:
    show(env, 50, 100)
    show(env, 50 + later, 130)
    show(env, 51, 120)  # between both
    show(env, 40, 90)  # before both
    assert_right(env)


def test_a_reading_that_is_replaced_changes_the_window_of_the_next_one(env: Environment) -> None:
    for minute, count in ((50, 100), (200, 130), (350, 150)):
        show(env, minute, count)
    show(env, 50, 110, kafka_s=1)
    assert hourly(env) == [(ALL[0], None, "first_reading"), (ALL[3], 20, None), (ALL[5], 20, None)]
    assert_right(env)


def test_a_change_ends_where_the_last_reading_is_as_it_was(env: Environment) -> None:
    for minute, count in ((50, 100), (51, 101), (200, 130)):
        show(env, minute, count)
    send(env, counters.message(at(40), 90))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    env.pipeline.deriver.derive_hours("window_aggregates", ALL, "incremental", "test")
    assert env.pipeline.query("SELECT hour FROM pending_work WHERE asset = 'window_aggregates'") == []
    assert_right(env)


def test_a_rebuild_that_loses_the_last_reading_changes_the_next_hour(env: Environment) -> None:
    for minute, count in ((50, 100), (51, 101), (200, 130)):
        show(env, minute, count)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM raw_events WHERE event_time = %s", (at(51),))
        conn.commit()
    env.pipeline.rebuild(ALL[:1])
    env.pipeline.settle()
    assert hourly(env) == [(ALL[0], None, "first_reading"), (ALL[3], 30, None)]


def test_an_hour_of_a_slice_that_loses_its_readings_leaves_those_before_it(env: Environment) -> None:
    """Between both hours of the slice, and before them, are others."""
    for minute, count in ((10, 100), (70, 110), (200, 130)):
        show(env, minute, count)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM raw_events WHERE event_time = %s", (at(70),))
        conn.commit()
    for asset in DERIVED[:2]:
        assert not env.pipeline.deriver.derive_hours(asset, [ALL[1], ALL[3]], "full", "test").errors
    assert hourly(env) == [(ALL[0], None, "first_reading"), (ALL[3], 30, None)]
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize("seed", range(12))
def test_any_order_split_duplication_and_composition_gives_the_reference(env: Environment, seed: int) -> None:
    rng = random.Random(seed)
    for step in range(rng.choice([1, 4, 8])):
        send(env, *_readings(rng), kafka_s=rng.randrange(3))
        if rng.random() < 0.6:
            _some_work(env, rng)
        if rng.random() < 0.2:
            env.pipeline.rebuild(rng.sample(ALL, 2))
        if step == 2:
            env.renew()
    env.pipeline.settle()
    assert_right(env)


def _readings(rng: random.Random) -> list[bytes]:
    """At few times, so that identities meet: at the edges of windows and hours; and runs of a steady pace."""
    found = []
    for _ in range(rng.choice([1, 5, 20])):
        minute = rng.choice([0, 59, 60, 61, 120, rng.randrange(60 * HOURS)])
        moment = at(minute) + timedelta(microseconds=rng.choice([0, 1, 59_999_999]))
        count = rng.choice([0, 1, 5, 890, 900, 999, 1000, rng.randrange(1000), LARGEST])
        found.append(_reading(rng, moment, count))
    if rng.random() < 0.5:
        begin, step, line = rng.randrange(60 * HOURS), rng.choice([0.1, 1, 17, 90]), rng.choice(["l-1", "l-2"])
        shown = counters.with_resets((rng.randrange(30) for _ in range(40)), 1000)
        times = [at(begin + step * number) for number in range(40)]
        found += [
            counters.message(time, count, line) for time, count in zip(times, shown, strict=True) if time < ALL[-1]
        ]
    return found + rng.sample(found, len(found) // 3)


def _reading(rng: random.Random, moment: datetime, count: int) -> bytes:
    line, counter = rng.choice(["l-1", "l-2"]), rng.choice(["pieces", "strokes", "cycles", "coins"])
    return counters.message(moment, count, line, counter)


def _some_work(env: Environment, rng: random.Random) -> None:
    """Some of the pending work, in slices of some hours."""
    for _ in range(rng.randrange(1, 6)):
        asset = rng.choice(["normalized_measurements", "window_aggregates"])
        hours = rng.sample(ALL, rng.randrange(1, HOURS + 1))
        done = env.pipeline.deriver.derive_hours(asset, hours, "incremental", "test")  # type: ignore[arg-type]
        assert not done.errors


# ---------------------------------------------------------------------- at once


@pytest.mark.parametrize("method", ["_works", "_gate", "_commit"])
@pytest.mark.parametrize("first", [0, 2])
def test_hours_computed_at_once_count_on_from_what_was_committed_last(
    env: Environment, first: int, method: str
) -> None:
    for minute, count in ((10, 100), (190, 200)):
        show(env, minute, count)
    send(env, counters.message(at(20), 110), counters.message(at(150), 170, "l-2"), counters.message(at(30), 20, "l-2"))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    _while_held(env, method, [ALL[first]], lambda other: _windows(other, [ALL[2 - first]]))
    env.pipeline.settle()
    assert_right(env)


@pytest.mark.parametrize("method", ["_works", "_gate", "_commit"])
def test_a_reading_committed_between_two_hours_of_a_slice_is_counted_on_from(env: Environment, method: str) -> None:
    for minute, count in ((10, 100), (310, 200)):
        show(env, minute, count)
    send(env, *(counters.message(at(minute), count) for minute, count in ((20, 110), (150, 150), (320, 210))))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    _while_held(env, method, [ALL[0], ALL[5]], lambda other: _windows(other, [ALL[2]]))
    env.pipeline.settle()
    assert_right(env)


def _windows(pipeline: Pipeline, hours: Sequence[datetime]) -> None:
    done = pipeline.deriver.derive_hours("window_aggregates", hours, "incremental", "test")
    assert not done.errors


def _while_held(
    env: Environment, method: str, hours: Sequence[datetime], happens: Callable[[Pipeline], None]
) -> None:
    """Computes some hours as one slice, and something else while it is held."""
    holding, other = Gate(), Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    before(env.pipeline.deriver.protocol, method, holding.hold)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(_windows, env.pipeline, hours)
        holding.wait_until_reached()
        beside = threads.submit(happens, other)
        with contextlib.suppress(TimeoutError):  # it may have to wait for the other's commit
            beside.result(PATIENCE_S if method != "_commit" else 1.0)
        holding.let_go()
        running.result(PATIENCE_S)
        beside.result(PATIENCE_S)
    other.close()
    env.renew()


# ---------------------------------------------------------------------- dead letters, other domains


@pytest.mark.parametrize(
    ("reason", "count"),
    [
        ("reading_negative", -1),
        ("reading_negative", -LARGEST),
        ("reading_not_whole", 1.5),
        ("reading_out_of_range", LARGEST + 1),
        ("reading_out_of_range", -(2**70)),
        ("reading_out_of_range", 1e300),
        ("reading_out_of_range", 2.0**60),  # whole, but who knows which one was meant
    ],
)
def test_a_reading_that_is_no_count_is_a_dead_letter(env: Environment, reason: str, count: float) -> None:
    show(env, 5, 100)
    send(env, counters.message(at(6), count), rejected=True)
    show(env, 7, 107.0)
    assert env.pipeline.query("SELECT reason FROM dead_letters") == [(reason,)]
    assert_right(env)


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        ("nul_character", {"line": "a\0"}),
        ("name_too_long", {"line": "m" * 257}),
        ("name_empty", {"line": ""}),
        ("metric_missing", {"counter": ""}),
    ],
)
def test_a_reading_of_a_counter_without_a_right_name_is_a_dead_letter(
    env: Environment, reason: str, names: dict[str, str]
) -> None:
    show(env, 5, 100)
    send(env, counters.message(at(6), 7, **names), rejected=True)
    env.pipeline.settle()
    assert env.pipeline.query("SELECT reason FROM dead_letters") == [(reason,)]
    assert_right(env)


def test_a_domain_whose_counters_fail_does_not_hold_back_another(env: Environment) -> None:
    send(env, *[counters.message(at(n / 10), -1) for n in range(150)], rejected=True)
    env.send([reading(START, 20.0)], topic=topic_of(env, "press"))
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT asset, status FROM partition_state WHERE status <> 'open'") == [
        ("normalized_measurements", "quarantined")
    ]
    assert env.pipeline.count("counter_readings") == 0
    assert env.pipeline.count("window_aggregates") == 4
