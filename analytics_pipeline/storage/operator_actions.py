"""What an operator may change: offsets, gaps, quarantine. Each is one transaction of the caller's.

Nothing here loses a message without a record: what is skipped is a gap, and what is stored already is never read
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_pipeline.errors import OffsetConflictError, PipelineError
from analytics_pipeline.records import DERIVED
from analytics_pipeline.storage import pending_work
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.offsets import Gap, StoredOffset, read_offsets, record_gaps
from analytics_pipeline.storage.pending_work import Invalidation

SKIPPED = "skipped by hand: offsets seek"
RELEASED = "released"


class ActionRefusedError(PipelineError):
    """A change by hand that would break an invariant: says which, and what to do instead."""


@dataclass(frozen=True, slots=True)
class StoredGap:
    """One row of ``offset_gap``. ``to_offset`` is exclusive; None: the log ended somewhere unknown."""

    gap_id: int
    topic: str
    epoch: int
    partition: int
    from_offset: int
    to_offset: int | None
    reason: str
    recorded_at: datetime
    accepted_at: datetime | None
    accepted_by: str | None


def seek(conn: Connection, topic: str, partition: int, to_offset: int) -> StoredOffset:
    """Make ``to_offset`` the next one to read; returns where the partition stood before.

    Forward, the offsets passed over become a gap. Backward is only for what was passed over before: what is
    stored stays as it is.

    Raises:
        ActionRefusedError: the partition is unknown, or offsets from there on are stored already.
        OffsetConflictError: a drain moved the partition meanwhile.
    """
    row = read_offsets(conn, [topic]).get((topic, partition))
    if row is None:
        raise ActionRefusedError(
            f"{topic}[{partition}]: never drained; 'analytics-pipeline offsets show' lists what was"
        )
    if to_offset > row.next_offset:
        record_gaps(conn, [Gap(row.log, row.next_offset, to_offset, SKIPPED)])
    elif to_offset < row.next_offset:
        _refuse_stored(conn, row, to_offset)
        _reopen_gaps(conn, row, to_offset)
    with conn.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_offset SET next_offset = %s, leader_epoch = NULL, updated_at = now() "
            "WHERE log_id = %s AND next_offset = %s",
            (to_offset, row.log_id, row.next_offset),
        )
        if cursor.rowcount != 1:
            raise OffsetConflictError(
                f"{topic}[{partition}]: offset {row.next_offset} is no longer the next one, a drain moved it "
                "meanwhile; nothing was changed, try again"
            )
        cursor.execute(
            "UPDATE kafka_log SET begin_offset = least(begin_offset, %s) WHERE log_id = %s",
            (to_offset, row.log_id),
        )
    return row


def _refuse_stored(conn: Connection, row: StoredOffset, to_offset: int) -> None:
    where = 'topic = %s AND epoch = %s AND partition = %s AND "offset" >= %s'
    values = (row.log.topic, row.log.epoch, row.log.partition, to_offset)
    with conn.cursor() as cursor:
        cursor.execute(
            f'SELECT min("offset"), max("offset") FROM (SELECT "offset" FROM raw_events WHERE {where} '
            f"UNION ALL SELECT \"offset\" FROM dead_letters WHERE stage = 'raw_events' AND {where}) s",
            values + values,
        )
        first, last = cursor.fetchone()
    if first is not None:
        raise ActionRefusedError(
            f"{row.log.topic}[{row.log.partition}]: offsets {first} to {last} are stored already and would be "
            "stored twice; to read them again, materialize raw_events of their hours in the Dagster UI"
        )


def _reopen_gaps(conn: Connection, row: StoredOffset, to_offset: int) -> None:
    """What is about to be read again is no gap any more, or a shorter one."""
    where = "topic = %s AND epoch = %s AND partition = %s"
    values = (row.log.topic, row.log.epoch, row.log.partition)
    with conn.cursor() as cursor:
        cursor.execute(f"DELETE FROM offset_gap WHERE {where} AND from_offset >= %s", (*values, to_offset))
        cursor.execute(
            f"UPDATE offset_gap SET to_offset = %s WHERE {where} AND to_offset > %s",
            (to_offset, *values, to_offset),
        )


def read_gaps(conn: Connection, *, accepted_too: bool = False) -> list[StoredGap]:
    """Gaps that nobody accepted yet, or all of them, oldest first."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT gap_id, topic, epoch, partition, from_offset, to_offset, reason, recorded_at, accepted_at, "
            "accepted_by FROM offset_gap WHERE %s OR accepted_at IS NULL ORDER BY gap_id",
            (accepted_too,),
        )
        return [StoredGap(*row) for row in cursor.fetchall()]


def accept_gaps(conn: Connection, gap_ids: Sequence[int], by: str) -> list[int]:
    """Write down that a person knows of these gaps. Returns those that were open until now.

    Raises:
        ActionRefusedError: there is no such gap; names it.
    """
    with conn.cursor() as cursor:
        cursor.execute("SELECT gap_id FROM offset_gap WHERE gap_id = ANY(%s)", (list(gap_ids),))
        unknown = sorted(set(gap_ids) - {row[0] for row in cursor.fetchall()})
        if unknown:
            raise ActionRefusedError(
                f"no such gap: {', '.join(map(str, unknown))}; 'analytics-pipeline gaps list --all' shows every gap"
            )
        cursor.execute(
            "UPDATE offset_gap SET accepted_at = now(), accepted_by = %s "
            "WHERE gap_id = ANY(%s) AND accepted_at IS NULL RETURNING gap_id",
            (by, list(gap_ids)),
        )
        return sorted(row[0] for row in cursor.fetchall())


def release(conn: Connection, asset: str, hour: datetime, domain: str) -> None:
    """Let a quarantined domain partition through: it is evaluated again, its good rows are written, rows that fail
    stay out.

    Raises:
        ActionRefusedError: it is not in quarantine.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "UPDATE partition_state SET status = 'released', updated_at = now() "
            "WHERE asset = %s AND hour = %s AND status = 'quarantined' "
            "AND domain_id = (SELECT domain_id FROM domain_number WHERE domain = %s) RETURNING domain_id",
            (asset, hour, domain),
        )
        row = cursor.fetchone()
        if row is None or asset not in DERIVED:
            raise ActionRefusedError(
                f"not in quarantine: {asset}, {hour:%Y-%m-%dT%H:%MZ}, {domain}; "
                "'analytics-pipeline gates list' shows what is"
            )
    pending_work.add(conn, [Invalidation(asset=asset, domain_id=row[0], hour=hour, reason=RELEASED)])
