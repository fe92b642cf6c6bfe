"""Quarantine holds back what failed and nothing beside it, and ends automatically when better input comes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.assets.measurements import table
from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.operator_actions import release
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, strict, topic_of
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(
        postgres_server, kafka_broker.bootstrap_servers, [strict.DOMAIN, PRESS], windows=[60, 3600, 7200]
    ) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def send(env: Environment, *values: bytes, kafka_s: int = 0) -> None:
    stamp = int((START + 20 * HOUR + timedelta(seconds=kafka_s)).timestamp() * 1000)
    env.send(values, topic=topic_of(env, "strict"), timestamp=stamp)
    env.drain()


def at(second: float, value: float = 20.0, sensor: str = "s-001") -> bytes:
    return reading(START + timedelta(seconds=second), value, sensor_id=sensor)


def states(env: Environment, asset: str) -> dict[datetime, str]:
    return dict(env.pipeline.query("SELECT hour, status FROM partition_state WHERE asset = %s", asset))


def held(env: Environment, asset: str) -> list[tuple[Any, ...]]:
    return env.pipeline.query("SELECT hour, series, held FROM pending_work WHERE asset = %s ORDER BY 1", asset)


def settle_in_slices_of_hours(env: Environment, hours: int = 3) -> None:
    """As a range run does: each asset over all hours, until nothing is left to do."""
    wanted = [START + HOUR * number for number in range(hours)]
    for _ in range(20):
        with connection(env.pipeline.engine) as conn:
            todo = actionable_hours(conn)
        if not todo:
            return
        for asset in ("normalized_measurements", "window_aggregates", "anomalies", "kpis"):
            done = env.pipeline.deriver.derive_hours(asset, wanted, "incremental", "test")
            assert not done.errors
    raise AssertionError(todo)


# ---------------------------------------------------------------------- windows: a series alone


def test_a_window_that_fails_withholds_its_series_only(env: Environment) -> None:
    send(env, *(at(60 * minute, 20, f"s-{sensor:03d}") for minute in range(5) for sensor in range(3)))
    send(env, at(90, 5000.0, "s-001"))
    env.pipeline.settle()
    written = env.pipeline.query(
        "SELECT DISTINCT sensor_id FROM window_aggregates JOIN measurement_series USING (series_id) ORDER BY 1"
    )
    assert written == [("s-000",), ("s-002",)]
    (number,) = env.pipeline.query("SELECT series_id FROM measurement_series WHERE sensor_id = 's-001'")[0]
    assert states(env, "window_aggregates") == {START: "quarantined"}
    assert held(env, "window_aggregates") == [(START, [number], True)]
    with connection(env.pipeline.engine) as conn:
        assert actionable_hours(conn) == [], "what is held is not asked for"


def test_a_withheld_window_is_never_written_also_after_a_release(env: Environment) -> None:
    send(env, at(0), at(60, 5000.0), at(0, 21.0, "s-002"))
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        release(conn, "window_aggregates", START, "strict")
        conn.commit()
    env.pipeline.settle()
    env.pipeline.rebuild([START])
    env.pipeline.settle()
    worst = env.pipeline.query("SELECT max(max_val), count(*) FROM window_aggregates")
    assert worst == [(21.0, 3)], "60, 3600 and 7200 s of the other sensor"
    assert states(env, "window_aggregates")[START] == "quarantined"


@pytest.mark.parametrize("bad_hour", [0, 1])
def test_what_was_carried_on_from_a_withheld_window_is_computed_again(env: Environment, bad_hour: int) -> None:
    """The bad sample is superseded by what was stored before: its own hour is as it was, the next one must be too."""
    last = HOUR.total_seconds() * (bad_hour + 1) - 20
    send(env, at(10), at(last), at(last + 40, 21.0))
    settle_in_slices_of_hours(env)
    before = env.pipeline.snapshot()
    send(env, at(last, 5000.0), at(last + 50, 22.0), kafka_s=1)
    settle_in_slices_of_hours(env)
    assert states(env, "window_aggregates")[START + HOUR * bad_hour] == "quarantined"
    send(env, at(last, 20.0), kafka_s=2)
    settle_in_slices_of_hours(env)
    assert set(states(env, "window_aggregates").values()) == {"open"}
    assert env.pipeline.snapshot(["window_aggregates"]) != before["window_aggregates"]
    assert_live_equals_rebuild(env.pipeline)


# ---------------------------------------------------------------------- measurements: a domain, or a sensor of it


def bad(many: int, sensor: str = "s-bad", first: int = 0) -> list[bytes]:
    """So many samples that the gate refuses."""
    return [at((first + number) * 0.5, strict.HOTTEST + 1 + number, sensor) for number in range(many)]


def good(many: int, sensor: str = "s-001", first: int = 0) -> list[bytes]:
    return [at((first + number) * 0.5, 20.0, sensor) for number in range(many)]


def test_a_sensor_that_fails_batch_after_batch_holds_back_no_other(env: Environment) -> None:
    for number in range(4):
        send(env, *bad(200, first=200 * number), *good(20, first=20 * number), *good(20, "s-2", first=20 * number))
        env.pipeline.settle()
        assert states(env, "normalized_measurements") == {START: "open"}, f"batch {number}"
    assert env.pipeline.count("normalized_measurements") == 160
    assert env.pipeline.count("dead_letters") == 800


def test_a_domain_whose_sensors_all_fail_is_quarantined(env: Environment) -> None:
    send(env, *(one for sensor in range(4) for one in bad(50, f"s-{sensor}")))
    env.pipeline.settle()
    assert states(env, "normalized_measurements") == {START: "quarantined"}
    assert env.pipeline.count("dead_letters") == 0


@pytest.mark.parametrize("together", [False, True])
def test_the_gate_of_an_hour_does_not_hang_on_the_hours_beside_it(env: Environment, together: bool) -> None:
    """One hour of one failing sensor, beside an hour of another, good one."""
    send(env, *bad(150), *(at(3600 + second, 20.0, "s-good") for second in range(150)))
    env.pipeline.settle()
    if together:
        for _ in range(2):
            env.pipeline.deriver.derive_hours("normalized_measurements", [START, START + HOUR], "full", "test")
    assert states(env, "normalized_measurements") == {START: "quarantined", START + HOUR: "open"}


def test_a_batch_is_counted_once_where_one_hour_of_its_domain_is_computed_as_a_whole(env: Environment) -> None:
    """Beside it, the same slice computes what batches brought: of another domain, and of another hour."""
    hour = {name: [(START + HOUR * number) for number in range(2)] for name in ("strict", "press")}
    env.send([reading(hour["press"][0], 1.0)], topic=topic_of(env, "press"))
    send(env, *bad(1), at(1), at(3601))
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO pending_work (asset, domain_id, hour, reason) "
            "SELECT 'normalized_measurements', domain_id, %s, 'rebuilt' FROM domain_number WHERE domain = 'strict'",
            (START,),
        )
        conn.commit()
    splits: list[int] = []
    protocol = env.pipeline.deriver.protocol
    compute = protocol.compute
    protocol.compute = lambda run, keys: splits.append(len(keys)) or compute(run, keys)  # type: ignore
    done = env.pipeline.deriver.derive_hours("normalized_measurements", hour["strict"], "incremental", "test")
    assert splits == [3], "computed at once, not split"
    [outcome] = [one for one in done.outcomes[0].domains if one.domain == "strict"]
    assert (outcome.rows, outcome.dead_letters, outcome.rows_seen) == (1, 1, 2)


def test_held_work_is_one_item_and_anything_new_makes_it_actionable(env: Environment) -> None:
    for first in (0, 100, 200):
        send(env, *bad(100, first=first))
    env.pipeline.settle()
    [(batches, is_held)] = env.pipeline.query("SELECT batches, held FROM pending_work")
    assert (sorted(batches), is_held) == ([1, 2, 3], True)
    send(env, *good(1000, first=300))
    with connection(env.pipeline.engine) as conn:
        assert [one.hour for one in actionable_hours(conn)] == [START]
    env.pipeline.settle()
    assert states(env, "normalized_measurements") == {START: "open"}
    assert (env.pipeline.count("normalized_measurements"), env.pipeline.count("dead_letters")) == (1000, 300)
    assert_live_equals_rebuild(env.pipeline)


def test_a_release_writes_the_good_rows_and_keeps_the_bad_ones_out(env: Environment) -> None:
    send(env, *bad(150), *good(10, "s-bad", first=500))
    env.pipeline.settle()
    assert states(env, "normalized_measurements") == {START: "quarantined"}
    with connection(env.pipeline.engine) as conn:
        release(conn, "normalized_measurements", START, "strict")
        conn.commit()
    env.pipeline.settle()
    assert (env.pipeline.count("normalized_measurements"), env.pipeline.count("dead_letters")) == (10, 150)
    assert_live_equals_rebuild(env.pipeline)


def test_expectations_of_one_domain_are_not_asked_of_another(env: Environment) -> None:
    env.send([reading(START, strict.HOTTEST + 1)], topic=topic_of(env, "press"))
    send(env, at(0))
    settle_in_slices_of_hours(env)
    assert env.pipeline.count("dead_letters") == 0
    assert set(states(env, "window_aggregates").values()) == {"open"}
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize("bad_chunk", [0, 2])
def test_an_hour_of_many_chunks_may_hold_a_bad_row_in_one_of_them(
    env: Environment, bad_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        send(env, at(number), at(900 * number + 30), *(bad(1) if number == bad_chunk else []))
    monkeypatch.setattr(table, "CHUNK_ROWS", 2)
    monkeypatch.setattr(table, "CHUNK_BATCHES", 1)
    env.pipeline.settle()
    assert (env.pipeline.count("normalized_measurements"), env.pipeline.count("dead_letters")) == (6, 1)
    assert_live_equals_rebuild(env.pipeline)
