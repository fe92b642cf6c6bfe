"""Samples with a quality, from Kafka to the figures: each stored column is the naive reference's, and a rebuild's."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.domains.base import QUALITIES
from analytics_pipeline.records import HOUR, hour_of, to_us
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests import rated_reference, reference
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, rated, topic_of, with_domain
from analytics_pipeline_tests.domains.copies import PRESS
from analytics_pipeline_tests.environments import Environment, Sent
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild, assert_settled
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.rated_reference import RatedMessage, RatedWindow
from analytics_pipeline_tests.reference import Message, SeriesKey
from analytics_pipeline_tests.stored_columns import limits_of

START = hour_of(datetime.now(UTC)) - 12 * HOUR
GAP_US = rated.GAP_S * 1_000_000
LATENESS_US = 60 * 1_000_000

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [PRESS, rated.DOMAIN]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def send(
    env: Environment, second: float, value: Any, quality: str = "good", *, delay_s: int = 1, station: str = "st-1"
) -> None:
    """A sample so many seconds after the start, which Kafka has so many seconds later."""
    time = START + timedelta(seconds=second)
    stamp = int((time + timedelta(seconds=delay_s)).timestamp() * 1000)
    env.send([rated.message(time, value, quality, station)], topic=topic_of(env, "rated"), timestamp=stamp)


def settle(env: Environment) -> None:
    env.drain()
    env.pipeline.settle()


def messages_of(env: Environment) -> list[RatedMessage]:
    """What was sent to the domain, read by plain ``json``."""
    topic = topic_of(env, "rated")
    return [_message(one) for one in env.sent if one.topic == topic and not one.rejected]


def _message(one: Sent) -> RatedMessage:
    fields = json.loads(one.value or b"")
    value, quality = fields["value"], fields["quality"]
    if isinstance(value, str):
        quality, value = {"<": "below", ">": "above"}.get(value[0], "bad"), value[1:] if value[0] in "<>" else None
    return RatedMessage(
        position=(one.topic, one.epoch, one.partition, one.offset, 0),
        kafka_time_us=one.kafka_time_ms * 1000,
        event_time_us=to_us(datetime.fromisoformat(fields["time"])),
        series=SeriesKey("default", None, fields["station"], None, fields["metric"]),
        value=math.nan if value is None else float(value),
        quality="bad" if value is None else quality,
    )


# ---------------------------------------------------------------------- what is stored

_SERIES = "s.tenant_id, s.factory_id, s.machine_id, s.sensor_id, s.metric"
_OF_DOMAIN = "domain_id = (SELECT domain_id FROM domain_number WHERE domain = 'rated')"


def assert_right(env: Environment) -> None:
    """Everything stored of the domain is what plain Python says of what was sent, and a rebuild changes no bit."""
    assert_settled(env.pipeline)
    messages = messages_of(env)
    assert_measurements(env.pipeline, messages)
    for size_s in env.pipeline.settings.window_sizes_s:
        assert_windows(env.pipeline, messages, size_s)
    good = [Message(*one[:5]) for one in rated_reference.samples(messages) if one.quality != "bad"]
    assert_anomalies_and_kpis(env.pipeline, good)
    assert_live_equals_rebuild(env.pipeline)


def assert_measurements(pipeline: Pipeline, messages: Sequence[RatedMessage]) -> None:
    rows = pipeline.query(
        f"SELECT m.event_time, {_SERIES}, m.value, m.quality FROM normalized_measurements m "
        f"JOIN measurement_series s USING (series_id) WHERE m.{_OF_DOMAIN}"
    )
    got = {(to_us(row[0]), SeriesKey(*row[1:6])): (repr(row[6]), QUALITIES[row[7]]) for row in rows}
    want = rated_reference.samples(messages)
    assert got == {(one.event_time_us, one.series): (repr(one.value), one.quality) for one in want}


def assert_windows(pipeline: Pipeline, messages: Sequence[RatedMessage], size_s: int) -> None:
    names = [name.removesuffix("_us") for name in RatedWindow.__dataclass_fields__]
    rows = pipeline.query(
        f"SELECT w.bucket_start, {_SERIES}, {', '.join(f'w.{name}' for name in names)} FROM window_aggregates w "
        f"JOIN measurement_series s USING (series_id) WHERE w.{_OF_DOMAIN} AND w.window_s = %s",
        size_s,
    )
    got = {(to_us(row[0]), SeriesKey(*row[1:6])): dict(zip(names, row[6:], strict=True)) for row in rows}
    want = rated_reference.windows(messages, size_s, 60, GAP_US, LATENESS_US)
    assert got.keys() == want.keys()
    rounded = ("avg_val", "m2", "tw_integral")
    for key, row in got.items():
        its = {name.removesuffix("_us"): value for name, value in vars(want[key]).items()}
        assert {n: _plain(row[n]) for n in names if n not in rounded} == {n: its[n] for n in names if n not in rounded}
        for name in rounded:
            expected = math.nan if its[name] is None else its[name]
            assert row[name] == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), (key, name)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_us(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def assert_anomalies_and_kpis(pipeline: Pipeline, good: Sequence[Message]) -> None:
    """They are those of a stream that never had a bad sample."""
    limits = limits_of(pipeline, {one.series for one in good})
    rows = pipeline.query(
        f"SELECT x.bucket_start, x.detector, {_SERIES}, x.value, x.score FROM anomalies x "
        f"JOIN measurement_series s USING (series_id) WHERE x.{_OF_DOMAIN}"
    )
    got = {(to_us(row[0]), row[1], SeriesKey(*row[2:7])): row[7:] for row in rows}
    want = {
        (one.start_us, one.detector, one.series): (one.value, one.score)
        for one in reference.anomalies(good, 60, limits)
    }
    assert got == {key: pytest.approx(figures, rel=1e-9) for key, figures in want.items()}
    kpis = pipeline.query(
        f"SELECT bucket_start, tenant_id, factory_id, machine_id, kpi, value, reason FROM kpis WHERE {_OF_DOMAIN}"
    )
    assert {(to_us(row[0]), tuple(row[1:4]), row[4]): row[5:] for row in kpis} == {
        (one.hour_us, one.machine, one.kpi): (one.value, one.reason) for one in reference.kpis(good, 60, limits)
    }


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize("seed", range(4))
def test_any_samples_in_any_order_and_batches_are_what_the_reference_says(env: Environment, seed: int) -> None:
    chance = random.Random(seed)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO analytics_spec_limits (metric, lsl, usl) VALUES ('lead', 2, 18)")
        conn.commit()
    for _ in range(3):
        for _ in range(60):
            value = chance.choice([*range(20)] * 3 + [None, "<3", ">15", "n/a"])
            quality = chance.choice(["good"] * 5 + ["uncertain", "bad", "bad"])
            # Of 15 minutes, so that samples meet in windows; in both hours around an edge.
            second = HOUR.total_seconds() - 450 + 5 * chance.randrange(180)
            station = chance.choice(["st-1", "st-2"])
            send(env, second, value, quality, delay_s=chance.randrange(400), station=station)
        env.send([reading(START + timedelta(minutes=50), 1.0)], topic=topic_of(env, "press"))
        env.drain()
        if chance.random() < 0.7:
            env.pipeline.settle()
    env.pipeline.settle()
    assert_right(env)


def test_baselines_pass_over_windows_that_hold_only_bad_samples(env: Environment) -> None:
    """A baseline is of 120 windows: those with bad samples, of the same hour and of earlier ones, take no place."""
    for minute in range(235):
        if minute < 110:
            send(env, 60 * minute, 10 + minute % 3 + minute / 10)
        else:
            send(env, 60 * minute, None if minute % 2 else 1e6, "bad")
    send(env, 235 * 60, 99.0)
    settle(env)
    assert_right(env)
    assert env.pipeline.query(f"SELECT count(*) FROM anomalies WHERE {_OF_DOMAIN}") == [(1,)]


CHANGES = {
    "a bad one after it": [(3590, None, "bad")],
    "a bad one in a window of its own": [(3615, 7.0, "bad")],
    "it is bad after all": [(3570, 5.0, "bad")],
    "a good one after a bad one": [(3580, None, "bad"), (3585, 6.0, "good")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_late_bad_sample_ends_what_the_next_hour_carries_in(env: Environment, change: str) -> None:
    send(env, 3570, 5.0)
    send(env, 3690, 8.0)
    settle(env)
    assert_right(env)
    for second, value, quality in CHANGES[change]:
        send(env, second, value, quality, delay_s=300)
        settle(env)
        assert_right(env)


def test_an_hour_with_only_bad_samples_has_windows_and_no_kpis(env: Environment) -> None:
    send(env, 10, None, "bad")
    send(env, 90, 5.0, "bad")
    settle(env)
    assert_right(env)
    agg = env.pipeline.query(
        "SELECT count_n, bad_n, avg_val, std_val, p99, first_val, last_time, tw_avg_val, coverage FROM analytics_agg "
        "WHERE domain = 'rated' AND window_s = 3600"
    )
    assert agg == [(0, 2, None, None, None, None, None, None, 0.0)]
    assert env.pipeline.query(f"SELECT count(*) FROM kpis WHERE {_OF_DOMAIN}") == [(0,)]


def test_rows_without_a_value_that_come_out_alike_again_are_not_touched(env: Environment) -> None:
    """NaN is the same as NaN: else each rebuild would write them, and revise what is final."""
    send(env, 10, None, "bad")
    send(env, 2 * 3600, 1.0)
    settle(env)
    written = "SELECT xmin::text FROM window_aggregates UNION ALL SELECT xmin::text FROM normalized_measurements"
    before = sorted(env.pipeline.query(written))
    env.pipeline.rebuild(env.pipeline.hours())
    assert_settled(env.pipeline)
    assert sorted(env.pipeline.query(written)) == before
    states = env.pipeline.query("SELECT DISTINCT state, revision FROM analytics_agg WHERE count_n = 0")
    assert states == [("final", 0)]


def test_windows_heed_what_is_stored_when_the_domain_carries_no_quality_any_more(env: Environment) -> None:
    for second, quality in [(0, "good"), (20, "bad"), (40, "uncertain"), (70, "bad")]:
        send(env, second, second, quality)
    send(env, 80, None)
    settle(env)
    before = env.pipeline.snapshot(["window_aggregates"])
    another = with_domain(env, replace(rated.DOMAIN, rated=False))
    another.deriver.derive("window_aggregates", START, "full", "test")
    assert env.pipeline.snapshot(["window_aggregates"]) == before
    another.close()


def test_the_view_counts_qualities_and_late_samples(env: Environment) -> None:
    for second, value, quality in [(0, 1, "good"), (1, 3, "uncertain"), (2, "<5", "good"), (3, ">7", "good")]:
        send(env, second, value, quality, delay_s=118 + second)
    send(env, 5, 1e9, "bad", delay_s=1000)
    settle(env)
    agg = env.pipeline.query(
        "SELECT count_n, avg_val, bad_n, uncertain_n, censored_n, late_n FROM analytics_agg "
        "WHERE domain = 'rated' AND window_s = 3600"
    )
    assert agg == [(4, 4.0, 1, 1, 2, 4)]
    assert_right(env)


def test_a_value_that_is_not_finite_is_a_dead_letter_and_a_missing_one_is_a_row(env: Environment) -> None:
    send(env, 0, None)
    time = START + timedelta(seconds=1)
    env.send([rated.message(time, "inf", "bad")], topic=topic_of(env, "rated"), rejected=True)
    settle(env)
    assert env.pipeline.query("SELECT stage, reason FROM dead_letters") == [("normalized_measurements", "not_finite")]
    assert_right(env)
