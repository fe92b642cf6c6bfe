"""How the pipeline stands, read in one snapshot, for people and for their scripts. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analytics_pipeline.records import DERIVED
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.pending_work import ACTIONABLE

DEAD_LETTER_REASONS_SHOWN = 10
#: Stands for the asset where not a domain partition failed, but the run that was requested for an hour.
RUN = "run"


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Where one Kafka partition stands. ``lag_messages`` None: its end was never seen."""

    topic: str
    partition: int
    epoch: int
    next_offset: int
    high_offset: int | None
    watermark: datetime | None
    updated_at: datetime

    @property
    def lag_messages(self) -> int | None:
        return None if self.high_offset is None else max(0, self.high_offset - self.next_offset)


@dataclass(frozen=True, slots=True)
class PendingAsset:
    """The pending work of one asset. Not here: work that is held in quarantine."""

    asset: str
    hours: int
    domain_partitions: int
    pending_items: int
    oldest_pending_at: datetime


@dataclass(frozen=True, slots=True)
class GatedPartition:
    """A domain partition in quarantine, or one that a person released and that still holds failing rows."""

    asset: str
    hour: datetime
    domain: str
    status: str
    rows_seen: int
    rows_failed: int
    pending_items: int
    updated_at: datetime
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FailedPartition:
    """A domain partition whose last computation failed, or an hour whose run did (``asset`` is then `RUN`, ``domain``
    None); and when it is tried again."""

    asset: str
    hour: datetime
    domain: str | None
    attempts: int
    next_try_at: datetime
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """Everything that ``analytics-pipeline status`` shows. Ages are against ``now``, the database's clock."""

    now: datetime
    partitions: tuple[PartitionLag, ...]
    last_batch_at: datetime | None
    #: Newest event whose window is final, by domain: the watermark less the allowed lateness.
    final_until: dict[str, datetime]
    pending: tuple[PendingAsset, ...]
    quarantined: tuple[GatedPartition, ...]
    failed: tuple[FailedPartition, ...]
    open_gaps: int
    dead_letters_last_day: dict[str, int]


def read_status(conn: Connection) -> PipelineStatus:
    """All of it as of one moment."""
    with conn.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SELECT now(), (SELECT max(committed_at) FROM ingest_batch)")
        now, last_batch_at = cursor.fetchone()
        cursor.execute("SELECT domain, final_until FROM domain_watermark WHERE final_until IS NOT NULL ORDER BY 1")
        final_until = dict(cursor.fetchall())
        cursor.execute("SELECT count(*) FROM offset_gap WHERE accepted_at IS NULL")
        open_gaps = int(cursor.fetchone()[0])
        cursor.execute(
            "SELECT reason, count(*) FROM dead_letters WHERE hour > now() - interval '1 day' "
            "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %s",
            (DEAD_LETTER_REASONS_SHOWN,),
        )
        dead_letters = dict(cursor.fetchall())
    return PipelineStatus(
        now=now,
        partitions=read_partitions(conn),
        last_batch_at=last_batch_at,
        final_until=final_until,
        pending=_pending(conn),
        quarantined=tuple(one for one in read_gated(conn) if one.status == "quarantined"),
        failed=_failed(conn),
        open_gaps=open_gaps,
        dead_letters_last_day=dead_letters,
    )


def read_partitions(conn: Connection) -> tuple[PartitionLag, ...]:
    """Every Kafka partition that was ever drained, by topic and number."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT topic, partition, epoch, next_offset, high_offset, watermark_time, updated_at "
            "FROM kafka_offset ORDER BY topic, partition"
        )
        return tuple(PartitionLag(*row) for row in cursor.fetchall())


def _pending(conn: Connection) -> tuple[PendingAsset, ...]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT w.asset, count(DISTINCT w.hour), count(*), sum(w.items)::bigint, min(w.oldest_at) "
            f"{ACTIONABLE} GROUP BY w.asset",
            {"domains": None, "since": None, "code_version": ""},
        )
        pending = [PendingAsset(*row) for row in cursor.fetchall()]
    return tuple(sorted(pending, key=lambda one: DERIVED.index(one.asset)))


def read_gated(conn: Connection) -> tuple[GatedPartition, ...]:
    """Domain partitions in quarantine, and released ones that still hold failing rows, by hour."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT s.asset, s.hour, d.domain, s.status, coalesce((s.detail->>'rows_seen')::bigint, s.rows), "
            "s.rows_failed, (SELECT count(*) FROM pending_work w WHERE w.asset = s.asset AND w.hour = s.hour "
            "AND w.domain_id = s.domain_id), s.updated_at, s.detail FROM partition_state s "
            "JOIN domain_number d USING (domain_id) WHERE s.status <> 'open' ORDER BY s.hour, s.asset, d.domain"
        )
        return tuple(GatedPartition(*row) for row in cursor.fetchall())


def _failed(conn: Connection) -> tuple[FailedPartition, ...]:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT f.asset, f.hour, d.domain, f.attempts, f.next_try_at, f.error FROM partition_failure f "
            "JOIN domain_number d USING (domain_id) ORDER BY f.attempts DESC, f.hour, f.asset, d.domain"
        )
        partitions = [FailedPartition(*row) for row in cursor.fetchall()]
        cursor.execute(
            "SELECT %s, c.hour, NULL, c.attempt, c.next_try_at, c.last_error FROM run_request c "
            "WHERE c.last_error IS NOT NULL AND EXISTS (SELECT FROM pending_work w WHERE w.hour = c.hour) "
            "ORDER BY c.attempt DESC, c.hour",
            (RUN,),
        )
        return (*partitions, *(FailedPartition(*row) for row in cursor.fetchall()))
