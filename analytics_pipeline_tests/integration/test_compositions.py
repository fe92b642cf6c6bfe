"""The same bits for any composition of slices, alone, together or by two workers; live slices take what is free."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analytics_pipeline.assets import derive as derive_module
from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.slices import Key, compose
from analytics_pipeline.assets.windows import levels
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.locks import domain_partition_locks
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.counter_invariants import assert_counters_equal_reference, counter_messages_of
from analytics_pipeline_tests.domains import begin_anew, counters, open_domains, topic_of
from analytics_pipeline_tests.domains.copies import OVEN, PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.quick_gate import use_quick_gates

HOURS = 4
START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR
ALL = [START + HOUR * number for number in range(HOURS)]


@pytest.fixture(scope="module", autouse=True)
def _quick_gates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_quick_gates(patch)
        yield


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    domains, sizes = [PRESS, OVEN, counters.DOMAIN], [60, 300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, domains, windows=sizes) as it:
        yield it


def send(env: Environment, rng: random.Random, late: bool) -> None:
    """Over several hours of each domain; ``late``: few of many series, between and in place of what is there."""
    for name in ("press", "oven"):
        moments = [
            START + timedelta(seconds=rng.randrange(HOURS * 3600), microseconds=rng.randrange(3))
            for _ in range(20 if late else 200)
        ]
        sensors = range(2) if late else range(30)
        values = [
            reading(moment, rng.random() + 50 * (rng.random() < 0.05), sensor_id=f"s-{rng.choice(sensors)}")
            for moment in moments
        ]
        values += [reading(hour - timedelta(seconds=5), rng.random(), sensor_id="s-1") for hour in ALL[1:]]
        env.send(values, topic=topic_of(env, name))
    counted = [counters.message(START + timedelta(minutes=rng.randrange(240)), rng.randrange(99)) for _ in range(9)]
    env.send(counted, topic=topic_of(env, "counters"))
    env.drain()


def settle_composed(env: Environment, groups: Sequence[Sequence[Key]] | None) -> None:
    """Do pending work in slices of these groups, each domain partition in one; None: as they are composed."""
    original = derive_module.compose

    def composed(keys: Sequence[Key], *more: object) -> list[list[Key]]:
        return [part for group in groups or () if (part := [key for key in group if key in set(keys)])]

    derive_module.compose = original if groups is None else composed  # type: ignore[assignment]
    try:
        for _ in range(30):
            with connection(env.pipeline.engine) as conn:
                if not actionable_hours(conn):
                    return
            for asset in DERIVED:
                done = env.pipeline.deriver.derive_hours(asset, ALL, "incremental", "test")
                assert not done.errors
    finally:
        derive_module.compose = original
    raise AssertionError("never settled")


def partitions(env: Environment) -> list[Key]:
    numbers = [row[0] for row in env.pipeline.query("SELECT domain_id FROM domain_number ORDER BY 1")]
    return [(number, hour) for number in numbers for hour in ALL]


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(["alone", "together", "by domain", "by hour", "random"]))
def test_any_composition_of_slices_leaves_the_same_tables(opened: Environment, seed: int, shape: str) -> None:
    begin_anew(opened)
    rng = random.Random(seed)
    send(opened, rng, late=False)
    settle_composed(opened, _groups(partitions(opened), shape, rng))
    send(opened, rng, late=True)
    settle_composed(opened, _groups(partitions(opened), shape, rng))
    sent = [one for one in opened.sent if one.topic == topic_of(opened, "counters")]
    assert_counters_equal_reference(opened.pipeline, counter_messages_of(sent))
    assert_live_equals_rebuild(opened.pipeline)


def _groups(keys: list[Key], shape: str, rng: random.Random) -> list[list[Key]] | None:
    if shape == "together":
        return [keys]
    names = {"alone": lambda key: key, "by domain": lambda key: key[0], "by hour": lambda key: key[1]}
    chosen = {key: rng.randrange(4) for key in keys}
    name = names.get(shape, chosen.__getitem__)
    groups: dict[object, list[Key]] = {}
    for key in rng.sample(keys, len(keys)):
        groups.setdefault(name(key), []).append(key)
    return list(groups.values())


def test_windows_merged_by_ranges_of_series_are_those_that_are_merged_at_once(
    opened: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_anew(opened)
    rng = random.Random(11)
    with monkeypatch.context() as patch:
        patch.setattr(levels, "MERGED_WINDOWS", 100)
        for late in (False, True):
            send(opened, rng, late=late)
            settle_composed(opened, None)
    assert_live_equals_rebuild(opened.pipeline)


def test_two_workers_with_overlapping_slices_in_opposite_orders_leave_the_same_tables(opened: Environment) -> None:
    begin_anew(opened)
    rng = random.Random(7)
    others = [Pipeline(opened.settings, opened.pipeline.engine, opened.pipeline.registry) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for round_number in range(4):
            send(opened, rng, late=round_number > 0)
            running = [
                threads.submit(_work, one.deriver, hours)
                for one, hours in zip(others, ([*ALL], [*reversed(ALL)]), strict=True)
            ]
            for one in running:
                one.result(PATIENCE_S)
    for one in others:
        one.close()
    opened.pipeline.settle()
    assert_live_equals_rebuild(opened.pipeline)


def _work(deriver: Deriver, hours: Sequence[datetime]) -> None:
    for asset in DERIVED:
        for step in range(len(hours) - 1):
            done = deriver.derive_hours(asset, hours[step : step + 2], "incremental", "test")
            assert not done.errors
            assert not done.busy


# ---------------------------------------------------------------------- live slices


def test_a_slice_that_holds_a_live_hour_holds_live_hours_only() -> None:
    live = START + 2 * HOUR
    slices = compose([(number, hour) for number in range(3) for hour in ALL], lambda _: 1, live)
    assert [{hour >= live for _, hour in keys} for keys in slices] == [{False}, {True}]


def test_a_live_slice_takes_what_is_free_and_comes_back_for_the_rest(opened: Environment) -> None:
    begin_anew(opened)
    rng = random.Random(3)
    send(opened, rng, late=False)
    now = ALL[-1] + timedelta(minutes=30)
    oven = opened.pipeline.query("SELECT domain_id FROM domain_number WHERE domain = 'oven'")[0][0]
    deriver = opened.pipeline.deriver
    waiting, order = Gate(), []
    with connection(opened.pipeline.engine) as conn, ThreadPoolExecutor(1) as threads:
        with domain_partition_locks(conn, "normalized_measurements", [(oven, ALL[-1])], wait=True):
            before(deriver.protocol, "_commit", waiting.hold)
            running = threads.submit(
                deriver.derive_hours, "normalized_measurements", ALL[-1:], "incremental", "live", now=now
            )
            waiting.wait_until_reached()  # it computed the others although one was held
            waiting.let_go()
            while not (order := opened.pipeline.query("SELECT domain_id FROM partition_outcome")):
                assert not running.done()
        done = running.result(PATIENCE_S)
    assert (oven,) not in order
    assert {one.domain for one in done.outcomes[0].domains} >= {"oven", "press"}
    opened.pipeline.settle()
    assert_live_equals_rebuild(opened.pipeline)
