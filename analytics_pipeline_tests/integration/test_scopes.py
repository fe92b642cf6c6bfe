"""Pending work of few series and spans: it recomputes what it reaches and no more, and equals a rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.quick_gate import use_quick_gates
from analytics_pipeline_tests.worlds import World

START = hour_of(datetime.now(UTC)) - 6 * HOUR
#: Enough that one or two of them are below a tenth.
SERIES = 40


@pytest.fixture(autouse=True)
def _quick_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_gates(monkeypatch)


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[World]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS]) as it:
        yield it


@pytest.fixture
def world(opened: World) -> World:
    begin_anew(opened)
    return opened


def at(minute: float, sensor: int, value: float = 20.0, machine: str = "mc-01") -> bytes:
    return reading(START + timedelta(minutes=minute), value, sensor_id=f"s-{sensor:05d}", machine_id=machine)


def send_and_settle(world: World, values: list[bytes]) -> None:
    world.send(values)
    world.drain()
    world.pipeline.settle()


def everybody(world: World, minutes: range = range(0, 60, 10)) -> None:
    """Every series has a sample a quarter into each of these minutes."""
    send_and_settle(world, [at(m + 0.25, s, 20 + (m + s) % 5) for m in minutes for s in range(SERIES)])


# ---------------------------------------------------------------------- rectangles that overlap


def test_series_whose_next_window_is_reached_beside_others_count_their_samples_once(world: World) -> None:
    """The scope names two series, the changed last sample reaches the next window of one of them only."""
    everybody(world)
    send_and_settle(world, [at(m, 0) for m in (1, 2, 3)])
    send_and_settle(world, [at(0.5, 0, 30.0), at(0.5, 1, 30.0)])
    counted = world.pipeline.query(
        "SELECT DISTINCT count_n FROM window_aggregates w JOIN measurement_series s USING (series_id) "
        "WHERE window_s = 300 AND sensor_id = 's-00000' AND bucket_start = %s",
        START,
    )
    assert counted == [(5,)]
    assert_live_equals_rebuild(world.pipeline)


# ---------------------------------------------------------------------- what a worker does not know yet


def test_kpis_of_a_machine_count_a_series_that_another_worker_met_first(world: World) -> None:
    everybody(world)
    here = world.pipeline
    there = Pipeline(world.settings, here.engine, here.registry)
    world.send([at(5, 999)])
    world.drain()
    there.settle()  # the new series of the machine is known there, not here
    there.close()
    send_and_settle(world, [at(6, 0)])
    messages = here.query("SELECT value FROM kpis WHERE kpi = 'messages' AND bucket_start = %s", START)
    assert messages == [(6 * SERIES + 2,)]
    assert_live_equals_rebuild(here)


# ---------------------------------------------------------------------- no more than it reaches


def asked(world: World, asset: str) -> list[tuple[object, ...]]:
    return world.pipeline.query(
        "SELECT hour, series, spans, reason FROM pending_work WHERE asset = %s ORDER BY hour, reason", asset
    )


def test_a_late_message_of_one_sensor_of_many_asks_for_its_windows_only(world: World) -> None:
    everybody(world, range(0, 180, 10))
    (number,) = world.pipeline.query("SELECT series_id FROM measurement_series WHERE sensor_id = 's-00007'")[0]
    world.send([at(31, 7, 25.0)])
    world.drain()
    world.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    assert asked(world, "window_aggregates") == [(START, [number], [1860, 1920], "measurements")]
    world.pipeline.deriver.derive("window_aggregates", START, "incremental", "test")
    assert asked(world, "anomalies") == [
        (START, [number], [1860, 3600], "windows"),
        *((START + HOUR * later, [number], [0, 3600], "look-back") for later in (1, 2)),
    ]
    assert asked(world, "kpis") == [(START, [number], [0, 3600], "windows")]
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


def touched_since(world: World, moment: datetime) -> int:
    found = world.pipeline.query("SELECT count(*) FROM window_aggregates WHERE updated_at > %s", moment)
    return int(found[0][0])


def test_a_late_message_writes_the_windows_that_it_reaches_and_no_others(world: World) -> None:
    everybody(world, range(60))
    before = world.pipeline.query("SELECT clock_timestamp()")[0][0]
    send_and_settle(world, [at(30.9, 7, 25.0)])
    # Its own of 60, 300 and 3600 s, and the next one of 60 s, into which it is carried.
    assert touched_since(world, before) == 4
    assert_live_equals_rebuild(world.pipeline)


def test_a_tenth_of_the_domains_series_is_named_and_more_are_not(world: World) -> None:
    everybody(world)
    for many, named in ((4, True), (5, False)):
        world.send([at(20 + many, sensor) for sensor in range(many)])
        world.drain()
        world.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
        [(_, series, spans, _)] = asked(world, "window_aggregates")
        assert (series is not None) == named
        assert spans == [(20 + many) * 60, (21 + many) * 60]
        world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


@pytest.mark.parametrize(("many", "named"), [(999, True), (1000, True), (1001, False)])
def test_a_thousand_series_are_named_and_one_more_is_not(world: World, many: int, named: bool) -> None:
    world.send([at(0, sensor, machine=f"mc-{sensor % 50}") for sensor in range(10_020)])
    world.drain()
    world.pipeline.settle()
    world.send([at(1, sensor, 21.0, machine=f"mc-{sensor % 50}") for sensor in range(many)])
    world.drain()
    world.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    [(_, series, spans, _)] = asked(world, "window_aggregates")
    assert (None if series is None else len(series)) == (many if named else None)
    assert spans == [60, 120]
    world.pipeline.settle()
    assert_live_equals_rebuild(world.pipeline)


def test_minutes_that_touch_are_one_span(world: World) -> None:
    everybody(world)
    world.send([at(minute, 3) for minute in (11, 12, 13, 15)])
    world.drain()
    world.pipeline.deriver.derive("normalized_measurements", START, "incremental", "test")
    [(_, _, spans, _)] = asked(world, "window_aggregates")
    assert spans == [660, 840, 900, 960]
