"""States that last for days: live equals the rebuild and the naive reference, for any order and slices, to the bit.

Their durations go up to the state clock, which is advanced to the watermark: by heartbeats here, that carry no state.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.against_reference import assert_states_equal_reference, state_messages_of
from analytics_pipeline_tests.domains import begin_anew, states, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_settled
from analytics_pipeline_tests.pipeline import Pipeline, reading

HOURS = 8
START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR
ALL = [START + HOUR * number for number in range(HOURS)]


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_states: Environment) -> Environment:
    begin_anew(opened_states)
    return opened_states


def send(env: Environment, *values: bytes, kafka_s: int = 0, rejected: bool = False) -> None:
    """What is sent with a greater ``kafka_s`` wins over what has the same identity."""
    stamp = int((START + 20 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    env.send(values, topic=topic_of(env, "states"), timestamp=stamp, rejected=rejected)
    env.drain()


def advance(env: Environment) -> int:
    """What the schedule does each minute."""
    with connection(env.pipeline.engine) as conn:
        return state_clock.advance(conn, DomainNumbers(env.pipeline.engine).numbers(["states"]))


def assert_right(env: Environment, first: datetime = START, hours: int = HOURS + 4) -> None:
    """The tables are those of the reference, they are counted, and a rebuild changes no bit."""
    assert_settled(env.pipeline)
    sent = [one for one in env.sent if one.topic == topic_of(env, "states")]
    assert_states_equal_reference(env.pipeline, state_messages_of(sent))
    assert_content_is_counted(env.pipeline)
    live = env.pipeline.snapshot()
    env.pipeline.rebuild([first + HOUR * number for number in range(-2, hours)])
    env.pipeline.settle()
    assert env.pipeline.snapshot() == live
    assert_content_is_counted(env.pipeline)


def durations(env: Environment) -> list[tuple[object, ...]]:
    return env.pipeline.query(
        "SELECT bucket_start, state, duration_s::int FROM analytics_state_duration WHERE window_s = 3600 ORDER BY 1, 2"
    )


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


# ---------------------------------------------------------------------- what a state is


def test_a_state_lasts_through_hours_without_a_message_up_to_the_watermark(env: Environment) -> None:
    send(env, states.message(at(30), "running"), states.heartbeat(at(200)))
    env.pipeline.settle()
    assert advance(env) == 4
    env.pipeline.settle()
    assert durations(env) == [
        (ALL[0], "running", 1800),
        (ALL[1], "running", 3600),
        (ALL[2], "running", 3600),
        (ALL[3], "running", 1200),
    ]
    assert_right(env)


def test_time_that_passes_without_a_change_is_added(env: Environment) -> None:
    send(env, states.message(at(30), "running"))
    env.pipeline.settle()
    for minute in (31, 59, 60, 61, 130):
        send(env, states.heartbeat(at(minute)))
        env.pipeline.settle()
        advance(env)
        env.pipeline.settle()
        assert_right(env)
    assert advance(env) == 0


def test_a_change_that_comes_late_goes_on_hour_by_hour_as_far_as_it_reaches(env: Environment) -> None:
    send(env, states.message(at(10), "running"), states.message(at(70), "running", "m-2"))
    send(env, states.message(at(400), "off"), states.heartbeat(at(470)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(50), "stopped"))
    env.pipeline.settle()
    assert_right(env)
    send(env, states.message(at(45), "idle"))  # its next hour is as it was
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    env.pipeline.deriver.derive_hours("window_aggregates", ALL, "incremental", "test")
    assert env.pipeline.query("SELECT hour FROM pending_work WHERE asset = 'window_aggregates'") == []
    assert_right(env)


def test_a_state_that_began_weeks_ago_is_carried_in(env: Environment) -> None:
    send(env, states.message(START - 20 * 24 * HOUR, "running"), states.heartbeat(at(90)))
    _settle_in_slices(env)
    assert advance(env) == state_clock.HOURS_AT_ONCE
    _settle_in_slices(env)
    assert durations(env)[-2:] == [(ALL[0], "running", 3600), (ALL[1], "running", 1800)]
    send(env, states.message(START - 19 * 24 * HOUR, "off"))
    _settle_in_slices(env)
    assert durations(env)[-2:] == [(ALL[0], "off", 3600), (ALL[1], "off", 1800)]
    sent = [one for one in env.sent if one.topic == topic_of(env, "states")]
    assert_states_equal_reference(env.pipeline, state_messages_of(sent))


def test_a_jump_of_a_month_ends_complete_and_keeps_no_live_hour_waiting(env: Environment) -> None:
    month = START - 30 * 24 * HOUR
    send(env, states.message(month, "running"), states.message(month + 50 * HOUR, "idle", "m-2"))
    send(env, states.message(month + 300 * HOUR, "off", "m-2"), states.message(month + 301 * HOUR, "off", "m-3"))
    env.pipeline.settle()  # before the clock has reached any of it
    send(env, states.message(at(10), "on", "m-4"), states.heartbeat(at(90)))
    assert advance(env) == state_clock.HOURS_AT_ONCE + 2  # and the hours in which others begin to be in a state
    env.normalize()
    for hour in ALL[:2]:  # the second one is asked for by the first
        _windows(env.pipeline, [hour])
    assert durations(env)[-2:] == [(ALL[0], "on", 3000), (ALL[1], "on", 1800)]
    send(env, states.message(at(100), "off", "m-4"), states.heartbeat(at(110)))
    assert advance(env) == 1  # the next minute asks for no more than it passes, however much is still to do
    rounds = _settle_in_slices(env)
    assert rounds >= 30, "a day at a time"
    sent = [one for one in env.sent if one.topic == topic_of(env, "states")]
    assert_states_equal_reference(env.pipeline, state_messages_of(sent))


def _settle_in_slices(env: Environment) -> int:
    """As backfill runs do: all pending hours of an asset at once. Returns how often there was something to do."""
    for count in range(60):
        with connection(env.pipeline.engine) as conn:
            todo = actionable_hours(conn)
        if not todo:
            assert_settled(env.pipeline)
            return count
        for asset in DERIVED:
            hours = [one.hour for one in todo if asset in one.assets]
            assert not env.pipeline.deriver.derive_hours(asset, hours, "incremental", "test").errors
    raise AssertionError(f"still pending: {todo}")


def test_of_two_states_at_one_time_the_later_message_wins(env: Environment) -> None:
    send(env, states.message(at(10), "second"), kafka_s=2)
    send(env, states.message(at(10), "first"), states.heartbeat(at(60)), kafka_s=1)
    advance(env)
    env.pipeline.settle()
    assert durations(env) == [(ALL[0], "second", 3000)]
    assert_right(env)


# ---------------------------------------------------------------------- any order, any slices


@pytest.mark.parametrize("seed", range(12))
def test_any_order_split_duplication_and_composition_gives_the_reference(
    env: Environment, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(state_clock, "HOURS_AT_ONCE", rng.choice([2, 3, 24]))
    for step in range(rng.choice([1, 4, 8])):
        send(env, *_changes(rng), kafka_s=rng.randrange(3))
        if rng.random() < 0.7:
            advance(env)
        if rng.random() < 0.6:
            _some_work(env, rng)
        if rng.random() < 0.2:
            env.pipeline.rebuild(rng.sample(ALL, 2))
        if step == 2:
            env.renew()
    advance(env)
    env.pipeline.settle()
    assert_right(env)


def _changes(rng: random.Random) -> list[bytes]:
    found = [states.heartbeat(at(rng.randrange(60 * HOURS)))]
    for _ in range(rng.choice([1, 5, 20])):
        minute = rng.choice([0, 59, 60, 61, 120, rng.randrange(60 * HOURS)])
        moment = at(minute) + timedelta(microseconds=rng.choice([0, 1, 59_999_999]))
        machine = rng.choice(["m-1", "m-2"])
        found.append(states.message(moment, rng.choice(["running", "off", "idle"]), machine, kind=rng.choice("ab")))
    return found + rng.sample(found, len(found) // 3)


def _some_work(env: Environment, rng: random.Random) -> None:
    """Some of the pending work, in slices of some hours."""
    for _ in range(rng.randrange(1, 6)):
        asset = rng.choice(["normalized_measurements", "window_aggregates"])
        hours = rng.sample(ALL, rng.randrange(1, HOURS + 1))
        done = env.pipeline.deriver.derive_hours(asset, hours, "incremental", "test")
        assert not done.errors


@pytest.mark.parametrize("method", ["_works", "_commit"])
@pytest.mark.parametrize("first", [0, 1])
def test_neighbouring_hours_computed_at_once_carry_what_was_committed_last(
    env: Environment, first: int, method: str
) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(190)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(20), "off"), states.message(at(80), "off", "m-2"))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    _while_held(env, method, ALL[first], lambda other: _windows(other, [ALL[1 - first]]))
    env.pipeline.settle()
    assert_right(env)


@pytest.mark.parametrize("method", ["_works", "_commit"])
def test_a_clock_that_advances_while_an_hour_is_computed_misses_nothing(env: Environment, method: str) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(50)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(20), "off"), states.heartbeat(at(150)))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")

    def pass_time(other: Pipeline) -> None:
        advance(env)
        _windows(other, ALL[1:])

    _while_held(env, method, ALL[0], pass_time)
    advance(env)
    env.pipeline.settle()
    assert_right(env)


def _windows(pipeline: Pipeline, hours: Sequence[datetime]) -> None:
    done = pipeline.deriver.derive_hours("window_aggregates", hours, "incremental", "test")
    assert not done.errors


def _while_held(env: Environment, method: str, hour: datetime, happens: object) -> None:
    """Computes an hour, and something else while it is held."""
    holding, other = Gate(), Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    before(env.pipeline.deriver.protocol, method, holding.hold)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(_windows, env.pipeline, [hour])
        holding.wait_until_reached()
        beside = threads.submit(happens, other)  # type: ignore[arg-type]
        with contextlib.suppress(TimeoutError):  # it may have to wait for the other's commit
            beside.result(PATIENCE_S if method == "_works" else 1.0)
        holding.let_go()
        running.result(PATIENCE_S)
        beside.result(PATIENCE_S)
    other.close()
    env.renew()


# ---------------------------------------------------------------------- dead letters, retention, other domains


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("state_missing", {"state": ""}),
        ("state_too_long", {"state": "x" * 257}),
        ("nul_character", {"state": "a\0"}),
        ("name_too_long", {"machine": "m" * 257}),
        ("metric_missing", {"kind": ""}),
    ],
)
def test_a_state_that_cannot_be_stored_is_a_dead_letter(env: Environment, reason: str, fields: dict[str, str]) -> None:
    send(env, states.message(at(5), "running"), states.heartbeat(at(60)))
    send(env, states.message(**{"time": at(6), "state": "off"} | fields), rejected=True)  # type: ignore[arg-type]
    advance(env)
    env.pipeline.settle()
    assert env.pipeline.query("SELECT reason FROM dead_letters") == [(reason,)]
    assert_right(env)


def test_retention_keeps_the_state_with_which_the_first_hour_begins(env: Environment) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(300)))
    advance(env)
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        expire(conn, ["states", "press"], ALL[3] + timedelta(days=1), 1)
    env.pipeline.rebuild(ALL[3:6])
    env.pipeline.settle()
    assert durations(env) == [(ALL[3], "running", 3600), (ALL[4], "running", 3600)]
    send(env, states.heartbeat(at(330)))
    advance(env)
    env.pipeline.settle()
    assert durations(env)[-1] == (ALL[5], "running", 1800)


def test_a_domain_whose_states_fail_does_not_hold_back_another(env: Environment) -> None:
    send(env, *[states.message(at(n / 10), "") for n in range(150)], rejected=True)
    env.send([reading(START, 20.0)], topic=topic_of(env, "press"))
    env.drain()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT asset, status FROM partition_state WHERE status <> 'open'") == [
        ("normalized_measurements", "quarantined")
    ]
    assert env.pipeline.count("state_changes") == 0
    assert env.pipeline.count("window_aggregates") == 4
