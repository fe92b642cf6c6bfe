"""Counters while the database fails at any call: what batches, runs, rebuilds and retention leave is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from analytics_pipeline.records import DERIVED
from analytics_pipeline.storage import retention
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.domains import begin_anew, counters, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.fault_points import Fault, FaultPoint, InterruptedByTestError, faulty_engine
from analytics_pipeline_tests.integration.test_counters import ALL, START, at
from analytics_pipeline_tests.integration.test_counters_retention import assert_kept_right, expire
from analytics_pipeline_tests.pipeline import MAX_ROUNDS, Pipeline

pytestmark = pytest.mark.usefixtures("quick_gates")

KINDS = ("lost", "lost", "deadlock", "canceled", "interrupted")


@pytest.fixture
def env(opened_counters: Environment) -> Environment:
    begin_anew(opened_counters)
    return opened_counters


class Player:
    """Does what the pipeline's actors do, over an engine that fails now and then."""

    def __init__(self, env: Environment, rng: random.Random) -> None:
        self.env, self.rng = env, rng
        self.faults = FaultPoint()
        self.engine = faulty_engine(env.settings, self.faults)
        self.pipeline = Pipeline(env.settings, self.engine, env.pipeline.registry)
        self.first = 0
        self.failed = 0

    @contextmanager
    def may_fail(self) -> Iterator[None]:
        try:
            yield
        except (Exception, InterruptedByTestError):
            if not self.faults.happened:
                raise
        self.failed += len(self.faults.happened)
        self.faults.happened.clear()

    def arm(self) -> None:
        kind, calls = self.rng.choice(KINDS), self.rng.randrange(60)
        self.faults.arm(Fault(kind=kind, after_calls=calls, moment=self.rng.choice(["before", "after"])))

    def send(self) -> None:
        """Readings in hours that are kept, in any order: few times, so that identities meet."""
        stamp = int((START + timedelta(hours=20, seconds=self.rng.randrange(3))).timestamp() * 1000)
        values = []
        for _ in range(self.rng.choice([1, 8, 20])):
            minute = self.rng.choice([60 * (self.first + 1), self.rng.randrange(60 * self.first, 60 * len(ALL))])
            line, counter = self.rng.choice(["l-1", "l-2"]), self.rng.choice(["pieces", "coins"])
            values.append(counters.message(at(minute), self.rng.randrange(1000), line, counter))
        self.env.send(values, topic=topic_of(self.env, "counters"), timestamp=stamp)

    def tick(self) -> None:
        self.pipeline.tick()

    def derive(self) -> None:
        asset = self.rng.choice(DERIVED[:2])
        self.pipeline.deriver.derive_hours(asset, self.rng.sample(ALL, 4), "incremental", "test")

    def rebuild(self) -> None:
        self.pipeline.rebuild(self.rng.sample(ALL[self.first :], 2))

    def expire(self) -> None:
        """Not while something was sent that nobody has read: that would be lost, as it should be."""
        self.faults.heal()
        self.read_all()
        if self.first > 4:
            return
        self.first += self.rng.choice([1, 2])
        self.arm()
        try:
            with connection(self.engine) as conn:
                retention.expire(conn, ["counters", "press"], ALL[self.first] + timedelta(days=1), 1)
        finally:
            self.faults.heal()
            expire(self.env, ALL[self.first])

    def read_all(self) -> None:
        self.env.drain()
        _retry_failed(self.env)
        self.env.normalize()

    def close(self) -> None:
        self.pipeline.close()
        self.engine.dispose()


def _retry_failed(env: Environment) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("UPDATE partition_failure SET next_try_at = now()")
        conn.commit()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_fails_the_kept_hours_are_those_of_the_reference(env: Environment, seed: int) -> None:
    rng = random.Random(seed)
    player = Player(env, rng)
    steps: list[Callable[[], None]] = [player.send, player.tick, player.derive]
    player.send()
    for _ in range(30):
        if rng.random() < 0.6:
            player.arm()
        with player.may_fail():
            rng.choice([*steps, *steps, *steps, player.rebuild, player.expire])()
    player.faults.heal()
    player.read_all()
    for _ in range(MAX_ROUNDS):
        _retry_failed(env)
        if not env.pipeline.settle():
            break
    assert player.failed, "nothing failed"
    player.close()
    assert_kept_right(env, player.first)
