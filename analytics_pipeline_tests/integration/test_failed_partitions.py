"""A domain partition that raises holds back itself alone, backs off, and comes back by success, code or a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from analytics_pipeline.assets.calculation import Work
from analytics_pipeline.assets.derive import MAX_RESTARTS, Deriver
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, hour_of
from analytics_pipeline.storage import partition_state
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours, live_items
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, raising, topic_of, with_domain
from analytics_pipeline_tests.domains.copies import OVEN, PRESS
from analytics_pipeline_tests.faulty import PHASES, FaultError, happen, inject, mend
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.quick_gate import use_quick_gates
from analytics_pipeline_tests.worlds import World

START = hour_of(datetime.now(UTC)) - 6 * HOUR
HOURS = [START, START + HOUR]
DOMAINS = ("oven", "press", "raising")


@pytest.fixture(autouse=True)
def _quick_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_gates(monkeypatch)


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[World]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, OVEN, raising.DOMAIN]) as it:
        yield it


@pytest.fixture
def world(opened: World) -> World:
    begin_anew(opened, [PRESS, OVEN, raising.DOMAIN])
    return opened


def send(world: World, value: float = 20.0, hours: Sequence[datetime] = HOURS, **more: Any) -> None:
    for name in DOMAINS:
        values = [reading(hour + timedelta(minutes=m), value + m, **more) for hour in hours for m in range(3)]
        world.send(values, topic=topic_of(world, name))
    world.drain()


def derive_until(world: World, asset: DerivedName) -> None:
    """Everything before the asset."""
    for name in DERIVED[: DERIVED.index(asset)]:
        world.pipeline.deriver.derive_hours(name, HOURS, "incremental", "test")


def run(world: World, asset: DerivedName, deriver: Deriver | None = None) -> Any:
    return (deriver or world.pipeline.deriver).derive_hours(asset, HOURS, "incremental", "test")


def committed(done: Any) -> set[tuple[datetime, str]]:
    return {(hour.hour, one.domain) for hour in done.outcomes for one in hour.domains}


def failures(world: World) -> list[tuple[Any, ...]]:
    """(domain, hour, attempts, seconds of rest), by hour."""
    return world.pipeline.query(
        "SELECT domain, hour, attempts, round(extract(epoch FROM next_try_at - failed_at))::int "
        "FROM partition_failure JOIN domain_number USING (domain_id) ORDER BY 1, 2"
    )


def pending(world: World, asset: str) -> set[tuple[str, datetime]]:
    rows = world.pipeline.query(
        "SELECT domain, hour FROM pending_work JOIN domain_number USING (domain_id) WHERE asset = %s", asset
    )
    return set(rows)


def wait_no_more(world: World) -> None:
    """As if the rests had passed."""
    with connection(world.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("UPDATE partition_failure SET next_try_at = now()")
        conn.commit()


# ---------------------------------------------------------------------- the others go on


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("asset", DERIVED)
def test_a_domain_that_raises_holds_back_itself_alone(world: World, asset: DerivedName, phase: str) -> None:
    send(world)
    derive_until(world, asset)
    slices = inject(world.pipeline.deriver, asset, "oven", phase)
    done = run(world, asset)
    assert slices == [6, 2, 1, 1], "split by domain, then by hour"
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "raising")}
    assert {(one.hour, one.domain) for one in done.errors} == {(hour, "oven") for hour in HOURS}
    assert failures(world) == [("oven", hour, 1, 5) for hour in HOURS]
    assert pending(world, asset) == {("oven", hour) for hour in HOURS}

    mend(world.pipeline.deriver)
    wait_no_more(world)
    world.pipeline.settle()
    assert failures(world) == []
    assert_live_equals_rebuild(world.pipeline)


@pytest.mark.parametrize("asset", DERIVED)
def test_a_gate_that_cannot_be_evaluated_holds_back_its_domain_alone(world: World, asset: DerivedName) -> None:
    send(world)
    derive_until(world, asset)
    broken = with_domain(world, raising.unevaluable(asset))
    with connection(world.pipeline.engine) as conn, conn.cursor() as cursor:
        # A gate looks at rows only: let every asset have some.
        cursor.execute("INSERT INTO analytics_spec_limits (metric, usl) VALUES ('temp', 1)")
        conn.commit()
    done = run(world, asset, broken.deriver)
    broken.close()
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "oven")}
    assert {(one.hour, one.domain) for one in done.errors} == {(hour, "raising") for hour in HOURS}
    assert all("no_such_column" in str(one.error) for one in done.errors)
    wait_no_more(world)
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


def test_one_hour_of_a_domain_that_raises_holds_back_that_hour_alone(world: World) -> None:
    send(world)
    world.send([reading(START + timedelta(minutes=30), raising.UNBEARABLE)], topic=topic_of(world, "raising"))
    world.drain()
    derive_until(world, "anomalies")
    done = run(world, "anomalies")
    assert [(one.hour, one.domain) for one in done.errors] == [(START, "raising")]
    assert committed(done) == {(hour, name) for hour in HOURS for name in DOMAINS} - {(START, "raising")}


def test_a_message_that_its_domain_cannot_read_is_a_dead_letter(world: World) -> None:
    send(world)
    topic = topic_of(world, "raising")
    world.send([reading(START, 1.0, metric=raising.UNREADABLE)], topic=topic, refused=True)
    world.drain()
    world.pipeline.settle()
    letters = world.pipeline.query("SELECT topic, stage, reason FROM dead_letters")
    assert letters == [(topic, "normalized_measurements", "domain_error")]
    assert_live_equals_rebuild(world.pipeline)


# ---------------------------------------------------------------------- it backs off


def resting(world: World) -> None:
    """Windows of the domain ``oven`` failed once."""
    send(world)
    derive_until(world, "window_aggregates")
    inject(world.pipeline.deriver, "window_aggregates", "oven", "compute")
    run(world, "window_aggregates")
    for asset in ("anomalies", "kpis"):
        run(world, asset)


def test_what_rests_is_not_asked_for_and_is_no_backpressure(world: World) -> None:
    resting(world)
    with connection(world.pipeline.engine) as conn:
        assert actionable_hours(conn) == []
        assert live_items(conn, START) == 0
    assert committed(run(world, "window_aggregates")) == set()
    assert [row[2] for row in failures(world)] == [1, 1], "it was not tried"


def test_fresh_pending_work_does_not_end_the_rest(world: World) -> None:
    resting(world)
    send(world, 30.0)
    run(world, "normalized_measurements")
    with connection(world.pipeline.engine) as conn:
        names = {name for hour in actionable_hours(conn) for name in hour.domains}
    assert names == {"press", "raising"}
    assert committed(run(world, "window_aggregates")) == {(h, n) for h in HOURS for n in ("press", "raising")}
    assert [row[2] for row in failures(world)] == [1, 1]


def test_each_failure_doubles_the_rest_up_to_ten_minutes(world: World) -> None:
    resting(world)
    rests = [failures(world)[0][3]]
    for _ in range(9):
        wait_no_more(world)
        run(world, "window_aggregates")
        rests.append(failures(world)[0][3])
    assert rests == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert [row[2] for row in failures(world)] == [10, 10]


def test_changed_code_tries_again_at_once_and_counts_anew(world: World) -> None:
    resting(world)
    wait_no_more(world)
    run(world, "window_aggregates")
    changed = Deriver(world.settings, world.pipeline.engine, world.pipeline.registry, code_version="2")
    with connection(world.pipeline.engine) as conn:
        assert actionable_hours(conn, code_version="2") != []
    inject(changed, "window_aggregates", "oven", "compute")
    assert len(run(world, "window_aggregates", changed).errors) == 2
    assert [row[2:] for row in failures(world)] == [(1, 5), (1, 5)]
    mend(changed)
    wait_no_more(world)
    assert committed(run(world, "window_aggregates", changed)) == {(hour, "oven") for hour in HOURS}
    assert failures(world) == []


def test_a_person_may_end_the_rest(world: World) -> None:
    resting(world)
    mend(world.pipeline.deriver)
    number = world.pipeline.query("SELECT domain_id FROM domain_number WHERE domain = 'oven'")[0][0]
    with connection(world.pipeline.engine) as conn:
        partition_state.clear_failures(conn, "window_aggregates", [(number, hour) for hour in HOURS])
        conn.commit()
    assert committed(run(world, "window_aggregates")) == {(hour, "oven") for hour in HOURS}


def test_a_full_run_does_not_wait_and_its_success_clears_the_failure(world: World) -> None:
    resting(world)
    mend(world.pipeline.deriver)
    done = world.pipeline.deriver.derive_hours("window_aggregates", HOURS, "full", "by hand")
    assert committed(done) == {(hour, name) for hour in HOURS for name in DOMAINS}
    assert failures(world) == []
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


# ---------------------------------------------------------------------- what says nothing of one domain


@pytest.mark.parametrize(
    "error", [psycopg2.errors.SerializationFailure("in the way"), psycopg2.errors.DeadlockDetected("in the way")]
)
@pytest.mark.parametrize("times", [1, MAX_RESTARTS])
def test_a_slice_in_the_way_of_another_begins_anew(world: World, error: Exception, times: int) -> None:
    send(world)
    derive_until(world, "window_aggregates")
    tries: list[int] = []

    def fail_a_few_times(works: Sequence[Work]) -> None:
        tries.append(len(works))
        if len(tries) <= times:
            raise error

    happen(world.pipeline.deriver, "window_aggregates", "oven", "write", fail_a_few_times)
    done = run(world, "window_aggregates")
    assert tries == [6] * (times + 1), "begun anew, never split"
    assert len(committed(done)) == 6
    mend(world.pipeline.deriver)
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.OperationalError("server closed the connection unexpectedly"),
        psycopg2.InterfaceError("connection already closed"),
        psycopg2.errors.AdminShutdown("terminating connection"),
        MemoryError(),
        KeyboardInterrupt(),
        psycopg2.errors.SerializationFailure("always in the way"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_of_a_domain_splits_nothing_and_counts_as_no_failure(
    world: World, error: BaseException
) -> None:
    send(world)
    derive_until(world, "window_aggregates")
    slices = inject(world.pipeline.deriver, "window_aggregates", "oven", "compute", error)
    with pytest.raises(type(error)):
        run(world, "window_aggregates")
    assert set(slices) == {6}
    assert failures(world) == []
    mend(world.pipeline.deriver)
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.errors.StatementTooComplex("stack depth limit exceeded"),
        psycopg2.errors.ProgramLimitExceeded("index row size 2800 exceeds maximum"),
        psycopg2.errors.QueryCanceled("canceling statement due to statement timeout"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_database_refuses_of_one_domain_stops_no_other(world: World, error: BaseException) -> None:
    send(world)
    derive_until(world, "window_aggregates")
    inject(world.pipeline.deriver, "window_aggregates", "oven", "compute", error)
    done = run(world, "window_aggregates")
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "raising")}
    assert [row[:3] for row in failures(world)] == [("oven", hour, 1) for hour in HOURS]


def test_a_single_domain_that_raises_is_named_by_its_error(world: World) -> None:
    send(world, hours=HOURS[:1])
    inject(world.pipeline.deriver, "normalized_measurements", "oven", "read")
    with pytest.raises(FaultError, match="oven fails to read"):
        world.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")


def test_a_domain_that_is_not_there_is_refused_by_name(world: World) -> None:
    with pytest.raises(Exception, match="no_such_domain"):
        world.pipeline.deriver.derive_hours("kpis", HOURS, "full", "by hand", domains=["press", "no_such_domain"])
