"""Samples that are carried from hour to hour: live equals the rebuild and the naive reference, in any order.

The carried-in sample may be changed, come late or be superseded; its hour may be computed before, after or beside the
hour that it is carried into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.records import HOUR, hour_of, to_us
from analytics_pipeline_tests.against_reference import messages_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, counters, open_domains, topic_of
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.reference import windows

START = hour_of(datetime.now(UTC)) - 12 * HOUR
GAP_S = 300


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, counters.GAUGED]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as it:
        yield it


def at(second: float, value: float = 20.0) -> bytes:
    """A reading so many seconds after the first hour's end; before it, where that is negative."""
    return reading(START + HOUR + timedelta(seconds=second), value)


def send(env: Environment, *values: bytes, kafka_s: int = 0) -> None:
    """What is sent with a greater ``kafka_s`` supersedes what has the same identity."""
    stamp = int((START + 10 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    env.send(values, topic=topic_of(env, "press"), timestamp=stamp)
    env.drain()


def covered(env: Environment) -> list[tuple[object, ...]]:
    """(begin, integral, covered seconds) of the base windows."""
    return env.pipeline.query(
        "SELECT bucket_start, tw_integral, tw_covered_s FROM window_aggregates WHERE window_s = 60 ORDER BY 1"
    )


def assert_right(env: Environment) -> None:
    """The time-weighted figures are those of the reference, and a rebuild changes no bit."""
    wanted = windows(messages_of([one for one in env.sent if b"machine_id" in one.value]), 60, 60, GAP_S * 1_000_000)
    got = [(to_us(begin), integral, seconds) for begin, integral, seconds in covered(env)]
    assert got == [(one.start_us, pytest.approx(one.tw_integral), pytest.approx(one.tw_covered_s)) for one in wanted]
    assert_live_equals_rebuild(env.pipeline)


#: What becomes of the last sample of the first hour after everything was computed once.
CHANGES = {
    "changed": at(-30, 99.0),
    "followed by a later one": at(-10, 99.0),
    "followed by one in the last microsecond": at(-0.000001, 99.0),
    "preceded by an earlier one": at(-100, 99.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first_sample_s", [0, 0.5, 59.9, 60, 200, GAP_S - 31, GAP_S - 29, GAP_S + 100])
def test_a_late_change_of_the_last_sample_reaches_the_next_hour(
    env: Environment, change: str, first_sample_s: float
) -> None:
    send(env, at(-30), at(first_sample_s, 21.0), at(first_sample_s + 61, 22.0))
    env.pipeline.settle()
    send(env, CHANGES[change], kafka_s=1)
    env.pipeline.settle()
    assert_right(env)


@pytest.mark.parametrize("gap_s", [-1, 0, 1])
def test_the_next_window_of_the_same_hour_is_reached_up_to_the_longest_gap(env: Environment, gap_s: int) -> None:
    send(env, at(59), at(60 + GAP_S + gap_s, 21.0))
    env.pipeline.settle()
    send(env, at(59, 99.0), kafka_s=1)
    env.pipeline.settle()
    assert_right(env)


@pytest.mark.parametrize("order", permutations(range(3)), ids=str)
def test_hours_computed_in_any_order_carry_the_same_samples(env: Environment, order: Sequence[int]) -> None:
    send(env, at(-30), at(20, 21.0), at(3580, 22.0), at(3640, 23.0))
    hours = [START + HOUR * number for number in order]
    for asset in ("normalized_measurements", "window_aggregates"):
        for hour in hours:
            env.pipeline.deriver.derive(asset, hour, "incremental", "test")
    env.pipeline.settle()
    assert_right(env)


def another_worker(env: Environment) -> Deriver:
    return Deriver(env.settings, env.pipeline.engine, env.pipeline.registry)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("slow_hour", [0, 1])
@pytest.mark.parametrize("method", ["_holding_rows", "_commit"])
def test_neighbouring_hours_computed_at_once_carry_what_was_committed_last(
    env: Environment, threads: ThreadPoolExecutor, method: str, slow_hour: int, filled: bool
) -> None:
    """``filled``: both hours held windows before, else the later hour has nothing committed yet."""
    if filled:
        send(env, at(-30), at(20, 21.0))
        env.pipeline.settle()
    send(env, at(-15, 50.0), at(15, 51.0), kafka_s=1)
    derive = env.pipeline.deriver.derive
    for hour in (START, START + HOUR):
        derive("normalized_measurements", hour, "incremental", "test")
    gate, slow = Gate(), another_worker(env)
    before(slow.protocol, method, gate.hold)
    slowly = threads.submit(slow.derive, "window_aggregates", START + HOUR * slow_hour, "incremental", "slow")
    gate.wait_until_reached()
    quickly = threads.submit(derive, "window_aggregates", START + HOUR * (1 - slow_hour), "incremental", "quick")
    with contextlib.suppress(TimeoutError):
        quickly.result(timeout=1.0)  # either it waits for the slow one or it does not: both are right
    gate.let_go()
    slowly.result(PATIENCE_S)
    quickly.result(PATIENCE_S)
    env.pipeline.settle()
    assert_right(env)


# ---------------------------------------------------------------------- gaps longer than an hour


def count(env: Environment, hours: float, value: int, kafka_s: int = 0) -> None:
    stamp = int((START + 10 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    message = counters.message(START + timedelta(hours=hours, seconds=18), value)
    env.send([message], topic=topic_of(env, "slow"), timestamp=stamp)
    env.drain()


@pytest.mark.parametrize("hours_later", [0.9, 1.5, 2.5, 2.99, 3.2])
def test_a_sample_held_for_hours_reaches_the_hours_it_is_carried_into(env: Environment, hours_later: float) -> None:
    count(env, 0.1, 100)
    count(env, 0.1 + hours_later, 300)
    env.pipeline.settle()
    count(env, 0.1, 200, kafka_s=1)
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize("slow_hour", [0, 2])
def test_hours_apart_computed_at_once_carry_what_was_committed_last(
    env: Environment, threads: ThreadPoolExecutor, slow_hour: int
) -> None:
    count(env, 0.5, 100)
    count(env, 2.5, 300)
    derive = env.pipeline.deriver.derive
    for hour in (0, 2):
        derive("normalized_measurements", START + HOUR * hour, "incremental", "test")
    gate, slow = Gate(), another_worker(env)
    before(slow.protocol, "_holding_rows", gate.hold)
    slowly = threads.submit(slow.derive, "window_aggregates", START + HOUR * slow_hour, "incremental", "slow")
    gate.wait_until_reached()
    quickly = threads.submit(derive, "window_aggregates", START + HOUR * (2 - slow_hour), "incremental", "quick")
    with contextlib.suppress(TimeoutError):
        quickly.result(timeout=1.0)
    gate.let_go()
    slowly.result(PATIENCE_S)
    quickly.result(PATIENCE_S)
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


def test_counters_may_be_measurements_as_well(env: Environment) -> None:
    shown = list(counters.with_resets([70] * 60, 1000))
    assert min(shown[20:]) < max(shown[:20]), "it was reset"
    for hour in range(3):
        for step, value in enumerate(shown):
            message = counters.message(START + HOUR * hour + timedelta(minutes=step), value)
            env.send([message], topic=topic_of(env, "slow"))
        env.drain()
        env.pipeline.settle()
    assert env.pipeline.count("normalized_measurements") == env.pipeline.count("counter_readings") == 180
    assert_live_equals_rebuild(env.pipeline)


def test_a_domain_without_a_gap_carries_nothing(env: Environment) -> None:
    registry = env.pipeline.registry
    flat = replace(registry, domains=tuple(replace(one, longest_gap_s=0) for one in registry.domains))
    env.pipeline.deriver = Deriver(env.settings, env.pipeline.engine, flat)
    send(env, at(-30), at(20, 21.0))
    env.pipeline.settle()
    send(env, at(-10, 99.0))
    env.pipeline.settle()
    assert {row[2] for row in covered(env)} == {0.0}
    assert_live_equals_rebuild(env.pipeline)
