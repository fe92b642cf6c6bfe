"""What holds when nothing is pending, whatever happened before: checked against what was sent, and a reference.

Every fault test ends with `assert_invariants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from analytics_pipeline.assets.catalog import ASSETS
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.offset_ranges import decode
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.against_reference import assert_equals_reference, messages_of
from analytics_pipeline_tests.environments import Environment, Sent
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.reference import Limits

Log = tuple[str, int, int]


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
