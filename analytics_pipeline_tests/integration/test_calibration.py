"""Calibration and units end to end: figures are made of corrected values, what was sent stays as it was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.cli.doctor import _database as examine_database
from analytics_pipeline.records import DERIVED, HOUR, hour_of, to_us
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.domains import begin_anew
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.faulty import PHASES, happen, mend
from analytics_pipeline_tests.invariants import (
    assert_equals_reference,
    assert_live_equals_rebuild,
    messages_of,
)
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.reference import Message
from analytics_pipeline_tests.stored_columns import limits_of

pytestmark = pytest.mark.usefixtures("quick_gates")

NOW = hour_of(datetime.now(UTC))
WEEK_AGO = NOW - timedelta(days=7)
#: Of the sensor s-001, as it should have been from a week ago until yesterday, where another one follows.
GAIN, OFFSET = 1.02, -0.3
UNTIL = NOW - timedelta(days=1)
#: One hour before the calibration begins, some in it, one after.
HOURS = [WEEK_AGO - HOUR, WEEK_AGO, WEEK_AGO + HOUR, NOW - timedelta(days=3), UNTIL, NOW - HOUR]
TOUCHED = [hour for hour in HOURS if WEEK_AGO <= hour < UNTIL]


@pytest.fixture
def env(opened: Environment) -> Iterator[Environment]:
    begin_anew(opened)
    yield opened
    mend(opened.pipeline.deriver)


def edit(env: Environment, statement: str, *values: Any) -> None:
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(statement, values)
        conn.commit()


def send(env: Environment, hours: list[datetime], **fields: Any) -> None:
    """Every five minutes of each hour, the same curve."""
    env.send(
        [
            reading(hour + timedelta(minutes=m), **{"value": 20.0 + m, **fields})
            for hour in hours
            for m in range(2, 60, 5)
        ]
    )
    env.drain()


def calibrate(env: Environment, gain: float, offset: float, begins: datetime) -> None:
    edit(
        env,
        "INSERT INTO analytics_calibration (machine_id, sensor_id, metric, gain, \"offset\", valid_from) "
        "VALUES ('mc-01', 's-001', 'temp', %s, %s, %s) "
        "ON CONFLICT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from) "
        "DO UPDATE SET gain = excluded.gain, \"offset\" = excluded.\"offset\"",
        gain,
        offset,
        begins,
    )


def in_the_end(message: Message) -> Message:
    """The value that figures are made of, when the calibration is right."""
    of_sensor = message.series.sensor_id == "s-001"
    if of_sensor and to_us(WEEK_AGO) <= message.event_time_us < to_us(UNTIL):
        return message._replace(value=GAIN * message.value + OFFSET)
    return message


def assert_figures(env: Environment, figure: Callable[[Message], Message]) -> None:
    sent = messages_of(env.sent)
    figures = [figure(message) for message in sent]
    limits = limits_of(env.pipeline, {message.series for message in sent})
    assert_equals_reference(env.pipeline, figures, limits, sent=sent)


def pending(env: Environment) -> dict[str, list[datetime]]:
    query = "SELECT DISTINCT asset, hour FROM pending_work WHERE reason = 'master_data' ORDER BY 1, 2"
    rows = env.pipeline.query(query)
    return {asset: [hour for name, hour in rows if name == asset] for asset in {row[0] for row in rows}}


def written_at(env: Environment) -> dict[tuple[Any, ...], datetime]:
    rows = env.pipeline.query(
        "SELECT s.sensor_id, w.window_s, w.bucket_start, w.updated_at "
        "FROM window_aggregates w JOIN measurement_series s USING (series_id)"
    )
    return {tuple(key): moment for *key, moment in rows}


@pytest.mark.parametrize("phase", PHASES)
def test_a_wrong_calibration_fixed_a_week_later_recomputes_what_it_touched(env: Environment, phase: str) -> None:
    calibrate(env, 2.0, 5.0, WEEK_AGO)
    calibrate(env, 1.0, 0.0, UNTIL)
    send(env, HOURS)
    send(env, HOURS, sensor_id="s-002")
    env.pipeline.settle()
    before = written_at(env)
    done: list[dict[str, list[datetime]]] = []

    def fix(_: object) -> None:
        if not done:
            calibrate(env, GAIN, OFFSET, WEEK_AGO)
            done.append(pending(env))

    send(env, [NOW - HOUR], sensor_id="s-003")
    happen(env.pipeline.deriver, "window_aggregates", "press", phase, fix)
    env.pipeline.settle()  # live data, in the middle of which the calibration is fixed
    send(env, [NOW - HOUR], sensor_id="s-004")
    env.pipeline.settle()
    assert done == [{"window_aggregates": TOUCHED}]
    assert_figures(env, in_the_end)
    rewritten = {key for key, moment in written_at(env).items() if before.get(key, moment) != moment}
    assert {key[0] for key in rewritten} == {"s-001"}
    assert {hour_of(key[2]) for key in rewritten if key[1] <= 3600} == set(TOUCHED)
    assert_live_equals_rebuild(env.pipeline)


def test_a_calibration_that_is_taken_back_leaves_what_was_sent(env: Environment) -> None:
    send(env, HOURS[:3])
    calibrate(env, 3.0, -1.0, WEEK_AGO + timedelta(minutes=30))
    env.pipeline.settle()
    assert env.pipeline.query("SELECT max(max_val) FROM window_aggregates") == [(3.0 * 77.0 - 1.0,)]
    edit(env, "DELETE FROM analytics_calibration")
    env.pipeline.settle()
    assert_figures(env, lambda message: message)


def test_a_calibration_within_an_hour_corrects_samples_from_then_on(env: Environment) -> None:
    begins = WEEK_AGO + timedelta(minutes=27)
    send(env, HOURS[:3])
    calibrate(env, GAIN, OFFSET, begins)
    env.pipeline.settle()
    assert_figures(
        env,
        lambda one: one._replace(value=GAIN * one.value + OFFSET) if one.event_time_us >= to_us(begins) else one,
    )


def test_figures_are_in_the_canonical_unit_after_calibration_in_the_raw_one(env: Environment) -> None:
    calibrate(env, 1.0, 2.0, WEEK_AGO)
    edit(env, "INSERT INTO analytics_units VALUES ('temp', 'K', '°C', 1, -273.15)")
    send(env, HOURS[:2], unit="K")
    env.pipeline.settle()

    def figure(one: Message) -> Message:
        raw = one.value + 2.0 if one.event_time_us >= to_us(WEEK_AGO) else one.value
        return one._replace(value=raw + -273.15)

    assert_figures(env, figure)


def test_a_value_of_an_unknown_unit_is_kept_and_flagged(env: Environment) -> None:
    edit(env, "INSERT INTO analytics_units VALUES ('temp', 'K', '°C', 1, -273.15)")
    for unit in ("K", "furlong", "°C"):
        send(env, HOURS[:1], sensor_id=f"in {unit}", unit=unit)
    send(env, HOURS[:1], sensor_id="without")
    send(env, HOURS[:1], sensor_id="undeclared", metric="speed", unit="m/s")
    env.pipeline.settle()
    shown = env.pipeline.query("SELECT sensor_id, unit, canonical_unit, is_known FROM series_unit")
    assert set(shown) == {
        ("in K", "K", "°C", True),
        ("in furlong", "furlong", "°C", False),
        ("in °C", "°C", "°C", True),
        ("without", None, "°C", True),
        ("undeclared", "m/s", None, True),
    }
    least = dict(env.pipeline.query("SELECT sensor_id, min(min_val) FROM analytics_agg GROUP BY 1"))
    assert least == {"in K": 22 - 273.15, "in furlong": 22, "in °C": 22, "without": 22, "undeclared": 22}
    units = set(env.pipeline.query("SELECT DISTINCT sensor_id, unit FROM analytics_agg"))
    converted = {("in K", "°C"), ("in °C", "°C"), ("without", "°C")}
    assert units == converted | {("in furlong", "furlong"), ("undeclared", "m/s")}
    told = [one for one in examine_database(env.settings) if one.check == "units"]
    assert [(one.level, one.found) for one in told] == [("note", "kept as sent: temp in furlong (1 series)")]
    edit(env, "DELETE FROM analytics_units")
    told = [one for one in examine_database(env.settings) if one.check == "units"]
    assert [one.level for one in told] == ["ok"]


def test_a_correction_beyond_what_can_be_computed_leaves_figures_until_it_is_mended(env: Environment) -> None:
    """The gate refuses an infinite deviation; the next edit makes the quarantined hour actionable again."""
    send(env, HOURS[:2])
    send(env, HOURS[:2], sensor_id="s-002", value=1e149)
    env.send([reading(HOURS[1] + timedelta(minutes=2, seconds=30), -1e149, sensor_id="s-002")])
    env.drain()
    env.pipeline.settle()
    edit(
        env,
        "INSERT INTO analytics_calibration (sensor_id, metric, gain, valid_from) VALUES ('s-002', 'temp', 1e12, %s)",
        HOURS[1],
    )
    send(env, HOURS[1:2], sensor_id="s-003")
    env.pipeline.settle()
    states = "SELECT DISTINCT status FROM partition_state WHERE asset = 'window_aggregates' AND hour = %s"
    assert env.pipeline.query(states, HOURS[1]) == [("quarantined",)]
    held = "SELECT DISTINCT max_val FROM analytics_agg WHERE sensor_id = 's-002' AND window_s <= 3600 ORDER BY 1"
    assert env.pipeline.query(held) == [(1e149,)]
    edit(env, "UPDATE analytics_calibration SET gain = 2")
    env.pipeline.settle()
    assert env.pipeline.query(held) == [(1e149,), (2e149,)]
    assert env.pipeline.query(states, HOURS[1]) == [("open",)]


def test_limits_hold_in_the_canonical_unit_whatever_unit_they_are_given_in(env: Environment) -> None:
    edit(env, "INSERT INTO analytics_units VALUES ('temp', 'K', '°C', 1, -273.15), ('temp', 'm°C', '°C', 0.001, 0)")
    send(env, HOURS[:1], unit="°C")
    edit(env, "INSERT INTO analytics_spec_limits (metric, usl, unit) VALUES ('temp', 50000, 'm°C')")
    env.pipeline.settle()
    found = "SELECT count(*) FROM anomalies WHERE detector = 'spec_limits'"
    above = len([m for m in range(2, 60, 5) if 20.0 + m > 50])
    assert env.pipeline.query(found) == [(above,)]
    edit(env, "UPDATE analytics_units SET factor = 0.002 WHERE unit = 'm°C'")
    assert pending(env).keys() == set(DERIVED) - {"normalized_measurements"}
    env.pipeline.settle()
    assert env.pipeline.query(found) == [(0,)]
