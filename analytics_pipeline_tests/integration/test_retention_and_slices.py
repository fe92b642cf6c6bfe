"""Retention beside computations: the history that live had stays, and a floor that is raised meanwhile holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import Invalidation, actionable_hours, add
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.faulty import happen, mend
from analytics_pipeline_tests.pipeline import reading

DAYS = 10
NOW = datetime.now(UTC)
#: The hour that goes first.
OLDEST = hour_of(NOW) - timedelta(days=DAYS)


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    minutes = [(minute, 20.0 + minute % 5) for minute in range(40, 64)]
    values = [*minutes, (64, 500.0)]
    opened.send([reading(OLDEST + timedelta(minutes=m), v) for m, v in values])
    opened.send([reading(OLDEST + timedelta(minutes=59, seconds=50), 21.0)])
    opened.drain()
    return opened


def expire_hours(env: Environment, hours: int = 1) -> None:
    with connection(env.pipeline.engine) as conn:
        now = NOW + HOUR * hours
        expire(conn, env.pipeline.registry.by_name, now, DAYS, look_back=PRESS.history)


def test_the_first_kept_hours_are_rebuilt_from_the_history_that_live_had(env: Environment) -> None:
    env.pipeline.settle()
    kept = OLDEST + HOUR
    rows = "SELECT * FROM anomalies ORDER BY 1, 2, 3, 4, 5"
    windows = "SELECT * FROM window_aggregates WHERE bucket_start >= %s ORDER BY 1, 2, 3, 4"
    assert len(before := env.pipeline.query(rows)) == 1
    carried = env.pipeline.query(windows, kept)
    expire_hours(env)
    env.pipeline.rebuild([kept])
    env.pipeline.settle()
    assert env.pipeline.query(rows) == before
    assert env.pipeline.query(windows, kept) == carried
    assert env.pipeline.query("SELECT min(event_time) >= %s FROM normalized_measurements", kept) == [(True,)]


def test_the_history_below_the_floor_goes_when_nothing_looks_back_so_far(env: Environment) -> None:
    env.pipeline.settle()
    expire_hours(env)
    below = "SELECT count(*) FROM window_aggregates WHERE bucket_start < %s"
    assert env.pipeline.query(below, OLDEST + HOUR)[0][0] > 0
    expire_hours(env, 1 + PRESS.history // HOUR)
    assert env.pipeline.query(below, OLDEST + HOUR) == [(0,)]


def test_a_dead_letter_goes_by_its_arrival_and_never_by_its_hour(env: Environment) -> None:
    env.send([reading(OLDEST + timedelta(minutes=50), 1.0, sensor_id="")], rejected=True)
    env.drain()
    env.pipeline.settle()
    expire_hours(env)
    assert env.pipeline.query("SELECT hour FROM dead_letters") == [(OLDEST,)]
    expire_hours(env, 24 * DAYS + 3)  # it came in the hour of NOW, or in the next one
    assert env.pipeline.count("dead_letters") == 0


@pytest.mark.parametrize("asset", DERIVED)
def test_a_slice_begins_anew_when_the_floor_is_raised_meanwhile(env: Environment, asset: str) -> None:
    for earlier in DERIVED[: DERIVED.index(asset)]:
        env.pipeline.deriver.derive_hours(earlier, [OLDEST, OLDEST + HOUR], "incremental", "test")
    tries: list[int] = []

    def raise_the_floor(works: object) -> None:
        tries.append(1)
        if len(tries) == 1:
            expire_hours(env)

    happen(env.pipeline.deriver, asset, "press", "write", raise_the_floor)
    done = env.pipeline.deriver.derive_hours(asset, [OLDEST, OLDEST + HOUR], "incremental", "test")
    mend(env.pipeline.deriver)
    assert len(tries) == 2
    assert [one.hour for one in done.outcomes] == [OLDEST + HOUR]
    assert env.pipeline.query("SELECT count(*) FROM partition_state WHERE hour < %s", OLDEST + HOUR) == [(0,)]


def test_work_below_the_floor_is_not_asked_for(env: Environment) -> None:
    env.pipeline.settle()
    expire_hours(env)
    with connection(env.pipeline.engine) as conn:
        add(conn, [Invalidation(asset="window_aggregates", domain_id=1, hour=OLDEST, reason="test")])
        conn.commit()
        assert actionable_hours(conn) == []
    expire_hours(env)
    assert env.pipeline.count("pending_work") == 0


def test_an_hour_is_kept_by_the_recorded_floor_and_not_by_the_clock(env: Environment) -> None:
    """Retention did not run yet: an hour that is older than its days is whole, and is computed."""
    env.pipeline.settle()
    expire_hours(env, 0)
    done = env.pipeline.deriver.derive_hours("kpis", [OLDEST], "full", "test", now=NOW + timedelta(days=30))
    assert not done.expired
    assert done.outcomes[0].rows > 0
