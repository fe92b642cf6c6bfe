"""What is stored, compared with the naive reference: samples, events and states of one domain each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest

from analytics_pipeline.records import to_us
from analytics_pipeline_tests import reference, reference_kinds
from analytics_pipeline_tests.environments import Sent
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.reference import Limits, Message, SeriesKey
from analytics_pipeline_tests.reference_kinds import EventMessage, StateMessage

_SERIES = "s.tenant_id, s.factory_id, s.machine_id, s.sensor_id, s.metric"


def messages_of(sent: Iterable[Sent], zone: tzinfo = UTC) -> list[Message]:
    """What the reference reads of the messages that are expected to count, by plain ``json``."""
    return [_message(one, zone) for one in sent if not one.rejected]


def _message(one: Sent, zone: tzinfo) -> Message:
    fields = json.loads(one.value or b"")
    time = datetime.fromisoformat(fields["time"])
    if time.tzinfo is None:
        time = time.replace(tzinfo=zone)
    series = SeriesKey(*(fields[name] for name in SeriesKey._fields))
    position = (one.topic, one.epoch, one.partition, one.offset, 0)
    return Message(position, one.kafka_time_ms * 1000, to_us(time), series, float(fields["value"]))


def assert_equals_reference(
    pipeline: Pipeline, messages: Sequence[Message], limits: Limits, *, sent: Sequence[Message] | None = None
) -> None:
    """Measurements, windows of every size, anomalies and KPIs are those of the reference.

    ``sent``: the messages as they were sent, where ``messages`` hold the values that figures are made of.
    """
    _assert_measurements(pipeline, messages if sent is None else sent)
    for size_s in pipeline.settings.window_sizes_s:
        _assert_windows(pipeline, messages, size_s)
    _assert_anomalies(pipeline, messages, limits)
    _assert_kpis(pipeline, messages, limits)


def _assert_measurements(pipeline: Pipeline, messages: Sequence[Message]) -> None:
    got = {
        (SeriesKey(*series), to_us(time)): value
        for time, value, *series in pipeline.query(
            f"SELECT m.event_time, m.value, {_SERIES} FROM normalized_measurements m "
            "JOIN measurement_series s USING (series_id)"
        )
    }
    _assert_same("measurements", got, reference.measurements(messages))


def _assert_same(what: str, got: Mapping[Any, Any], want: Mapping[Any, Any]) -> None:
    """Equal, or the first differences: a whole table of thousands tells nobody anything."""
    nothing = "nothing"
    different = {
        key: (got.get(key, nothing), want.get(key, nothing))
        for key in got.keys() | want.keys()
        if got.get(key, nothing) != want.get(key, nothing)
    }
    first = "\n".join(f"  {key}: got {a}, want {b}" for key, (a, b) in list(different.items())[:5])
    assert not different, f"{what}: {len(different)} differ\n{first}"


#: The domains' default; the reference repeats it by hand.
GAP_US = 300 * 1_000_000
#: Percentiles of a window, and of one merged from such windows, are exact up to so many samples in each.
EXACT_SAMPLES = 100
_EXACT = ("count_n", "min_val", "max_val", "first_val", "first_time_us", "last_val", "last_time_us", "base_n")


def _assert_windows(pipeline: Pipeline, messages: Sequence[Message], size_s: int) -> None:
    names = ("count_n", "min_val", "max_val", "first_val", "first_time", "last_val", "last_time", "base_n")
    rows = pipeline.query(
        f"SELECT w.bucket_start, w.coverage, w.avg_val, w.m2, w.p50, w.p95, w.p99, {_SERIES}, "
        "w.tw_integral, w.tw_covered_s, "
        f"{', '.join(f'w.{name}' for name in names)} "
        "FROM window_aggregates w JOIN measurement_series s USING (series_id) WHERE w.window_s = %s",
        size_s,
    )
    got = {(to_us(row[0]), SeriesKey(*row[7:12])): row for row in rows}
    want = {
        (one.start_us, one.series): one
        for one in reference.windows(messages, size_s, pipeline.settings.base_window_s, GAP_US)
    }
    _assert_same(f"windows of {size_s} s", dict.fromkeys(got), dict.fromkeys(want))
    for key, row in got.items():
        one, where = want[key], f"{size_s} s window {key}"
        exact = tuple(to_us(value) if isinstance(value, datetime) else value for value in row[14:])
        assert exact == tuple(getattr(one, name) for name in _EXACT), where
        assert row[1] == one.coverage, where
        largest = max(abs(one.min_val), abs(one.max_val))
        assert row[2] == pytest.approx(one.avg_val, rel=0, abs=1e-15 * largest), where
        off = reference.m2_tolerance(one.count_n, one.m2, largest)
        assert row[3] == pytest.approx(one.m2, rel=0, abs=off), where
        if one.count_n <= EXACT_SAMPLES:
            assert row[4:7] == (one.p50 + 0.0, one.p95 + 0.0, one.p99 + 0.0), where
        else:
            assert all(one.min_val <= value <= one.max_val for value in row[4:7]), where
        assert row[13] == pytest.approx(one.tw_covered_s, rel=1e-12), where
        scale = largest * max(one.tw_covered_s, 1.0)
        assert row[12] == pytest.approx(one.tw_integral, rel=0, abs=1e-12 * scale), where


def _assert_anomalies(pipeline: Pipeline, messages: Sequence[Message], limits: Limits) -> None:
    rows = pipeline.query(
        f"SELECT a.bucket_start, a.window_s, a.detector, a.severity, a.value, a.score, {_SERIES}, a.detail "
        "FROM anomalies a JOIN measurement_series s USING (series_id)"
    )
    got = {(to_us(row[0]), row[1], SeriesKey(*row[6:11]), row[2]): (*row[3:6], json.loads(row[11])) for row in rows}
    want = {
        (one.start_us, one.size_s, one.series, one.detector): one
        for one in reference.anomalies(messages, pipeline.settings.base_window_s, limits)
    }
    _assert_same("anomalies", dict.fromkeys(got), dict.fromkeys(want))
    for key, (severity, value, score, detail) in got.items():
        assert severity == want[key].severity, key
        assert detail == {name: _near(it) for name, it in want[key].detail.items()}, key
        assert (value, score) == pytest.approx((want[key].value, want[key].score), rel=1e-9), key


def _near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def _assert_kpis(pipeline: Pipeline, messages: Sequence[Message], limits: Limits) -> None:
    rows = pipeline.query(
        "SELECT bucket_start, tenant_id, factory_id, machine_id, kpi, value, numerator, denominator, reason "
        "FROM kpis"
    )
    got = {(to_us(row[0]), tuple(row[1:4]), row[4]): row[5:] for row in rows}
    want = {
        (one.hour_us, one.machine, one.kpi): (one.value, one.numerator, one.denominator, one.reason)
        for one in reference.kpis(messages, pipeline.settings.base_window_s, limits)
    }
    _assert_same("kpis", got, want)


# ---------------------------------------------------------------------- events, as domains/events.py sends them


def event_messages_of(sent: Iterable[Sent]) -> list[EventMessage]:
    """What the reference reads of the messages that are expected to count, by plain ``json``."""
    return [_event_message(one) for one in sent if not one.rejected]


def _event_message(one: Sent) -> EventMessage:
    fields = json.loads(one.value or b"")
    # Whoever names no tenant has the domain's, which is this one unless the settings say otherwise.
    kind, tenant = fields.get("kind", "thing"), fields.get("tenant", "t1") or "default"
    properties = json.dumps(fields.get("properties", {}), sort_keys=True)
    return EventMessage(
        position=(one.topic, one.epoch, one.partition, one.offset, 0),
        kafka_time_us=one.kafka_time_ms * 1000,
        event_time_us=to_us(datetime.fromisoformat(fields["time"])),
        event_id=fields.get("id"),
        tenant_id=tenant,
        kind=("f1", None, kind, fields["what"]),
        content=("f1", None, kind, fields["entity"], fields["what"], fields.get("user"), properties),
        value=fields.get("value"),
    )


def assert_events_equal_reference(pipeline: Pipeline, messages: Sequence[EventMessage]) -> None:
    """Events and their roll-ups of every size are those of the reference."""
    got = pipeline.query(
        "SELECT event_time, event_id, tenant_id, factory_id, machine_id, entity_type, entity_id, event_type, user_id, "
        'properties, value, "offset" FROM normalized_events'
    )
    want = [
        (one.event_time_us, one.event_id, one.tenant_id, *one.content, one.value, one.position[3])
        for one in reference_kinds.events(messages).values()
    ]
    found = [
        (to_us(row[0]), *row[1:9], json.dumps(json.loads(row[9]), sort_keys=True), *row[10:]) for row in got
    ]
    _assert_same("events", Counter(found), Counter(want))
    for size_s in pipeline.settings.window_sizes_s:
        rows = pipeline.query(
            "SELECT bucket_start, tenant_id, factory_id, machine_id, entity_type, event_type, count_n, value_n, "
            "sum_val FROM event_rollups WHERE window_s = %s",
            size_s,
        )
        rolled = {(to_us(row[0]), *row[1:6]): (*row[6:8], _nearly(row[8])) for row in rows}
        _assert_same(f"roll-ups of {size_s} s", rolled, reference_kinds.event_rollups(messages, size_s))


def _nearly(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-12, abs=1e-9)


# ---------------------------------------------------------------------- states, as domains/states.py sends them


def state_messages_of(sent: Iterable[Sent]) -> list[StateMessage]:
    """What the reference reads of the messages that are expected to count, by plain ``json``."""
    return [_state_message(one) for one in sent if not one.rejected and b'"machine"' in (one.value or b"")]


def _state_message(one: Sent) -> StateMessage:
    fields = json.loads(one.value or b"")
    return StateMessage(
        position=(one.topic, one.epoch, one.partition, one.offset, 0),
        kafka_time_us=one.kafka_time_ms * 1000,
        event_time_us=to_us(datetime.fromisoformat(fields["time"])),
        series=(fields["machine"], fields.get("kind", "mode")),
        state=fields["state"],
    )


def assert_states_equal_reference(pipeline: Pipeline, messages: Sequence[StateMessage]) -> None:
    """Durations of every size and the states at the ends of hours are those of the reference, up to the clock."""
    clock = pipeline.query("SELECT until FROM state_clock")
    until_us = to_us(clock[0][0]) if clock else 0
    named = "JOIN measurement_series s USING (domain_id, series_id)"
    for size_s in pipeline.settings.window_sizes_s:
        rows = pipeline.query(
            f"SELECT bucket_start, machine_id, metric, state, duration_us FROM state_durations {named} "
            "WHERE window_s = %s",
            size_s,
        )
        durations = {(to_us(row[0]), (row[1], row[2]), row[3]): row[4] for row in rows}
        _assert_same(f"durations of {size_s} s", durations, reference_kinds.state_durations(messages, size_s, until_us))
    rows = pipeline.query(f"SELECT bucket_start, machine_id, metric, state FROM carried_states {named}")
    carried = {(to_us(row[0]), (row[1], row[2])): row[3] for row in rows}
    _assert_same("carried states", carried, reference_kinds.carried_states(messages, until_us))
