"""A state outlives retention: what was said before the first hour that is kept is still known in it."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import pytest

from analytics_pipeline.assets import slice_protocol
from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.assets.windows.spec import SPEC as WINDOWS
from analytics_pipeline.records import to_us
from analytics_pipeline.storage import retention, states_at_floor
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests import reference_kinds
from analytics_pipeline_tests.against_reference import state_messages_of
from analytics_pipeline_tests.domains import begin_anew, states, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.fault_points import Fault, FaultPoint, faulty_engine
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate
from analytics_pipeline_tests.integration.test_states import ALL, advance, at, durations, send
from analytics_pipeline_tests.invariants import assert_settled

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_states: Environment) -> Environment:
    begin_anew(opened_states)
    return opened_states


def expire(env: Environment, floor: datetime) -> None:
    with connection(env.pipeline.engine) as conn:
        retention.expire(conn, ["states", "press"], floor + timedelta(days=1), 1)


class Commits(FaultPoint):
    """Counts commits alone: a connection that is lost between two of them leaves what the first one left."""

    def due(self, what: str) -> Fault | None:
        return super().due(what) if what == "commit" else None


def expire_in_part(env: Environment, floor: datetime, commits: int) -> bool:
    """Loses the connection after so many commits; returns whether there were as many."""
    faults = Commits()
    engine = faulty_engine(env.settings, faults)
    try:
        with connection(engine) as conn:
            faults.arm(Fault(kind="lost", after_calls=commits - 1, moment="after"))
            retention.expire(conn, ["states", "press"], floor + timedelta(days=1), 1)
    except psycopg2.OperationalError:
        return True
    finally:
        engine.dispose()
    return False


def pass_time(env: Environment, minutes: float) -> None:
    send(env, states.heartbeat(at(minutes)))
    advance(env)
    env.pipeline.settle()


def assert_rebuilt_alike(env: Environment, first: int) -> None:
    """A rebuild of the hours that are kept changes no bit of them."""
    live = env.pipeline.snapshot()
    env.pipeline.rebuild(ALL[first:])
    env.pipeline.settle()
    assert env.pipeline.snapshot() == live


def test_a_silence_longer_than_retention_forgets_no_state(env: Environment) -> None:
    send(env, states.message(at(10), "running"), states.message(at(20), "idle", "m-2"))
    advance(env)
    env.pipeline.settle()
    for hour in (3, 4):
        expire(env, ALL[hour])
        assert durations(env) == []
    pass_time(env, 280)
    pass_time(env, 320)
    assert durations(env) == [
        (ALL[4], "idle", 3600),
        (ALL[4], "running", 3600),
        (ALL[5], "idle", 1200),
        (ALL[5], "running", 1200),
    ]
    assert_rebuilt_alike(env, 4)


def test_a_domain_that_is_disabled_while_hours_go_keeps_its_states(env: Environment) -> None:
    send(env, states.message(at(10), "running"))
    advance(env)
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        retention.expire(conn, ["press"], ALL[3] + timedelta(days=1), 1)
    assert env.pipeline.count("state_changes") == 0
    pass_time(env, 200)
    assert durations(env) == [(ALL[3], "running", 1200)]
    assert_rebuilt_alike(env, 3)


def test_a_state_that_the_clock_never_reached_outlives_retention(env: Environment) -> None:
    send(env, states.message(at(0), "running"))
    advance(env)  # a change at the very moment of the clock has lasted no time, and its hour holds nothing yet
    env.pipeline.settle()
    expire(env, ALL[3])
    pass_time(env, 200)
    assert durations(env) == [(ALL[3], "running", 1200)]
    assert_rebuilt_alike(env, 3)


def test_a_state_outlives_retention_before_the_first_advance_of_the_clock(env: Environment) -> None:
    send(env, states.message(at(10), "running"))
    env.pipeline.settle()
    expire(env, ALL[3])
    pass_time(env, 200)
    assert durations(env) == [(ALL[3], "running", 1200)]
    assert_rebuilt_alike(env, 3)


def test_the_last_change_below_the_floor_counts_where_its_windows_are_still_pending(env: Environment) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(300)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(70), "off"), states.message(at(80), "idle", "m-2"))
    env.normalize()  # and nobody computes the windows before they go
    expire(env, ALL[3])
    env.pipeline.settle()
    assert durations(env) == [(hour, state, 3600) for hour in ALL[3:5] for state in ("idle", "off")]
    assert_rebuilt_alike(env, 3)


def test_a_state_that_retention_had_to_hand_on_is_known_in_hours_that_were_computed(env: Environment) -> None:
    send(env, states.message(at(10), "running"))
    env.pipeline.settle()
    send(env, states.heartbeat(at(290)))
    advance(env)
    _compute(env, ALL[3:])  # nothing is known there yet: the hours before are to be computed first
    expire(env, ALL[3])
    env.pipeline.settle()
    assert durations(env) == [(ALL[3], "running", 3600), (ALL[4], "running", 3000)]
    assert_rebuilt_alike(env, 3)


def _compute(env: Environment, hours: list[datetime]) -> None:
    for hour in hours:
        assert not env.pipeline.deriver.derive_hours("window_aggregates", [hour], "incremental", "test").errors


# 134: two retentions in a row, and nothing of what the first one asked for is computed between them
@pytest.mark.parametrize("seed", [*range(5), 134])
def test_in_any_order_with_retention_the_kept_hours_are_those_of_the_reference(
    env: Environment, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(state_clock, "HOURS_AT_ONCE", rng.choice([2, 3, 24]))
    first = 0
    for _ in range(8):
        _say_something(env, rng, first)
        env.normalize()  # what nobody read before it goes is lost
        if rng.random() < 0.5:
            advance(env)
        if rng.random() < 0.5:
            _compute(env, rng.sample(ALL[first:], 2))
        if rng.random() < 0.4:
            env.pipeline.settle()
        if rng.random() < 0.4 and first < 5:
            first += rng.choice([1, 2])
            expire(env, ALL[first])
    advance(env)
    env.pipeline.settle()
    assert_settled(env.pipeline)
    _assert_kept_durations(env, ALL[first])
    _assert_counted(env, ALL[first])
    assert_rebuilt_alike(env, first)


def _assert_counted(env: Environment, floor: datetime) -> None:
    """What people are told that the kept hours hold is what they hold."""
    held = env.pipeline.query(
        "SELECT date_trunc('hour', bucket_start, 'UTC'), count(*) FROM (SELECT bucket_start FROM state_durations "
        "UNION ALL SELECT bucket_start FROM carried_states) its WHERE bucket_start >= %s GROUP BY 1 ORDER BY 1",
        floor,
    )
    told = "SELECT hour, rows FROM partition_state WHERE asset = 'window_aggregates' AND rows <> 0 ORDER BY 1"
    assert env.pipeline.query(told) == held


def _say_something(env: Environment, rng: random.Random, first: int) -> None:
    """Changes of state in hours that are kept, or nothing but that time has passed."""
    minutes = [rng.choice([60 * first, rng.randrange(60 * first, 60 * len(ALL))]) for _ in range(rng.choice([0, 1, 4]))]
    changes = [states.message(at(m), rng.choice(["on", "off"]), rng.choice(["m-1", "m-2"])) for m in minutes]
    send(env, *changes, states.heartbeat(at(rng.randrange(60 * first, 60 * len(ALL)))), kafka_s=rng.randrange(3))


def _assert_kept_durations(env: Environment, floor: datetime) -> None:
    until_us = to_us(env.pipeline.query("SELECT until FROM state_clock")[0][0])
    sent = state_messages_of([one for one in env.sent if one.topic == topic_of(env, "states")])
    for size_s in (300, 900, 3600):
        rows = env.pipeline.query(
            "SELECT bucket_start, machine_id, metric, state, duration_us FROM state_durations "
            "JOIN measurement_series USING (domain_id, series_id) WHERE window_s = %s",
            size_s,
        )
        wanted = reference_kinds.state_durations(sent, size_s, until_us)
        kept = {key: lasted for key, lasted in wanted.items() if key[0] >= to_us(floor)}
        assert {(to_us(row[0]), (row[1], row[2]), row[3]): row[4] for row in rows} == kept


@pytest.mark.parametrize("advanced", [True, False])
def test_a_retention_that_is_cut_short_anywhere_forgets_no_state(env: Environment, *, advanced: bool) -> None:
    for commits in range(1, 100):
        begin_anew(env)
        send(env, states.message(at(10), "running"), states.message(at(130), "idle", "m-2"))
        advance(env)
        env.pipeline.settle()
        if not expire_in_part(env, ALL[3], commits):
            assert commits > 5
            return
        if advanced:
            pass_time(env, 280)
        expire(env, ALL[4])
        pass_time(env, 320)
        expected = [(hour, state, s) for hour, s in ((ALL[4], 3600), (ALL[5], 1200)) for state in ("idle", "running")]
        assert durations(env) == expected, commits
        if advanced:
            assert_rebuilt_alike(env, 4)
    raise AssertionError("retention never came to its end")


def test_a_clock_that_passes_the_floor_while_states_are_handed_on_misses_none(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(env, states.message(at(10), "running"))
    advance(env)
    env.pipeline.settle()
    send(env, states.heartbeat(at(280)))
    holding, is_passed = Gate(), states_at_floor._is_passed

    def passed(*arguments: Any) -> bool:
        found = is_passed(*arguments)
        holding.hold()
        return found

    monkeypatch.setattr(states_at_floor, "_is_passed", passed)
    with ThreadPoolExecutor(2) as threads:
        expiring = threads.submit(expire, env, ALL[3])
        holding.wait_until_reached()  # it has seen a clock before the floor, and committed nothing
        advancing = threads.submit(advance, env)
        with contextlib.suppress(TimeoutError):  # it may have to wait
            advancing.result(1.0)
        holding.let_go()
        expiring.result(PATIENCE_S)
        advancing.result(PATIENCE_S)
    env.pipeline.settle()
    assert durations(env) == [(ALL[3], "running", 3600), (ALL[4], "running", 2400)]


def test_a_slice_that_holds_what_is_handed_on_is_waited_for_and_not_the_end_of_retention(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(280)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(100), "idle"), states.message(at(250), "stopped"))
    env.pipeline.deriver.derive_hours("normalized_measurements", [ALL[1], ALL[4]], "incremental", "test")
    holding, real = Gate(), slice_protocol.lock_domain_commits

    def held(*arguments: Any) -> None:
        holding.hold()
        real(*arguments)

    monkeypatch.setattr(slice_protocol, "lock_domain_commits", held)
    with ThreadPoolExecutor(2) as threads:
        deriving = threads.submit(env.pipeline.deriver.derive_hours, WINDOWS.name, [ALL[4]], "incremental", "test")
        holding.wait_until_reached()  # what the hour carries on is written, and not committed
        expiring = threads.submit(expire, env, ALL[3])
        with contextlib.suppress(TimeoutError):  # it waits for the slice
            expiring.result(0.5)
        holding.let_go()  # and now the slice for it
        expiring.result(PATIENCE_S)
        assert deriving.result(PATIENCE_S).errors == []
    env.pipeline.settle()
    assert durations(env) == [(ALL[3], "idle", 3600), (ALL[4], "idle", 600), (ALL[4], "stopped", 1800)]
