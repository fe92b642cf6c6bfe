"""Pending work of few series and spans: it recomputes what it reaches and no more, and equals a rebuild."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import Pipeline, reading

START = hour_of(datetime.now(UTC)) - 6 * HOUR
#: Enough that one or two of them are below a tenth.
SERIES = 40


pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def at(minute: float, sensor: int, value: float = 20.0, machine: str = "mc-01") -> bytes:
    return reading(START + timedelta(minutes=minute), value, sensor_id=f"s-{sensor:05d}", machine_id=machine)


def send_and_settle(env: Environment, values: list[bytes]) -> None:
    env.send(values)
    env.drain()
    env.pipeline.settle()


def everybody(env: Environment, minutes: range = range(0, 60, 10)) -> None:
    """Every series has a sample a quarter into each of these minutes."""
    send_and_settle(env, [at(m + 0.25, s, 20 + (m + s) % 5) for m in minutes for s in range(SERIES)])


# ---------------------------------------------------------------------- rectangles that overlap


def test_series_whose_next_window_is_reached_beside_others_count_their_samples_once(env: Environment) -> None:
    """The scope names two series, the changed last sample reaches the next window of one of them only."""
    everybody(env)
    send_and_settle(env, [at(m, 0) for m in (1, 2, 3)])
    send_and_settle(env, [at(0.5, 0, 30.0), at(0.5, 1, 30.0)])
    counted = env.pipeline.query(
        "SELECT DISTINCT count_n FROM window_aggregates w JOIN measurement_series s USING (series_id) "
        "WHERE window_s = 300 AND sensor_id = 's-00000' AND bucket_start = %s",
        START,
    )
    assert counted == [(5,)]
    assert_live_equals_rebuild(env.pipeline)


# ---------------------------------------------------------------------- what a worker does not know yet


def test_kpis_of_a_machine_count_a_series_that_another_worker_met_first(env: Environment) -> None:
    everybody(env)
    here = env.pipeline
    there = Pipeline(env.settings, here.engine, here.registry)
    env.send([at(5, 999)])
    env.drain()
    there.settle()  # the new series of the machine is known there, not here
    there.close()
    send_and_settle(env, [at(6, 0)])
    messages = here.query("SELECT value FROM kpis WHERE kpi = 'messages' AND bucket_start = %s", START)
    assert messages == [(6 * SERIES + 2,)]
    assert_live_equals_rebuild(here)


# ---------------------------------------------------------------------- no more than it reaches


def asked(env: Environment, asset: str) -> list[tuple[object, ...]]:
    return env.pipeline.query(
        "SELECT hour, series, spans, reason FROM pending_work WHERE asset = %s ORDER BY hour, reason", asset
    )


def test_a_late_message_of_one_sensor_of_many_asks_for_its_windows_only(env: Environment) -> None:
    everybody(env, range(0, 180, 10))
    (number,) = env.pipeline.query("SELECT series_id FROM measurement_series WHERE sensor_id = 's-00007'")[0]
    env.send([at(31, 7, 25.0)])
    env.drain()
    env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    assert asked(env, "window_aggregates") == [(START, [number], [1860, 1920], "measurements")]
    env.pipeline.deriver.derive("window_aggregates", START, "incremental", "test")
    assert asked(env, "anomalies") == [
        (START, [number], [1860, 3600], "windows"),
        *((START + HOUR * later, [number], [0, 3600], "look-back") for later in (1, 2)),
    ]
    assert asked(env, "kpis") == [(START, [number], [0, 3600], "windows")]
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


def touched_since(env: Environment, moment: datetime) -> int:
    found = env.pipeline.query("SELECT count(*) FROM window_aggregates WHERE updated_at > %s", moment)
    return int(found[0][0])


def test_a_late_message_writes_the_windows_that_it_reaches_and_no_others(env: Environment) -> None:
    everybody(env, range(60))
    before = env.pipeline.query("SELECT clock_timestamp()")[0][0]
    send_and_settle(env, [at(30.9, 7, 25.0)])
    # Its own of 60, 300 and 3600 s, and the next one of 60 s, into which it is carried.
    assert touched_since(env, before) == 4
    assert_live_equals_rebuild(env.pipeline)


def test_a_tenth_of_the_domains_series_is_named_and_more_are_not(env: Environment) -> None:
    everybody(env)
    for many, named in ((4, True), (5, False)):
        env.send([at(20 + many, sensor) for sensor in range(many)])
        env.drain()
        env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
        [(_, series, spans, _)] = asked(env, "window_aggregates")
        assert (series is not None) == named
        assert spans == [(20 + many) * 60, (21 + many) * 60]
        env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


@pytest.mark.parametrize(("many", "named"), [(999, True), (1000, True), (1001, False)])
def test_a_thousand_series_are_named_and_one_more_is_not(env: Environment, many: int, named: bool) -> None:
    env.send([at(0, sensor, machine=f"mc-{sensor % 50}") for sensor in range(10_020)])
    env.drain()
    env.pipeline.settle()
    env.send([at(1, sensor, 21.0, machine=f"mc-{sensor % 50}") for sensor in range(many)])
    env.drain()
    env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    [(_, series, spans, _)] = asked(env, "window_aggregates")
    assert (None if series is None else len(series)) == (many if named else None)
    assert spans == [60, 120]
    env.pipeline.settle()
    assert_live_equals_rebuild(env.pipeline)


def test_minutes_that_touch_are_one_span(env: Environment) -> None:
    everybody(env)
    env.send([at(minute, 3) for minute in (11, 12, 13, 15)])
    env.drain()
    env.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    [(_, _, spans, _)] = asked(env, "window_aggregates")
    assert spans == [660, 840, 900, 960]
