"""Counters as `domains/counters.py` sends them, held to the naive reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from analytics_pipeline.records import to_us
from analytics_pipeline_tests import reference_counters as reference
from analytics_pipeline_tests.environments import Sent
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.reference_counters import Counted, CounterMessage, Limits

#: The domain's limits and gap, repeated by hand.
LIMITS = {"pieces": Limits(1000, 1.0), "strokes": Limits(1000), "cycles": Limits(None, 0.3)}
GAP_US = 300 * 1_000_000


def counter_messages_of(sent: Iterable[Sent]) -> list[CounterMessage]:
    """What the reference reads of the messages that are expected to count, by plain ``json``."""
    return [_message(one) for one in sent if not one.rejected]


def _message(one: Sent) -> CounterMessage:
    fields = json.loads(one.value or b"")
    return CounterMessage(
        position=(one.topic, one.epoch, one.partition, one.offset, 0),
        kafka_time_us=one.kafka_time_ms * 1000,
        event_time_us=to_us(datetime.fromisoformat(fields["time"])),
        series=(fields["line"], fields["counter"]),
        reading=int(fields["count"]),
    )


def stored_increments(pipeline: Pipeline, size_s: int, domain: str = "counters") -> dict[tuple[int, Any], Counted]:
    """By (start of the window, series)."""
    rows = pipeline.query(
        "SELECT bucket_start, machine_id, metric, increment, reason, readings, resets, roll_overs, swaps, unknown_n, "
        "gaps_spanned, last_time, last_reading FROM counter_increments "
        "JOIN measurement_series USING (domain_id, series_id) JOIN domain_number USING (domain_id) "
        "WHERE window_s = %s AND domain = %s",
        *(size_s, domain),
    )
    return {
        (to_us(row[0]), (row[1], row[2])): Counted(*row[3:11], last_time_us=to_us(row[11]), last_reading=row[12])
        for row in rows
    }


def assert_counters_equal_reference(
    pipeline: Pipeline, messages: Sequence[CounterMessage], *, floor_us: int = 0, gap_us: int = GAP_US
) -> None:
    """Readings, and what was counted in windows of every size, are those of the reference, from the floor on."""
    rows = pipeline.query(
        'SELECT machine_id, metric, event_time, reading, kafka_time, "offset" FROM counter_readings '
        "JOIN measurement_series USING (domain_id, series_id)"
    )
    got = {(tuple(row[:2]), to_us(row[2])): (row[3], to_us(row[4]), row[5]) for row in rows}
    want = {
        (series, time_us): (one.reading, one.kafka_time_us, one.position[3])
        for series, readings in reference.counter_readings(messages).items()
        for time_us, one in readings
        if time_us >= floor_us
    }
    _assert_same("readings", got, want)
    for size_s in pipeline.settings.window_sizes_s:
        wanted = reference.counter_increments(messages, size_s, LIMITS, gap_us)
        stored = stored_increments(pipeline, size_s)
        _assert_same(
            f"increments of {size_s} s",
            {key: row for key, row in stored.items() if key[0] >= floor_us},
            {key: row for key, row in wanted.items() if key[0] >= floor_us},
        )


def _assert_same(what: str, got: Mapping[Any, Any], want: Mapping[Any, Any]) -> None:
    keys = sorted(key for key in got.keys() | want.keys() if got.get(key) != want.get(key))
    first = "\n".join(f"  {key}: got {got.get(key)}, want {want.get(key)}" for key in keys[:5])
    assert not keys, f"{what}: {len(keys)} differ\n{first}"
