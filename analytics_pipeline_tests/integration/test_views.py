"""The public views: the seeds' column names, states from the watermark, nothing from the wall clock."""

from __future__ import annotations

import math

import pytest

from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.integration.test_migrate import fetch, insert_window

TOPIC = "sensors.device.readings"


@pytest.fixture
def db(bare_settings: Settings) -> Settings:
    """Lateness 60 s, idle after 60 s, the sensor domain on two topics."""
    migrate(bare_settings, {"sensor": [TOPIC, "second"]})
    return bare_settings


def place(
    db: Settings,
    partition: int,
    watermark: str | None,
    last_kafka: str | None,
    topic: str = TOPIC,
    high: int | None = 15,
) -> None:
    fetch(
        db,
        "WITH log AS (INSERT INTO kafka_log (topic, partition, epoch, begin_offset, reason) "
        "VALUES (%s, %s, 1, 0, 'test') RETURNING *) "
        "INSERT INTO kafka_offset (topic, partition, epoch, log_id, next_offset, high_offset, watermark_time, "
        "last_kafka_time) SELECT topic, partition, epoch, log_id, 10, %s, %s, %s FROM log",
        topic, partition, high,
        watermark and f"2026-01-01 {watermark}Z", last_kafka and f"2026-01-01 {last_kafka}Z",
    )  # fmt: skip


def watermark(db: Settings, topic: str = TOPIC) -> str | None:
    rows = fetch(db, "SELECT to_char(watermark, 'HH24:MI:SS') FROM topic_watermark WHERE topic = %s", topic)
    return rows[0][0] if rows else None


def states(db: Settings) -> list[str]:
    return [row[0] for row in fetch(db, "SELECT state FROM analytics_agg ORDER BY bucket_start, window_s")]


def test_the_watermark_is_the_least_over_active_partitions(db: Settings) -> None:
    place(db, 0, "10:05:00", "10:05:30")
    place(db, 1, "10:04:00", "10:05:00")
    assert watermark(db) == "10:04:00"


def test_an_idle_partition_does_not_hold_the_watermark(db: Settings) -> None:
    place(db, 0, "10:05:00", "10:05:30")
    place(db, 1, "10:01:00", "10:04:29")  # 61 s behind the topic's newest message
    assert watermark(db) == "10:05:00"


def test_a_partition_exactly_at_the_idle_limit_still_holds_it(db: Settings) -> None:
    place(db, 0, "10:05:00", "10:05:30")
    place(db, 1, "10:01:00", "10:04:30")
    assert watermark(db) == "10:01:00"


def test_a_partition_that_never_had_a_message_does_not_hold_it(db: Settings) -> None:
    place(db, 0, "10:05:00", "10:05:30")
    place(db, 1, None, None)
    assert watermark(db) == "10:05:00"


@pytest.mark.parametrize(
    ("passed", "state"), [("10:01:59", "provisional"), ("10:02:00", "final"), ("10:30:00", "final")]
)
def test_a_window_is_final_once_the_watermark_passes_its_end_and_the_lateness(
    db: Settings, passed: str, state: str
) -> None:
    insert_window(db, bucket_start="2026-01-01 10:00Z")  # ends at 10:01, 60 s may be late
    place(db, 0, passed, passed)
    assert states(db) == [state]


def test_without_a_watermark_every_window_is_provisional(db: Settings) -> None:
    insert_window(db)
    assert states(db) == ["provisional"]


def test_a_domain_is_as_far_as_its_last_topic(db: Settings) -> None:
    insert_window(db)
    place(db, 0, "10:30:00", "10:30:00")
    assert states(db) == ["final"]
    place(db, 0, "10:01:00", "10:30:00", topic="second")
    assert states(db) == ["provisional"]


def test_a_window_that_changed_since_it_was_final_says_how_often(db: Settings) -> None:
    insert_window(db, revision=2)
    place(db, 0, "10:30:00", "10:30:00")
    assert states(db) == ["revised 2"]


def test_a_topic_that_fell_silent_days_ago_does_not_hold_its_domain(db: Settings) -> None:
    insert_window(db, bucket_start="2026-01-01 10:00Z")
    place(db, 0, "10:30:00", "10:30:00")
    place(db, 0, "09:00:00", "09:00:00", topic="second")
    assert states(db) == ["final"]


def test_a_window_is_not_final_while_something_below_it_waits(db: Settings) -> None:
    insert_window(db, bucket_start="2026-01-01 10:00Z")
    place(db, 0, "10:30:00", "10:30:00")
    assert states(db) == ["final"]
    for asset in ("normalized_measurements", "window_aggregates"):
        fetch(
            db,
            "INSERT INTO pending_work (asset, hour, domain_id, reason) VALUES (%s, '2026-01-01 10:00Z', 1, 'x')",
            asset,
        )
        assert states(db) == ["provisional"], asset
        fetch(db, "DELETE FROM pending_work")
    fetch(
        db,
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) "
        "VALUES ('normalized_measurements', '2026-01-01 10:00Z', 1, 0, 150, 'quarantined')",
    )
    assert states(db) == ["provisional"]


def test_a_window_of_one_sample_has_no_standard_deviation(db: Settings) -> None:
    insert_window(db, count_n=3)
    insert_window(db, count_n=1, bucket_start="2026-01-01 10:01Z", m2=0.0)
    rows = fetch(
        db,
        "SELECT std_val, extract(epoch FROM bucket_end - bucket_start)::int "
        "FROM analytics_agg ORDER BY bucket_start",
    )
    assert rows == [(pytest.approx(math.sqrt(2.0 / 2)), 60), (None, 60)]


def test_the_seed_documents_queries_run_as_they_are(db: Settings) -> None:
    insert_window(db)
    rows = fetch(
        db,
        "SELECT bucket_start,window_s,tenant_id,factory_id,machine_id,metric,avg_val,count_n "
        "FROM analytics.analytics_agg ORDER BY bucket_start DESC LIMIT 5",
    )
    assert rows[0][1:] == (60, "t1", "f1", "mc-01", "temp", 2.0, 3)
    events = "SELECT time,domain,entity_type,entity_id,event_type,value FROM analytics.analytics_event "
    assert fetch(db, events + "ORDER BY time DESC LIMIT 5") == []


def test_checkpoints_show_group_and_lag(db: Settings) -> None:
    place(db, 0, None, None)
    rows = fetch(db, "SELECT consumer_group, topic, partition, next_offset, lag FROM worker_checkpoints")
    assert rows == [("analytics-pipeline.v1", TOPIC, 0, 10, 5)]


def test_a_lag_that_is_not_known_is_not_zero(db: Settings) -> None:
    place(db, 0, None, None, high=None)
    assert fetch(db, "SELECT lag FROM worker_checkpoints") == [(None,)]


def test_partition_status_tells_done_pending_failed_and_quarantined(db: Settings) -> None:
    fetch(db, "INSERT INTO domain_number (domain_id, domain) VALUES (1, 'sensor')")
    fetch(
        db,
        "INSERT INTO partition_state (asset, hour, domain_id, rows, rows_failed, status) VALUES "
        "('kpis', '2026-01-01 10:00Z', 1, 4, 0, 'open'), "
        "('kpis', '2026-01-01 11:00Z', 1, 4, 0, 'open'), "
        "('kpis', '2026-01-01 12:00Z', 1, 0, 150, 'quarantined')",
    )
    fetch(
        db,
        "INSERT INTO pending_work (asset, hour, domain_id, reason) VALUES "
        "('kpis', '2026-01-01 11:00Z', 1, 'x'), "
        "('kpis', '2026-01-01 12:00Z', 1, 'x'), ('kpis', '2026-01-01 13:00Z', 1, 'x'), "
        "('kpis', '2026-01-01 14:00Z', 1, 'x')",
    )
    fetch(
        db,
        "INSERT INTO partition_failure (asset, hour, domain_id, attempts, next_try_at, code_version, error) "
        "VALUES ('kpis', '2026-01-01 14:00Z', 1, 2, now(), '', 'boom')",
    )
    rows = fetch(db, "SELECT state, pending_items FROM partition_status ORDER BY hour")
    assert rows == [("done", 0), ("pending", 1), ("quarantined", 1), ("pending", 1), ("failed", 1)]


def test_ingest_is_counted_by_hour_and_topic(db: Settings) -> None:
    fetch(
        db,
        "INSERT INTO raw_events SELECT 't', 1, 0, n, 0, 1, NULL, NULL, now(), "
        "'2026-01-01 10:30Z'::timestamptz + n * interval '20 min', "
        "now(), 1, 'abc' FROM generate_series(0, 2) n",
    )
    rows = fetch(
        db, "SELECT to_char(hour, 'HH24:MI'), topic, messages, payload_bytes FROM ingest_hourly ORDER BY hour"
    )
    assert rows == [("10:00", "t", 2, 6), ("11:00", "t", 1, 3)]
