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
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.faulty import PHASES, FaultError, happen, inject, mend
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 6 * HOUR
HOURS = [START, START + HOUR]
DOMAINS = ("oven", "press", "raising")


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, OVEN, raising.DOMAIN]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened, [PRESS, OVEN, raising.DOMAIN])
    return opened


def send(env: Environment, value: float = 20.0, hours: Sequence[datetime] = HOURS, **more: Any) -> None:
    for name in DOMAINS:
        values = [reading(hour + timedelta(minutes=m), value + m, **more) for hour in hours for m in range(3)]
        env.send(values, topic=topic_of(env, name))
    env.drain()


def derive_until(env: Environment, asset: DerivedName) -> None:
    """Everything before the asset."""
    for name in DERIVED[: DERIVED.index(asset)]:
        env.pipeline.deriver.derive_hours(name, HOURS, "incremental", "test")


def run(env: Environment, asset: DerivedName, deriver: Deriver | None = None) -> Any:
    return (deriver or env.pipeline.deriver).derive_hours(asset, HOURS, "incremental", "test")


def committed(done: Any) -> set[tuple[datetime, str]]:
    return {(hour.hour, one.domain) for hour in done.outcomes for one in hour.domains}


def failures(env: Environment) -> list[tuple[Any, ...]]:
    """(domain, hour, attempts, seconds of rest), by hour."""
    return env.pipeline.query(
        "SELECT domain, hour, attempts, round(extract(epoch FROM next_try_at - failed_at))::int "
        "FROM partition_failure JOIN domain_number USING (domain_id) ORDER BY 1, 2"
    )


def pending(env: Environment, asset: str) -> set[tuple[str, datetime]]:
    rows = env.pipeline.query(
        "SELECT domain, hour FROM pending_work JOIN domain_number USING (domain_id) WHERE asset = %s", asset
    )
    return set(rows)


def wait_no_more(env: Environment) -> None:
    """As if the rests had passed."""
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("UPDATE partition_failure SET next_try_at = now()")
        conn.commit()


# ---------------------------------------------------------------------- the others go on


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("asset", DERIVED)
def test_a_domain_that_raises_holds_back_itself_alone(env: Environment, asset: DerivedName, phase: str) -> None:
    send(env)
    derive_until(env, asset)
    slices = inject(env.pipeline.deriver, asset, "oven", phase)
    done = run(env, asset)
    assert slices == [6, 2, 1, 1], "split by domain, then by hour"
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "raising")}
    assert {(one.hour, one.domain) for one in done.errors} == {(hour, "oven") for hour in HOURS}
    assert failures(env) == [("oven", hour, 1, 5) for hour in HOURS]
    assert pending(env, asset) == {("oven", hour) for hour in HOURS}

    mend(env.pipeline.deriver)
    wait_no_more(env)
    env.pipeline.settle()
    assert failures(env) == []
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize("asset", DERIVED)
def test_a_gate_that_cannot_be_evaluated_holds_back_its_domain_alone(env: Environment, asset: DerivedName) -> None:
    send(env)
    derive_until(env, asset)
    broken = with_domain(env, raising.unevaluable(asset))
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        # A gate looks at rows only: let every asset have some.
        cursor.execute("INSERT INTO analytics_spec_limits (metric, usl) VALUES ('temp', 1)")
        conn.commit()
    done = run(env, asset, broken.deriver)
    broken.close()
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "oven")}
    assert {(one.hour, one.domain) for one in done.errors} == {(hour, "raising") for hour in HOURS}
    assert all("no_such_column" in str(one.error) for one in done.errors)
    wait_no_more(env)
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


def test_one_hour_of_a_domain_that_raises_holds_back_that_hour_alone(env: Environment) -> None:
    send(env)
    env.send([reading(START + timedelta(minutes=30), raising.UNBEARABLE)], topic=topic_of(env, "raising"))
    env.drain()
    derive_until(env, "anomalies")
    done = run(env, "anomalies")
    assert [(one.hour, one.domain) for one in done.errors] == [(START, "raising")]
    assert committed(done) == {(hour, name) for hour in HOURS for name in DOMAINS} - {(START, "raising")}


def test_a_message_that_its_domain_cannot_read_is_a_dead_letter(env: Environment) -> None:
    send(env)
    topic = topic_of(env, "raising")
    env.send([reading(START, 1.0, metric=raising.UNREADABLE)], topic=topic, rejected=True)
    env.drain()
    env.pipeline.settle()
    rejected = env.pipeline.query("SELECT topic, stage, reason FROM dead_letters")
    assert rejected == [(topic, "normalized_measurements", "domain_error")]
    assert_live_equals_rebuild(env.pipeline)


# ---------------------------------------------------------------------- it backs off


def resting(env: Environment) -> None:
    """Windows of the domain ``oven`` failed once."""
    send(env)
    derive_until(env, "window_aggregates")
    inject(env.pipeline.deriver, "window_aggregates", "oven", "compute")
    run(env, "window_aggregates")
    for asset in ("anomalies", "kpis"):
        run(env, asset)


def test_what_rests_is_not_asked_for_and_is_no_backpressure(env: Environment) -> None:
    resting(env)
    with connection(env.pipeline.engine) as conn:
        assert actionable_hours(conn) == []
        assert live_items(conn, START) == 0
    assert committed(run(env, "window_aggregates")) == set()
    assert [row[2] for row in failures(env)] == [1, 1], "it was not tried"


def test_a_rest_from_before_the_clock_was_set_back_is_over(env: Environment) -> None:
    resting(env)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("UPDATE partition_failure SET next_try_at = next_try_at + interval '2 hours'")
        conn.commit()
        assert [one.hour for one in actionable_hours(conn)] == HOURS
    run(env, "window_aggregates")
    assert [row[2] for row in failures(env)] == [2, 2], "it was tried"


def test_fresh_pending_work_does_not_end_the_rest(env: Environment) -> None:
    resting(env)
    send(env, 30.0)
    run(env, "normalized_measurements")
    with connection(env.pipeline.engine) as conn:
        names = {name for hour in actionable_hours(conn) for name in hour.domains}
    assert names == {"press", "raising"}
    assert committed(run(env, "window_aggregates")) == {(h, n) for h in HOURS for n in ("press", "raising")}
    assert [row[2] for row in failures(env)] == [1, 1]


def test_each_failure_doubles_the_rest_up_to_ten_minutes(env: Environment) -> None:
    resting(env)
    rests = [failures(env)[0][3]]
    for _ in range(9):
        wait_no_more(env)
        run(env, "window_aggregates")
        rests.append(failures(env)[0][3])
    assert rests == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert [row[2] for row in failures(env)] == [10, 10]


def test_changed_code_tries_again_at_once_and_counts_anew(env: Environment) -> None:
    resting(env)
    wait_no_more(env)
    run(env, "window_aggregates")
    changed = Deriver(env.settings, env.pipeline.engine, env.pipeline.registry, code_version="2")
    with connection(env.pipeline.engine) as conn:
        assert actionable_hours(conn, code_version="2") != []
    inject(changed, "window_aggregates", "oven", "compute")
    assert len(run(env, "window_aggregates", changed).errors) == 2
    assert [row[2:] for row in failures(env)] == [(1, 5), (1, 5)]
    mend(changed)
    wait_no_more(env)
    assert committed(run(env, "window_aggregates", changed)) == {(hour, "oven") for hour in HOURS}
    assert failures(env) == []


def test_a_person_may_end_the_rest(env: Environment) -> None:
    resting(env)
    mend(env.pipeline.deriver)
    number = env.pipeline.query("SELECT domain_id FROM domain_number WHERE domain = 'oven'")[0][0]
    with connection(env.pipeline.engine) as conn:
        partition_state.clear_failures(conn, "window_aggregates", [(number, hour) for hour in HOURS])
        conn.commit()
    assert committed(run(env, "window_aggregates")) == {(hour, "oven") for hour in HOURS}


def test_a_full_run_does_not_wait_and_its_success_clears_the_failure(env: Environment) -> None:
    resting(env)
    mend(env.pipeline.deriver)
    done = env.pipeline.deriver.derive_hours("window_aggregates", HOURS, "full", "by hand")
    assert committed(done) == {(hour, name) for hour in HOURS for name in DOMAINS}
    assert failures(env) == []
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


# ---------------------------------------------------------------------- what says nothing of one domain


@pytest.mark.parametrize(
    "error", [psycopg2.errors.SerializationFailure("in the way"), psycopg2.errors.DeadlockDetected("in the way")]
)
@pytest.mark.parametrize("times", [1, MAX_RESTARTS])
def test_a_slice_in_the_way_of_another_begins_anew(env: Environment, error: Exception, times: int) -> None:
    send(env)
    derive_until(env, "window_aggregates")
    tries: list[int] = []

    def fail_a_few_times(works: Sequence[Work]) -> None:
        tries.append(len(works))
        if len(tries) <= times:
            raise error

    happen(env.pipeline.deriver, "window_aggregates", "oven", "write", fail_a_few_times)
    done = run(env, "window_aggregates")
    assert tries == [6] * (times + 1), "begun anew, never split"
    assert len(committed(done)) == 6
    mend(env.pipeline.deriver)
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


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
    env: Environment, error: BaseException
) -> None:
    send(env)
    derive_until(env, "window_aggregates")
    slices = inject(env.pipeline.deriver, "window_aggregates", "oven", "compute", error)
    with pytest.raises(type(error)):
        run(env, "window_aggregates")
    assert set(slices) == {6}
    assert failures(env) == []
    mend(env.pipeline.deriver)
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.errors.StatementTooComplex("stack depth limit exceeded"),
        psycopg2.errors.ProgramLimitExceeded("index row size 2800 exceeds maximum"),
        psycopg2.errors.QueryCanceled("canceling statement due to statement timeout"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_database_refuses_of_one_domain_stops_no_other(env: Environment, error: BaseException) -> None:
    send(env)
    derive_until(env, "window_aggregates")
    inject(env.pipeline.deriver, "window_aggregates", "oven", "compute", error)
    done = run(env, "window_aggregates")
    assert committed(done) == {(hour, name) for hour in HOURS for name in ("press", "raising")}
    assert [row[:3] for row in failures(env)] == [("oven", hour, 1) for hour in HOURS]


def test_a_single_domain_that_raises_is_named_by_its_error(env: Environment) -> None:
    send(env, hours=HOURS[:1])
    inject(env.pipeline.deriver, "normalized_measurements", "oven", "read")
    with pytest.raises(FaultError, match="oven fails to read"):
        env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")


def test_a_domain_that_is_not_there_is_refused_by_name(env: Environment) -> None:
    with pytest.raises(Exception, match="no_such_domain"):
        env.pipeline.deriver.derive_hours("kpis", HOURS, "full", "by hand", domains=["press", "no_such_domain"])
