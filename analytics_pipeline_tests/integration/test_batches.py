"""The records of batches: coalesced once reported, pruned with retention, and cheap over many partitions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from analytics_pipeline.errors import OffsetConflictError
from analytics_pipeline.messages import LogPartition, OffsetRange
from analytics_pipeline.records import HOUR, BatchHour, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import batches, offsets, raw_events
from analytics_pipeline.storage.batches import BatchRecord, batches_after, coalesce, prune
from analytics_pipeline.storage.engine import Connection, connection, engine_for
from analytics_pipeline.storage.offset_ranges import OffsetRanges, encode, of_rows
from analytics_pipeline.storage.offsets import NewLog, OffsetMove
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, open_environment
from analytics_pipeline_tests.invariants import assert_accounted_for, assert_invariants
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 2 * HOUR
TOPICS, PARTITIONS = 50, 100
GIGABYTE = 10**9


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, drain_batch_messages=7) as it:
        yield it


@pytest.fixture
def conn(database_settings: Settings) -> Iterator[Connection]:
    with connection(engine_for(database_settings)) as it:
        yield it


def send(env: Environment, span: range) -> None:
    for partition in range(2):
        values = [reading(START + timedelta(minutes=m), float(m), sensor_id=f"s-{partition}") for m in span]
        env.send(values, partition)
        env.send([b"bad"], partition, rejected=True)


# ---------------------------------------------------------------------- coalescing


def test_reported_batches_are_coalesced_and_everything_is_still_accounted_for(env: Environment) -> None:
    send(env, range(40))
    env.drain()
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        before = batches_after(conn, 0)
        last = before[-1].batch_id
        kept_apart = {before[2].batch_id}
        gone = coalesce(conn, last, kept_apart)
        after = batches_after(conn, 0)
    assert len(before) > 5
    assert gone == len(before) - len(after) > 0
    assert {one.batch_id for one in after} >= {last, *kept_apart}
    totals = [
        batches.merge_hours(hour for batch in reports for hour in batch.hours) for reports in (before, after)
    ]
    told = [
        [(h.hour, h.domain, h.raw_rows, h.dead_letters, h.late_rows, h.reasons) for h in hours] for hours in totals
    ]
    assert told[0] == told[1]
    assert env.pipeline.query("SELECT sum(commits)::int FROM ingest_batch") == [(len(before),)]
    assert_accounted_for(env.pipeline, env.sent)
    send(env, range(40, 50))
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


def test_what_is_not_reported_yet_is_not_coalesced(env: Environment) -> None:
    send(env, range(40))
    env.drain()
    with connection(env.pipeline.engine) as conn:
        before = batches_after(conn, 0)
        coalesce(conn, before[3].batch_id, ())
        after = batches_after(conn, before[3].batch_id)
    assert [one.batch_id for one in after] == [one.batch_id for one in before[4:]]


def test_coalesced_batches_bring_vanished_rows_back(env: Environment) -> None:
    from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw

    send(env, range(40))
    env.drain()
    env.pipeline.settle()
    before = env.pipeline.snapshot(["raw_events", "dead_letters"])
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        coalesce(conn, batches_after(conn, 0)[-1].batch_id, ())
        cursor.execute('DELETE FROM raw_events WHERE "offset" %% 3 = 0', ())
        conn.commit()
    rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, START, "by hand")
    assert env.pipeline.snapshot(["raw_events", "dead_letters"]) == before


def test_records_below_retention_are_pruned_but_for_the_last(env: Environment) -> None:
    send(env, range(40))
    env.drain()
    later = datetime.now(UTC) + HOUR
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        before = batches_after(conn, 0)
        assert prune(conn, later, ()) == 0, "their hours are still there"
        cursor.execute("DELETE FROM ingest_batch_hour")  # as retention does
        assert prune(conn, later, {before[0].batch_id}) == len(before) - 2
        assert [one.batch_id for one in batches_after(conn, 0)] == [before[0].batch_id, before[-1].batch_id]


# ---------------------------------------------------------------------- cost


def logs_of(topics: int, partitions: int) -> list[LogPartition]:
    return [LogPartition(f"plant-{t:02}.line.readings", 1, p) for t in range(topics) for p in range(partitions)]


def begin(conn: Connection, logs: list[LogPartition]) -> dict[LogPartition, int]:
    offsets.begin_logs(conn, [NewLog(log, 1000, None, "first seen") for log in logs])
    conn.commit()
    stored = offsets.read_offsets(conn, sorted({log.topic for log in logs}))
    return {row.log: row.log_id for row in stored.values()}


def test_a_commit_over_5000_partitions_moves_their_offsets_within_a_fraction_of_a_second(conn: Connection) -> None:
    logs = logs_of(TOPICS, PARTITIONS)
    ids = begin(conn, logs)
    now_us = int(time.time() * 1e6)
    took = []
    for step in range(5):
        at = 1000 + step
        moves = [OffsetMove(
            range=OffsetRange(log, at, at + 1),
            log_id=ids[log],
            watermark_us=now_us,
            last_kafka_us=now_us,
            leader_epoch=3,
        ) for log in logs]
        began = time.monotonic()
        offsets.move(conn, moves)
        record = BatchRecord(
            arrived_at=datetime.now(UTC),
            duration_s=0.1,
            messages=len(logs),
            ranges=encode(of_rows([(ids[log], at, at + 1, 1, 0) for log in logs])),
            hours=[BatchHour(
                hour=START, domain=f"d{t}", raw_rows=500, dead_letters=0, late_rows=0, reasons={}, samples=[]
            ) for t in range(10)],
        )
        batches.open_batch(conn, record)
        conn.commit()
        took.append(time.monotonic() - began)
    assert min(took) <= 0.3, took


def test_a_conflict_names_the_first_partition_and_says_how_many_there_are(conn: Connection) -> None:
    logs = logs_of(2, 3)
    ids = begin(conn, logs)
    moves = [OffsetMove(range=OffsetRange(log, 1000, 1007), log_id=ids[log]) for log in logs]
    offsets.move(conn, moves[3:5])
    conn.commit()
    first = r"plant-01\.line\.readings\[0\] epoch 1: .* in 2 of 6 partitions"
    with pytest.raises(OffsetConflictError, match=first):
        offsets.move(conn, moves)


def test_bookkeeping_of_5000_partitions_takes_less_than_a_gigabyte_a_day(conn: Connection) -> None:
    """A commit each second for a minute over two hours of the clock, extrapolated from what the tables measure:
    hours that are coalesced stay, and at most two hours are not coalesced yet."""
    rng = np.random.default_rng(0)
    at, minute = rng.integers(0, 2**31, TOPICS * PARTITIONS), 60
    for second in range(minute):
        width = rng.integers(1, 8, len(at))
        nothing = np.zeros(len(at), np.uint64)
        ranges = OffsetRanges(np.arange(1, len(at) + 1), at, at + width, width, nothing)
        hours = [BatchHour(
            hour=START, domain=f"d{t}", raw_rows=500, dead_letters=0, late_rows=0, reasons={}, samples=[]
        ) for t in range(10)]
        record = BatchRecord(
            arrived_at=START + timedelta(seconds=second),
            duration_s=0.1,
            messages=int(width.sum()),
            ranges=encode(ranges),
            hours=hours,
        )
        last = batches.open_batch(conn, record)
        at = at + width
    conn.commit()
    fresh = size(conn)
    assert coalesce(conn, last, ()) == minute - 1
    with conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute("VACUUM FULL ingest_batch")
        cursor.execute("VACUUM FULL ingest_batch_hour")
        conn.autocommit = False
    coalesced = size(conn)
    per_day = 24 * coalesced + 2 * 3600 * fresh / minute
    assert per_day <= GIGABYTE, f"{per_day / 1e9:.2f} GB: {fresh} bytes a minute, {coalesced} an hour coalesced"


def size(conn: Connection) -> int:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_total_relation_size('ingest_batch') + pg_total_relation_size('ingest_batch_hour')"
        )
        return int(cursor.fetchone()[0])


def test_batches_of_12000_ranges_are_read_back(conn: Connection) -> None:
    """Each range stands alone, as where every partition has gaps."""
    logs = logs_of(TOPICS, 240)
    ids = begin(conn, logs)
    rows = [(ids[log], 10 * n, 10 * n + 1, 1, 0) for n, log in enumerate(logs)]
    record = BatchRecord(arrived_at=START, duration_s=0.1, messages=len(rows), ranges=encode(of_rows(rows)), hours=[])
    batch_id = batches.open_batch(conn, record)
    with conn.cursor() as cursor:
        cursor.execute(
            'INSERT INTO raw_events (topic, epoch, partition, "offset", domain_id, kafka_time, event_time, '
            "arrived_at, batch_id, payload) SELECT %s, 1, 7, %s, 1, %s, %s, %s, %s, 'x'",
            (logs[7].topic, 70, START, START, START, batch_id),
        )
    found = raw_events.read_batches(conn, sorted({log.topic for log in logs}), START, [batch_id])
    assert (found.offset.tolist(), found.log_id.tolist(), found.payload) == ([70], [ids[logs[7]]], [b"x"])
