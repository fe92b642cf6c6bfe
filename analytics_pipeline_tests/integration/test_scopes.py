"""Pending work of few series and spans: it recomputes what it reaches and no more, and equals a rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import open_domains
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.quick_gate import use_quick_gates
from analytics_pipeline_tests.worlds import World

START = hour_of(datetime.now(UTC)) - 6 * HOUR
#: Enough that one or two of them are below a tenth.
SERIES = 40


@pytest.fixture(autouse=True)
def _quick_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_gates(monkeypatch)


@pytest.fixture
def world(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[World]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS]) as it:
        yield it


def at(minute: float, sensor: int, value: float = 20.0, machine: str = "mc-01") -> bytes:
    return reading(START + timedelta(minutes=minute), value, sensor_id=f"s-{sensor:05d}", machine_id=machine)


def send_and_settle(world: World, values: list[bytes]) -> None:
    world.send(values)
    world.drain()
    world.pipeline.settle()


def everybody(world: World, minutes: range = range(0, 60, 10)) -> None:
    """Every series has a sample at these minutes."""
    send_and_settle(world, [at(m, s, 20 + (m + s) % 5) for m in minutes for s in range(SERIES)])


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
