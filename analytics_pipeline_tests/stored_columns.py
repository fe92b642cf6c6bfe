"""What every stored column should say of one domain after any history: expected by plain Python, compared to the bit.

Moments, integrals and scores are exact sums in the reference and merged doubles in the product: they are held to their
rounding here, and to the bit by the full recompute (`invariants.assert_live_equals_rebuild`). Everything else is equal
or wrong.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from analytics_pipeline.records import to_us
from analytics_pipeline.storage.offset_ranges import decode
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.environments import Sent
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.rated_reference import RatedMessage, late_counts
from analytics_pipeline_tests.reference import HOUR_US, Limit, Limits, SeriesKey

Position = tuple[str, int, int, int, int]
_ID_NAMESPACE = uuid.UUID("5f0d2a6e-7c3b-5d41-9a8e-1f6b0c4d2e97")
_GAP_US = 300 * 1_000_000
_LATENESS_US = 60 * 1_000_000
_EXACT_SAMPLES = 100
_COUNTED_BY = {
    "raw_events": "event_time",
    "normalized_measurements": "event_time",
    "window_aggregates": "bucket_start",
    "anomalies": "bucket_start",
    "kpis": "bucket_start",
}


#: A sample's place among those of an element, behind the element's place in its message.
_SAMPLES_PER_ELEMENT = 1024


class Element(NamedTuple):
    """A message, or a part of one that was split. ``rejected``: why, by the stage that refuses it."""

    position: Position
    kafka_us: int
    arrived_us: int
    payload: bytes
    time_us: int | None
    series: SeriesKey | None
    value: float | None
    rejected: Mapping[str, str]
    is_element: bool


@dataclass(frozen=True)
class Expected:
    """What was sent on one domain's topic and read, as it should be stored: from the floor on. What lies before is the
    history of what is kept, as far back as it is known."""

    domain: str
    elements: Sequence[Element]
    floor_us: int
    known_from_us: int

    def raw(self) -> dict[Position, Any]:
        return {
            one.position: (one.kafka_us, one.arrived_us, one.time_us, one.payload.decode(), None, None)
            for one in self.elements
            if "raw_events" not in one.rejected and (one.time_us or 0) >= self.floor_us
        }

    def dead_letters(self) -> dict[Any, Any]:
        """A letter of raw events has the hour in which Kafka got it; they all stay, they came just now."""
        found: dict[Any, Any] = {}
        for one in self.elements:
            for stage, reason in one.rejected.items():
                time_us = None if stage == "raw_events" else one.time_us
                hour_us = (one.kafka_us if time_us is None else time_us) // HOUR_US * HOUR_US
                position = one.position if stage == "raw_events" else _sample_position(one.position)
                found[position, stage] = (
                    *(reason, hour_us, time_us, one.payload, one.kafka_us, one.arrived_us, one.is_element),
                )
        return found

    def messages(self) -> list[reference.Message]:
        """What counts, also from before the floor."""
        return [
            reference.Message(one.position, one.kafka_us, one.time_us, one.series, one.value)
            for one in self.elements
            if not one.rejected and one.series is not None and one.value is not None
            if one.time_us is not None and one.time_us >= self.known_from_us
        ]


def assert_exact(pipeline: Pipeline, expected: Expected, limits: Limits) -> None:
    """Every stored row of one domain, from the floor on, is the reference's."""
    [(domain_id,)] = pipeline.query("SELECT domain_id FROM domain_number WHERE domain = %s", expected.domain)
    _assert_raw(pipeline, domain_id, expected)
    _assert_dead_letters(pipeline, domain_id, expected)
    messages = expected.messages()
    _assert_measurements(pipeline, domain_id, messages, expected)
    messages = calibrated(pipeline, messages)
    for size_s in pipeline.settings.window_sizes_s:
        _assert_windows(pipeline, domain_id, messages, expected, size_s)
    _assert_anomalies(pipeline, domain_id, messages, expected, limits)
    _assert_kpis(pipeline, domain_id, messages, expected, limits)
    _assert_counts(pipeline, domain_id, expected)


def _assert_same(what: str, got: Mapping[Any, Any], want: Mapping[Any, Any]) -> None:
    nothing = "nothing"
    keys = sorted(got.keys() | want.keys(), key=repr)
    different = [key for key in keys if got.get(key, nothing) != want.get(key, nothing)]
    first = "\n".join(f"  {key}: got {got.get(key, nothing)}, want {want.get(key, nothing)}" for key in different[:5])
    assert not different, f"{what}: {len(different)} differ\n{first}"


def _sample_position(position: Position) -> Position:
    return (*position[:4], position[4] * _SAMPLES_PER_ELEMENT)


def _us(moment: datetime | None) -> int | None:
    return None if moment is None else to_us(moment)


# ---------------------------------------------------------------------- raw events and dead letters


def _assert_raw(pipeline: Pipeline, domain_id: int, expected: Expected) -> None:
    rows = pipeline.query(
        'SELECT topic, epoch, partition, "offset", ordinal, kafka_time, arrived_at, event_time, payload, key, headers '
        "FROM raw_events WHERE domain_id = %s",
        domain_id,
    )
    got = {tuple(row[:5]): (*map(_us, row[5:8]), *row[8:]) for row in rows}
    _assert_same(f"raw events of {expected.domain}", got, expected.raw())
    unknown = pipeline.query(
        "SELECT count(*) FROM raw_events r WHERE NOT EXISTS (SELECT FROM ingest_batch b WHERE b.batch_id = r.batch_id)"
    )
    assert unknown == [(0,)], "raw events of batches that are not recorded"


def _assert_dead_letters(pipeline: Pipeline, domain_id: int, expected: Expected) -> None:
    rows = pipeline.query(
        'SELECT topic, epoch, partition, "offset", ordinal, stage, reason, hour, event_time, payload, kafka_time, '
        "arrived_at, is_element FROM dead_letters WHERE domain_id = %s",
        domain_id,
    )
    got = {
        (tuple(row[:5]), row[5]): (row[6], _us(row[7]), _us(row[8]), bytes(row[9]), *map(_us, row[10:12]), row[12])
        for row in rows
    }
    _assert_same(f"dead letters of {expected.domain}", got, expected.dead_letters())


def _assert_measurements(
    pipeline: Pipeline, domain_id: int, messages: Sequence[reference.Message], expected: Expected
) -> None:
    winners: dict[Any, reference.Message] = {}
    for one in sorted(messages, key=lambda it: (it.kafka_time_us, it.position)):
        winners[one.series, one.event_time_us] = one
    want = {
        key: (one.value.hex(), one.kafka_time_us, _sample_position(one.position), 0)
        for key, one in winners.items()
        if key[1] >= expected.floor_us
    }
    rows = pipeline.query(
        'SELECT s.tenant_id, s.factory_id, s.machine_id, s.sensor_id, s.metric, m.event_time, m.value, m.kafka_time, '
        'l.topic, l.epoch, l.partition, m."offset", m.ordinal, m.sample_key, s.station_id, s.unit, s.domain_id '
        "FROM normalized_measurements m JOIN measurement_series s USING (series_id) JOIN kafka_log l USING (log_id) "
        "WHERE m.domain_id = %s",
        domain_id,
    )
    got = {
        (SeriesKey(*row[:5]), to_us(row[5])): (float(row[6]).hex(), to_us(row[7]), tuple(row[8:13]), row[13])
        for row in rows
    }
    assert len(got) == len(rows)
    assert {row[14:] for row in rows} <= {(None, None, domain_id)}
    _assert_same(f"measurements of {expected.domain}", got, want)


# ---------------------------------------------------------------------- what is computed

_SERIES = "s.series_id, s.tenant_id, s.factory_id, s.machine_id, s.sensor_id, s.metric"
_EXACT = ("count_n", "min_val", "max_val", "first_val", "first_time", "last_val", "last_time", "base_n", "coverage")
_EXACT += ("late_n", "bad_n", "uncertain_n", "censored_n", "ends_bad")
_WANTED = ("count_n", "min_val", "max_val", "first_val", "first_time_us", "last_val", "last_time_us", "base_n")


def _assert_windows(
    pipeline: Pipeline, domain_id: int, messages: Sequence[reference.Message], expected: Expected, size_s: int
) -> None:
    rows = pipeline.query(
        f"SELECT {_SERIES}, w.bucket_start, w.avg_val, w.m2, w.p50, w.p95, w.p99, w.tw_integral, w.tw_covered_s, "
        f"{', '.join(f'w.{name}' for name in _EXACT)} FROM window_aggregates w JOIN measurement_series s "
        "ON s.domain_id = w.domain_id AND s.series_id = w.series_id WHERE w.domain_id = %s AND w.window_s = %s",
        *(domain_id, size_s),
    )
    got = {(to_us(row[6]), SeriesKey(*row[1:6])): row[7:] for row in rows if to_us(row[6]) >= expected.floor_us}
    base_s = pipeline.settings.base_window_s
    want = {
        (one.start_us, one.series): one
        for one in reference.windows(messages, size_s, base_s, _GAP_US)
        if one.start_us >= expected.floor_us
    }
    what = f"windows of {size_s} s of {expected.domain}"
    exact = {key: tuple(to_us(it) if isinstance(it, datetime) else it for it in row[7:]) for key, row in got.items()}
    late = late_counts((RatedMessage(*one) for one in messages), size_s, base_s, _LATENESS_US)
    wanted = {
        k: (*(getattr(it, name) for name in _WANTED), it.coverage, late[k], 0, 0, 0, False) for k, it in want.items()
    }
    _assert_same(what, exact, wanted)
    for key, row in got.items():
        _assert_rounding(f"{what}, {key}", row, want[key])


def _assert_rounding(where: str, row: Sequence[Any], one: reference.Window) -> None:
    largest = max(abs(one.min_val), abs(one.max_val))
    assert row[0] == pytest.approx(one.avg_val, rel=0, abs=1e-15 * largest), where
    off = reference.m2_tolerance(one.count_n, one.m2, largest)
    assert row[1] == pytest.approx(one.m2, rel=0, abs=off), where
    if one.count_n <= _EXACT_SAMPLES:
        assert row[2:5] == (one.p50 + 0.0, one.p95 + 0.0, one.p99 + 0.0), where
    # What was carried in may be far larger than any sample of the window.
    scale = max(largest * max(one.tw_covered_s, 1.0), abs(one.tw_integral))
    assert row[5] == pytest.approx(one.tw_integral, rel=0, abs=1e-12 * scale), where
    assert row[6] == pytest.approx(one.tw_covered_s, rel=1e-12), where


def _assert_anomalies(
    pipeline: Pipeline,
    domain_id: int,
    messages: Sequence[reference.Message],
    expected: Expected,
    limits: Limits,
) -> None:
    rows = pipeline.query(
        f"SELECT {_SERIES}, a.bucket_start, a.window_s, a.detector, a.anomaly_id, a.severity, a.value, a.score, "
        "a.detail FROM anomalies a JOIN measurement_series s "
        "ON s.domain_id = a.domain_id AND s.series_id = a.series_id WHERE a.domain_id = %s",
        domain_id,
    )
    got = {(to_us(row[6]), *row[7:9], SeriesKey(*row[1:6])): row for row in rows}
    want = {
        (one.start_us, one.size_s, one.detector, one.series): one
        for one in reference.anomalies(messages, pipeline.settings.base_window_s, limits)
        if one.start_us >= expected.floor_us
    }
    what = f"anomalies of {expected.domain}"
    _assert_same(what, {k: row[10] for k, row in got.items()}, {k: one.severity for k, one in want.items()})
    for key, row in got.items():
        one = want[key]
        assert row[9] == str(uuid.uuid5(_ID_NAMESPACE, f"{row[0]}/{key[0]}/{key[1]}/{key[2]}")), f"{what}, {key}"
        assert row[11:13] == pytest.approx((one.value, one.score), rel=1e-9), f"{what}, {key}"
        assert json.loads(row[13]) == {name: _near(it) for name, it in one.detail.items()}, f"{what}, {key}"


def _near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def _assert_kpis(
    pipeline: Pipeline,
    domain_id: int,
    messages: Sequence[reference.Message],
    expected: Expected,
    limits: Limits,
) -> None:
    rows = pipeline.query(
        "SELECT bucket_start, window_s, tenant_id, factory_id, machine_id, kpi, value, numerator, denominator, unit, "
        "reason FROM kpis WHERE domain_id = %s",
        domain_id,
    )
    got = {(to_us(row[0]), row[1], tuple(row[2:5]), row[5]): row[6:] for row in rows}
    want = {
        (one.hour_us, 3600, one.machine, one.kpi): (one.value, one.numerator, one.denominator, "1", one.reason)
        for one in reference.kpis(messages, pipeline.settings.base_window_s, limits)
        if one.hour_us >= expected.floor_us
    }
    _assert_same(f"KPIs of {expected.domain}", got, want)


def _assert_counts(pipeline: Pipeline, domain_id: int, expected: Expected) -> None:
    """What people are told that each hour holds is what it holds."""
    dead_letters = Counter((stage, one[1]) for (_, stage), one in expected.dead_letters().items())
    for asset, column in _COUNTED_BY.items():
        told = pipeline.query(
            "SELECT hour, rows, rows_failed FROM partition_state WHERE asset = %s AND domain_id = %s", asset, domain_id
        )
        rows = pipeline.query(
            f"SELECT date_trunc('hour', {column}), count(*) FROM {asset} WHERE domain_id = %s GROUP BY 1", domain_id
        )
        held = {to_us(hour): count for hour, count in rows}
        hours = {to_us(one[0]) for one in told} | held.keys() | {hour for stage, hour in dead_letters if stage == asset}
        hours = {hour for hour in hours if hour >= expected.floor_us}
        got = {to_us(one[0]): one[1:] for one in told}
        _assert_same(
            f"counts of {asset} of {expected.domain}",
            {hour: got.get(hour, (0, 0)) for hour in hours},
            {hour: (held.get(hour, 0), dead_letters[asset, hour]) for hour in hours},
        )


# ---------------------------------------------------------------------- offsets


def assert_offsets_covered(pipeline: Pipeline, read: Iterable[Sent]) -> None:
    """Each log was read from its beginning to its next offset, once: in the ranges of batches, or in a gap.

    The ranges say how many messages they hold; Kafka's own records between them are few and stand alone.
    """
    offsets: dict[tuple[str, int, int], set[int]] = {}
    for one in read:
        offsets.setdefault((one.topic, one.epoch, one.partition), set()).add(one.offset)
    covered: dict[int, list[tuple[int, int, int | None]]] = {}
    for (ranges,) in pipeline.query("SELECT ranges FROM ingest_batch"):
        columns = decode(ranges)
        for log_id, *rest in zip(columns.log_id, columns.from_offset, columns.to_offset, columns.messages, strict=True):
            covered.setdefault(int(log_id), []).append(tuple(map(int, rest)))  # type: ignore[arg-type]
    for log_id, begin, end in pipeline.query(
        "SELECT l.log_id, g.from_offset, g.to_offset FROM offset_gap g "
        "JOIN kafka_log l USING (topic, epoch, partition) "
        "WHERE g.to_offset IS NOT NULL AND g.reason = 'expired before it was read'"
    ):
        covered.setdefault(log_id, []).append((begin, end, None))
    logs = pipeline.query(
        "SELECT l.log_id, l.topic, l.epoch, l.partition, l.begin_offset, coalesce(l.end_offset, o.next_offset) "
        "FROM kafka_log l LEFT JOIN kafka_offset o USING (log_id)"
    )
    for log_id, *log, begin, end in logs:
        held = offsets.pop((log[0], log[1], log[2]), set())
        at = begin
        for start, stop, messages in sorted(covered.pop(log_id, [])):
            assert start == at, f"{log}: after offset {at} comes {start}"
            at = stop
            if messages is not None:
                there = len([one for one in held if start <= one < stop])
                assert there == messages, f"{log}: [{start}, {stop}) says {messages} messages, {there} were sent"
        assert at == end, f"{log}: read to {end}, covered to {at}"
        assert all(begin <= one < end for one in held), f"{log}: {sorted(held)} were not read"
    assert not offsets, f"logs that were never read: {list(offsets)}"
    assert not covered, f"ranges of logs that do not exist: {list(covered)}"


# ---------------------------------------------------------------------- limits


def calibrated(pipeline: Pipeline, messages: Sequence[reference.Message]) -> list[reference.Message]:
    """Messages with the values that figures are made of, by what the table of calibrations says now."""
    rows = pipeline.query(
        "SELECT machine_id, sensor_id, metric, nullif(valid_from, '-infinity'), gain, \"offset\" "
        "FROM analytics_calibration"
    )
    found = []
    for one in messages:
        begun = [
            row
            for row in rows
            if row[0] in (None, one.series.machine_id)
            and row[1] in (None, one.series.sensor_id)
            and row[2] == one.series.metric
            and (row[3] is None or to_us(row[3]) <= one.event_time_us)
        ]
        best = max(begun, key=_rank, default=None)
        found.append(one if best is None else one._replace(value=best[4] * one.value + best[5]))
    return found


def _rank(row: Sequence[Any]) -> tuple[int, int]:
    """The row that names the most holds, of those the last to begin."""
    return (row[0] is not None) + (row[1] is not None), -1 if row[3] is None else to_us(row[3])


def limits_of(pipeline: Pipeline, series: Iterable[SeriesKey]) -> Limits:
    """The limits of each series as the table says now: the most specific row, of those the latest that has begun."""
    rows = pipeline.query(
        "SELECT machine_id, sensor_id, metric, lsl, usl, nullif(valid_from, '-infinity') FROM analytics_spec_limits"
    )
    found: dict[SeriesKey, list[Limit]] = {}
    for one in series:
        its = [
            row
            for row in rows
            if row[0] in (None, one.machine_id) and row[1] in (None, one.sensor_id) and row[2] == one.metric
        ]
        edges = sorted({-1 if row[5] is None else to_us(row[5]) for row in its})
        for begin, end in zip(edges, [*edges[1:], None], strict=False):
            begun = [row for row in its if row[5] is None or to_us(row[5]) <= begin]
            best = max(begun, key=lambda row: ((row[0] is not None) + (row[1] is not None), _us(row[5]) or -1))
            found.setdefault(one, []).append(Limit(begin, end, best[3], best[4]))
    return found
