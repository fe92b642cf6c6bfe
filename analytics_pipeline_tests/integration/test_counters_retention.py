"""A counter outlives retention: what was read before the first hour that is kept is counted on from."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import pytest

from analytics_pipeline.records import to_us
from analytics_pipeline.storage import readings_at_floor, retention
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.counter_invariants import assert_counters_equal_reference, counter_messages_of
from analytics_pipeline_tests.domains import begin_anew, counters
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.fault_points import Fault, faulty_engine
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate
from analytics_pipeline_tests.integration.test_counters import ALL, at, hourly, send, sent, show
from analytics_pipeline_tests.integration.test_states_retention import Commits
from analytics_pipeline_tests.invariants import assert_settled

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_counters: Environment) -> Environment:
    begin_anew(opened_counters)
    return opened_counters


def expire(env: Environment, floor: datetime, look_back: timedelta = timedelta()) -> None:
    """Windows stay for the look-back below the floor."""
    with connection(env.pipeline.engine) as conn:
        retention.expire(conn, ["counters", "press"], floor + timedelta(days=1), 1, look_back=look_back)


def assert_kept_right(env: Environment, first: int) -> None:
    """The hours that are kept are those of the reference, which knows what went, and a rebuild changes no bit."""
    assert_settled(env.pipeline)
    messages = counter_messages_of(sent(env))
    assert_counters_equal_reference(env.pipeline, messages, floor_us=to_us(ALL[first]))
    live = env.pipeline.snapshot()
    env.pipeline.rebuild(ALL[first:])
    env.pipeline.settle()
    assert env.pipeline.snapshot() == live


def test_the_last_reading_outlives_any_number_of_retentions(env: Environment) -> None:
    show(env, 10, 100)
    show(env, 20, 110)
    for hour in (3, 4, 5):
        expire(env, ALL[hour])
        assert hourly(env) == []
    assert env.pipeline.count("counter_readings") == 0
    show(env, 320, 150)
    assert hourly(env) == [(ALL[5], 40, None)]
    show(env, 310, 140)
    assert_kept_right(env, 5)


def test_what_was_counted_from_a_reading_that_goes_stays_as_it_is(env: Environment) -> None:
    for minute, count in ((10, 100), (20, 110), (200, 150), (230, 170)):
        show(env, minute, count)
    expire(env, ALL[3])
    assert env.pipeline.query("SELECT count(*) FROM pending_work") == [(0,)], "nothing changed"
    assert hourly(env) == [(ALL[3], 60, None)]
    assert_kept_right(env, 3)


@pytest.mark.parametrize("computed", [True, False])
def test_a_reading_whose_windows_are_pending_when_it_goes_is_counted_on_from(
    env: Environment, *, computed: bool
) -> None:
    show(env, 10, 100)
    if computed:
        show(env, 200, 150)
    send(env, counters.message(at(70), 120), counters.message(at(80), 7, "l-2"))
    env.normalize()  # and nobody computes the windows before they go
    expire(env, ALL[3])
    env.pipeline.settle()
    if not computed:
        show(env, 200, 150)
    assert hourly(env) == [(ALL[3], 30, None)]
    assert_kept_right(env, 3)


@pytest.mark.parametrize("look_back", [timedelta(), timedelta(days=1)])
def test_a_reading_that_is_gone_when_its_windows_go_is_not_counted_on_from(
    env: Environment, look_back: timedelta
) -> None:
    for minute, count in ((10, 100), (70, 120), (200, 150)):
        show(env, minute, count)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM raw_events WHERE event_time < %s", (ALL[2],))
        conn.commit()
    for hour in ALL[:2]:
        env.pipeline.deriver.derive("normalized_measurements", hour, "full", "test")
    expire(env, ALL[3], look_back)
    env.pipeline.settle()
    assert hourly(env)[-1] == (ALL[3], None, "first_reading")


def test_a_domain_that_is_disabled_while_hours_go_keeps_its_last_readings(env: Environment) -> None:
    show(env, 10, 100)
    with connection(env.pipeline.engine) as conn:
        retention.expire(conn, ["press"], ALL[3] + timedelta(days=1), 1)
    assert env.pipeline.count("counter_readings") == 0
    show(env, 200, 150)
    assert hourly(env) == [(ALL[3], 50, None)]


def test_a_retention_that_is_cut_short_anywhere_forgets_no_reading(env: Environment) -> None:
    for commits in range(1, 100):
        begin_anew(env)
        show(env, 10, 100)
        send(env, counters.message(at(130), 120))
        env.normalize()
        show(env, 250, 140)
        if not _expire_in_part(env, ALL[3], commits):
            assert commits > 5
            return
        env.pipeline.settle()
        show(env, 260, 150)
        expire(env, ALL[4])
        show(env, 270, 160)
        assert hourly(env) == [(ALL[4], 40, None)], commits
        assert_kept_right(env, 4)
    raise AssertionError("retention never came to its end")


def _expire_in_part(env: Environment, floor: datetime, commits: int) -> bool:
    """Loses the connection after so many commits; returns whether there were as many."""
    faults = Commits()
    engine = faulty_engine(env.settings, faults)
    try:
        with connection(engine) as conn:
            faults.arm(Fault(kind="lost", after_calls=commits - 1, moment="after"))
            retention.expire(conn, ["counters", "press"], floor + timedelta(days=1), 1)
    except psycopg2.OperationalError:
        return True
    finally:
        engine.dispose()
    return False


def test_an_hour_that_is_computed_while_readings_are_carried_misses_none(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is of between the raised floor and what is carried then; it commits before anything is deleted."""
    show(env, 10, 100)
    send(env, counters.message(at(70), 120), counters.message(at(200), 150))
    env.normalize()
    raised, carried, carry = Gate(), Gate(), readings_at_floor.carry

    def carrying(*arguments: Any) -> None:
        raised.hold()
        carry(*arguments)
        carried.hold()

    monkeypatch.setattr(readings_at_floor, "carry", carrying)
    protocol, gate = env.pipeline.deriver.protocol, env.pipeline.deriver.protocol._gate
    with ThreadPoolExecutor(1) as threads:
        expiring = threads.submit(expire, env, ALL[3])
        raised.wait_until_reached()

        def carried_meanwhile(*arguments: Any) -> Any:
            raised.let_go()
            carried.wait_until_reached()
            return gate(*arguments)

        monkeypatch.setattr(protocol, "_gate", carried_meanwhile)
        env.pipeline.deriver.derive("window_aggregates", ALL[3], "incremental", "test")
        carried.let_go()
        expiring.result(PATIENCE_S)
    monkeypatch.undo()
    env.pipeline.settle()
    assert hourly(env) == [(ALL[3], 30, None)]
    assert_kept_right(env, 3)


@pytest.mark.parametrize("seed", range(8))
def test_in_any_order_with_retention_the_kept_hours_are_those_of_the_reference(env: Environment, seed: int) -> None:
    rng = random.Random(seed)
    first = 0
    for _ in range(8):
        _say_something(env, rng, first)
        env.normalize()  # what nobody read before it goes is lost
        if rng.random() < 0.5:
            for hour in rng.sample(ALL[first:], 2):
                assert not env.pipeline.deriver.derive_hours("window_aggregates", [hour], "incremental", "test").errors
        if rng.random() < 0.4:
            env.pipeline.settle()
        if rng.random() < 0.4 and first < 5:
            first += rng.choice([1, 2])
            expire(env, ALL[first])
    env.pipeline.settle()
    assert_kept_right(env, first)


def _say_something(env: Environment, rng: random.Random, first: int) -> None:
    """Readings in hours that are kept, in any order."""
    for _ in range(rng.choice([0, 1, 6])):
        minute = rng.choice([60 * first, rng.randrange(60 * first, 60 * len(ALL))])
        message = counters.message(at(minute), rng.randrange(1000), rng.choice(["l-1", "l-2"]))
        send(env, message, kafka_s=rng.randrange(3))
