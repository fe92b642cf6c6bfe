"""What holds when nothing is pending, whatever happened before: checked against what was sent, and a reference.

Every fault test ends with `assert_invariants`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from typing import Any

import pytest

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.records import to_us
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.offset_ranges import decode
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.environments import Environment, Sent
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.reference import EventMessage, Limits, Message, SeriesKey, StateMessage

Log = tuple[str, int, int]
_SERIES = "s.tenant_id, s.factory_id, s.machine_id, s.sensor_id, s.metric"


def assert_invariants(env: Environment, sent: Sequence[Sent] | None = None, limits: Limits | None = None) -> None:
    """Nothing lost, nothing twice, live equals a full rebuild bit for bit, and both equal the naive reference."""
    sent = env.sent if sent is None else sent
    assert_settled(env.pipeline)
    assert_accounted_for(env.pipeline, sent)
    assert_held_rows_are_counted(env.pipeline)
    assert_equals_reference(env.pipeline, messages_of(sent), limits or {})
    assert_live_equals_rebuild(env.pipeline)


def assert_settled(pipeline: Pipeline) -> None:
    with connection(pipeline.engine) as conn:
        assert actionable_hours(conn) == []
    assert pipeline.query("SELECT asset, hour, status, detail FROM partition_state WHERE status <> 'open'") == []


TIME_COLUMNS = {
    "raw_events": "event_time",
    "normalized_measurements": "event_time",
    "window_aggregates": "bucket_start",
    "anomalies": "bucket_start",
    "kpis": "bucket_start",
}


def assert_held_rows_are_counted(pipeline: Pipeline) -> None:
    """What people are told that an hour holds is what it holds."""
    for asset, column in TIME_COLUMNS.items():
        told = pipeline.query(
            "SELECT hour, rows FROM partition_state JOIN domain_number USING (domain_id) "
            "WHERE asset = %s AND domain = %s AND rows > 0 ORDER BY 1",
            *(asset, "sensor"),
        )
        held = pipeline.query(f"SELECT date_trunc('hour', {column}), count(*) FROM {asset} GROUP BY 1 ORDER BY 1")
        assert told == held, asset


def assert_live_equals_rebuild(pipeline: Pipeline) -> None:
    live = pipeline.snapshot()
    pipeline.rebuild(pipeline.hours())
    pipeline.settle()
    rebuilt = pipeline.snapshot()
    for table, rows in live.items():
        assert rebuilt[table] == rows, table


# ---------------------------------------------------------------------- nothing lost, nothing twice


def assert_accounted_for(pipeline: Pipeline, sent: Sequence[Sent]) -> None:
    """Every offset of a log that was read is a raw event, or a dead letter, or in a gap: exactly one of them.

    The control records that end transactions are not in ``offset_gap``: each is one offset alone, and the ranges
    of the batches must count exactly as many of them as there are.
    """
    raw = _offsets(pipeline, 'SELECT DISTINCT topic, epoch, partition, "offset" FROM raw_events')
    dead = _offsets(
        pipeline,
        "SELECT DISTINCT topic, epoch, partition, \"offset\" FROM dead_letters WHERE stage = 'raw_events'",
    )
    gaps = _gaps(pipeline)
    ranges = _ranges_by_log(pipeline)
    for log_id, log, begin, end in _logs(pipeline):
        gap = set(gaps.pop(log, []))
        found = sorted(raw.pop(log, []) + dead.pop(log, []))
        controls = sorted(set(range(begin, end)) - set(found) - gap)
        everything = sorted([*found, *gap, *controls])
        first = min([begin, *gap])  # what was skipped or expired before the first batch
        assert everything == list(range(first, end)), f"{log}: {_difference(everything, first, end)}"
        _assert_ranges_say_so(log, ranges.pop(log_id, []), set(found), gap, controls)
    assert not raw, f"raw events of logs that were never read: {list(raw)}"
    assert not dead, f"dead letters of logs that were never read: {list(dead)}"
    assert not gaps, f"gaps of logs that were never read: {list(gaps)}"
    assert not ranges, f"ranges of logs that were never read: {list(ranges)}"
    _assert_every_message_is_there(pipeline, sent)
    _assert_dead_letters(pipeline, sent)
    _assert_counts_agree(pipeline)


def _assert_ranges_say_so(
    log: Log, ranges: Sequence[tuple[int, int, int]], found: set[int], gap: set[int], controls: Sequence[int]
) -> None:
    """No offset was read twice, each range holds as many messages as it says, and control records stand alone."""
    for before, after in pairwise(ranges):
        assert before[1] <= after[0], f"{log}: offsets {after[0]} to {before[1]} were read twice"
    read = {offset for begin, end, _ in ranges for offset in range(begin, end)}
    for begin, end, messages in ranges:
        held = [offset for offset in range(begin, end) if offset in found]
        assert len(held) == messages, f"{log}: [{begin}, {end}) says {messages} messages, {len(held)} are there"
    assert found <= read, f"{log}: no batch says that it read {sorted(found - read)[:10]}"
    lost = [one for one in controls if one not in read]
    assert not lost, f"{log}: lost {lost[:10]}: neither rows nor gaps, and no batch read them"
    wide = [one for one, after in pairwise(controls) if after == one + 1]
    assert not wide, f"{log}: lost {wide[:10]}: several in a row are no control records"


def _offsets(pipeline: Pipeline, query: str) -> dict[Log, list[int]]:
    found: dict[Log, list[int]] = {}
    for topic, epoch, partition, offset in pipeline.query(query):
        found.setdefault((topic, epoch, partition), []).append(offset)
    return found


def _gaps(pipeline: Pipeline) -> dict[Log, list[int]]:
    found: dict[Log, list[int]] = {}
    rows = pipeline.query(
        "SELECT topic, epoch, partition, from_offset, to_offset FROM offset_gap WHERE to_offset IS NOT NULL"
    )
    for topic, epoch, partition, begin, end in rows:
        found.setdefault((topic, epoch, partition), []).extend(range(begin, end))
    return found


def _logs(pipeline: Pipeline) -> list[tuple[int, Log, int, int]]:
    """Every log with the offsets from which and to which it was read."""
    rows = pipeline.query(
        "SELECT l.log_id, l.topic, l.epoch, l.partition, l.begin_offset, coalesce(l.end_offset, o.next_offset) "
        "FROM kafka_log l LEFT JOIN kafka_offset o USING (log_id)"
    )
    return [(row[0], (row[1], row[2], row[3]), row[4], row[5]) for row in rows]


def _ranges_by_log(pipeline: Pipeline) -> dict[int, list[tuple[int, int, int]]]:
    """What batches say that they read: (from, to, messages) by log, ascending."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for (value,) in pipeline.query("SELECT ranges FROM ingest_batch"):
        ranges = decode(value)
        columns = (ranges.log_id, ranges.from_offset, ranges.to_offset, ranges.messages)
        for log_id, begin, end, messages in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(log_id, []).append((begin, end, messages))
    return {log_id: sorted(ranges) for log_id, ranges in found.items()}


def _difference(found: Sequence[int], begin: int, end: int) -> str:
    lost = sorted(set(range(begin, end)) - set(found))
    doubled = sorted({one for at, one in enumerate(found[1:]) if found[at] == one})
    strange = sorted(set(found) - set(range(begin, end)))
    return f"lost {lost[:10]}, doubled {doubled[:10]}, outside of what was read {strange[:10]}"


def _assert_every_message_is_there(pipeline: Pipeline, sent: Sequence[Sent]) -> None:
    stored: dict[tuple[Any, ...], bytes | None] = {}
    for *position, payload in pipeline.query(
        "SELECT topic, epoch, partition, \"offset\", convert_to(payload, 'UTF8') FROM raw_events UNION ALL "
        "SELECT topic, epoch, partition, \"offset\", payload FROM dead_letters WHERE stage = 'raw_events'"
    ):
        stored[tuple(position)] = None if payload is None else bytes(payload)
    for one in sent:
        position = (one.topic, one.epoch, one.partition, one.offset)
        assert position in stored, f"lost: {one}"
        assert stored[position] == one.value, f"bytes changed: {one}"


def _assert_dead_letters(pipeline: Pipeline, sent: Sequence[Sent]) -> None:
    """What was expected to be rejected has one dead letter, in whichever stage, and nothing else has any."""
    rejected = pipeline.query('SELECT topic, epoch, partition, "offset" FROM dead_letters ORDER BY 1, 2, 3, 4')
    expected = [(one.topic, one.epoch, one.partition, one.offset) for one in sent if one.rejected]
    assert rejected == sorted(expected)


def _assert_counts_agree(pipeline: Pipeline) -> None:
    """What batches say they brought is what is there: counts in equal counts out."""
    told = pipeline.query("SELECT sum(messages), sum(raw_rows), sum(dead_letters) FROM ingest_batch")[0]
    there = pipeline.query(
        "SELECT (SELECT count(*) FROM raw_events), (SELECT count(*) FROM dead_letters WHERE stage = 'raw_events')"
    )[0]
    assert tuple(int(one or 0) for one in told) == (sum(there), *there)
    hours = pipeline.query("SELECT sum(raw_rows), sum(dead_letters) FROM ingest_batch_hour")[0]
    assert tuple(int(one or 0) for one in hours) == there


# ---------------------------------------------------------------------- the naive reference


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
    kind, tenant = fields.get("kind", "thing"), fields.get("tenant", "t1")
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
        for one in reference.events(messages).values()
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
        _assert_same(f"roll-ups of {size_s} s", rolled, reference.event_rollups(messages, size_s))


def _nearly(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-12, abs=1e-9)


def assert_content_is_counted(pipeline: Pipeline) -> None:
    """What people are told that a domain partition holds is what all tables of its asset hold."""
    for spec in ASSETS:
        told = pipeline.query(
            "SELECT domain_id, hour, rows::bigint FROM partition_state WHERE asset = %s AND rows <> 0 ORDER BY 1, 2",
            spec.name,
        )
        tables = " UNION ALL ".join(
            f"SELECT domain_id, {table.time_column} AS moment FROM {table.name}"
            for table in spec.tables
            if table.counted
        )
        held = pipeline.query(
            f"SELECT domain_id, date_trunc('hour', moment, 'UTC'), count(*) FROM ({tables}) t "
            "GROUP BY 1, 2 ORDER BY 1, 2"
        )
        assert told == held, spec.name


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
        _assert_same(f"durations of {size_s} s", durations, reference.state_durations(messages, size_s, until_us))
    rows = pipeline.query(f"SELECT bucket_start, machine_id, metric, state FROM carried_states {named}")
    carried = {(to_us(row[0]), (row[1], row[2])): row[3] for row in rows}
    _assert_same("carried states", carried, reference.carried_states(messages, until_us))
