"""Any split into batches, order, duplication and lateness of a stream gives what the naive reference gives.

One database for all examples, emptied between them; a topic and a pipeline for each. The gate is stood in for by
the same comparisons in numpy, because Great Expectations takes 50 ms a call and is tested elsewhere.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from analytics_pipeline.assets import slice_protocol
from analytics_pipeline.assets.raw_events import classify
from analytics_pipeline.domains import registry_for
from analytics_pipeline.quality.gates import GateSuite
from analytics_pipeline.records import GateResult
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import KEPT
from analytics_pipeline_tests.environments import Environment, create_topics, open_environment
from analytics_pipeline_tests.invariants import assert_invariants
from analytics_pipeline_tests.pipeline import Pipeline, reading
from analytics_pipeline_tests.reference import Limit, Limits, SeriesKey

#: Yesterday at 01:00, so that a window of two hours begins before the stream, and one inside of it.
START = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0) - timedelta(days=1)
HOURS = 3
SERIES = [("m-1", "s-1"), ("m-1", "s-2"), ("m-2", "s-1")]
#: Whole numbers, fractions that binary cannot hold, zeros of both signs, the very large and the very small.
VALUES = (20.0, 21.0, 0.1, 0.2, 0.3, -7.25, 0.0, -0.0, 1e9 + 0.1, 3e-7)


@dataclass(frozen=True)
class Stream:
    """What is sent, in order, as one example: batches of (payload, partition, Kafka time in ms)."""

    batches: list[list[tuple[bytes, int, int]]]
    settle_after: list[bool]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Steady series with outliers, in an order and a split of hypothesis' choosing."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    messages = [message for series in SERIES for message in _steady(rng, series)]
    messages += _strange(draw)
    messages += rng.sample(messages, min(len(messages), draw(st.sampled_from([0, 1, 20]))))  # sent twice
    lateness = draw(st.sampled_from([0.0, 0.05, 1.0]))
    order = [at + (rng.random() * len(messages) if rng.random() < lateness else 0) for at in range(len(messages))]
    messages = [message for _, message in sorted(zip(order, messages, strict=True), key=lambda pair: pair[0])]
    cuts = sorted(rng.randrange(len(messages)) for _ in range(draw(st.integers(0, 4))))
    bounds = [0, *cuts, len(messages)]
    batches = [
        [(payload, rng.randrange(3), _kafka_ms(rng)) for payload in messages[begin:end]]
        for begin, end in pairwise(bounds)
    ]
    settles = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Stream(batches, [rng.random() < settles for _ in batches])


def _steady(rng: random.Random, series: tuple[str, str]) -> list[bytes]:
    """Readings at a steady pace, so that detectors have a baseline, with an outlier now and then."""
    begin, step_s = rng.randrange(HOURS * 60 - 20), rng.choice([20, 60, 61, 300])
    found = []
    for number in range(rng.choice([0, 1, 40, 80])):
        time = START + timedelta(minutes=begin, seconds=number * step_s)
        if time < START + timedelta(hours=HOURS):
            value = 20 + rng.random() + (50 if rng.random() < 0.04 else 0)
            found.append(_payload(time, value, series))
    return found


def _strange(draw: st.DrawFn) -> list[bytes]:
    """Few times, so that identities meet: at edges of windows and hours, with odd values."""
    minutes = st.sampled_from([0, 1, 4, 5, 59, 60, 61, 119, 120, 179])
    moments = st.tuples(minutes, st.sampled_from([0, 1, 59_999_999]), st.sampled_from(SERIES))
    picks = draw(st.lists(st.tuples(moments, st.sampled_from(VALUES)), min_size=1, max_size=25))
    return [
        _payload(START + timedelta(minutes=minute, microseconds=micros), value, series)
        for (minute, micros, series), value in picks
    ]


def _payload(time: datetime, value: float, series: tuple[str, str]) -> bytes:
    return reading(time, value, machine_id=series[0], sensor_id=series[1])


def _kafka_ms(rng: random.Random) -> int:
    """Few Kafka times, so that many messages have the same and their position decides."""
    return int((START + timedelta(hours=4)).timestamp() * 1000) + rng.randrange(4)


# ---------------------------------------------------------------------- one database for all examples


def quick_gate(suite: GateSuite, frame: pl.DataFrame) -> GateResult:
    """What Great Expectations says of expectations about ranges, which are all that fail here."""
    measured = suite.measures(frame)
    reasons: dict[int, str] = {}
    for expect in suite.expectations:
        bounds = dict(expect.arguments)
        if "value_set" in bounds:
            continue
        column = measured[expect.column] if expect.column in measured.columns else frame[expect.column]
        values = column.cast(pl.Float64).to_numpy()
        with np.errstate(invalid="ignore"):
            fails = (values < bounds.get("min_value", -np.inf)) | (values > bounds.get("max_value", np.inf))
        for row in np.flatnonzero(fails).tolist():
            reasons.setdefault(row, expect.reason)
    return GateResult(asset=suite.asset, domain=suite.domain, rows=frame.height, reasons=reasons)


@pytest.fixture(scope="module", autouse=True)
def _quick_gates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (classify, slice_protocol):
            patch.setattr(module, "run_gate", quick_gate)
        yield


@pytest.fixture(scope="module")
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, partitions=3) as it:
        yield it


@pytest.fixture(scope="module")
def long_windows(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    sizes = [60, 300, 3600, 7200, 10800]
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, partitions=3, windows=sizes) as it:
        yield it


@pytest.fixture(scope="module")
def odd_windows(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    """Neither size divides the other: both are merged from windows of five minutes."""
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, partitions=3, windows=[600, 900]) as it:
        yield it


LIMITS: Limits = {
    SeriesKey("t1", "f1", "m-1", "s-1", "temp"): [Limit(None, None, 0.15, 45.0)],
    SeriesKey("t1", "f1", "m-2", "s-1", "temp"): [Limit(None, None, None, 20.5)],
}


def begin(env: Environment) -> None:
    """Another example: empty tables, a new topic, a process that knows of nothing."""
    topic = f"test.readings.{uuid.uuid4().hex[:12]}"
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        names = ", ".join(sorted({row[0] for row in cursor.fetchall()} - KEPT))
        cursor.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        cursor.execute("INSERT INTO domain_topic (domain, topic) VALUES ('sensor', %s)", (topic,))
        cursor.executemany(
            "INSERT INTO analytics_spec_limits (machine_id, sensor_id, metric, lsl, usl) "
            "VALUES (%s, %s, 'temp', %s, %s)",
            [(key.machine_id, key.sensor_id, one.lsl, one.usl) for key, (one,) in LIMITS.items()],
        )
        conn.commit()  # an edit of limits asks for what it touches: nothing yet
    create_topics(env.settings.kafka_brokers, [topic], 3)
    env.pipeline.close()
    values = env.settings.model_copy(update={"kafka_topics": [topic]})
    env.settings, env.sent = values, []
    env.pipeline = Pipeline(values, env.pipeline.engine, registry_for(values).with_topics({topic: "sensor"}))


def play(env: Environment, stream: Stream) -> None:
    begin(env)
    for batch, settles in zip(stream.batches, stream.settle_after, strict=True):
        for partition in range(3):
            for kafka_ms in sorted({ms for _, at, ms in batch if at == partition}):
                values = [payload for payload, at, ms in batch if (at, ms) == (partition, kafka_ms)]
                env.send(values, partition, timestamp=kafka_ms)
        env.drain()
        if settles:
            env.pipeline.settle()
    env.pipeline.settle()
    assert_invariants(env, limits=LIMITS)


def property_settings(examples: int) -> settings:
    """The same examples each time. A failing one is not shrunk: it is real servers for minutes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(600)
@property_settings(30)
@given(stream=streams())
def test_any_split_order_duplication_and_lateness_gives_the_reference_and_the_rebuild(
    env: Environment, stream: Stream
) -> None:
    play(env, stream)


@pytest.mark.timeout(300)
@property_settings(8)
@given(stream=streams())
def test_the_same_holds_for_windows_longer_than_an_hour(long_windows: Environment, stream: Stream) -> None:
    play(long_windows, stream)


@pytest.mark.timeout(300)
@property_settings(5)
@given(stream=streams())
def test_the_same_holds_for_windows_that_do_not_divide_each_other(odd_windows: Environment, stream: Stream) -> None:
    play(odd_windows, stream)


def test_the_gate_that_stands_in_says_what_great_expectations_says(env: Environment) -> None:
    from analytics_pipeline.quality.gates import run_gate
    from analytics_pipeline.quality.suites import suite_for

    frame = pl.DataFrame({"value": [1.0, float("nan"), float("inf"), -2.0], "metric": ["a", "b", "", "a" * 300]})
    sensor = next(iter(env.pipeline.registry))
    suite = suite_for("normalized_measurements", sensor, env.settings)
    assert quick_gate(suite, frame).reasons.keys() >= {2, 3}
    assert run_gate(suite, frame).reasons.items() >= quick_gate(suite, frame).reasons.items()
