"""Keeps the database's view of Kafka's logs: new partitions, new epochs, and gaps that retention tore.

Every step is written down before anything is read from it: never a silent reset. What is wrong with one partition
is told, and holds up no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Engine

from analytics_pipeline.messages import LogPartition, OffsetRange
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import BrokerUnreachableError, LogEnd, LogReader, Position, TopicInfo
from analytics_pipeline.storage import offsets
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.locks import lock_raw_commits
from analytics_pipeline.storage.offsets import FIRST_SEEN, Gap, NewLog, OffsetMove, StoredOffset

log = structlog.get_logger(__name__)

Stored = dict[tuple[str, int], StoredOffset]


@dataclass
class _Changes:
    """What Kafka has that the database does not know yet."""

    begun: list[NewLog] = field(default_factory=list)
    ended: dict[str, list[StoredOffset]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    topic_ids: list[tuple[int, str]] = field(default_factory=list)

    def write(self, conn: Connection) -> bool:
        """Returns whether partitions stand elsewhere now."""
        for reason, ended in self.ended.items():
            offsets.end_logs(conn, ended, reason)
        offsets.begin_logs(conn, self.begun)
        offsets.record_gaps(conn, self.gaps)
        offsets.fill_in_topic_ids(conn, self.topic_ids)
        return bool(self.begun or self.ended)


class OffsetTracker:
    """Holds the reader's assignment to what the database says, and the database to what Kafka has.

    Attributes:
        missing: topics that Kafka did not have when it was asked last.
        troubles: what kept single partitions from being read, by ``topic[partition]``.
    """

    def __init__(self, settings: Settings, engine: Engine, reader: LogReader) -> None:
        self._settings = settings
        self._engine = engine
        self._reader = reader
        self.missing: tuple[str, ...] = ()
        self.troubles: dict[str, str] = {}

    def prepare(self, topics: tuple[str, ...]) -> dict[LogPartition, StoredOffset]:
        """Record what is new, assign the reader, and return the logs that it reads from."""
        described = self._reader.describe(topics)
        self.troubles = {
            f"{topic}[{partition}]": "no broker leads this partition now"
            for topic, info in described.items()
            for partition in info.leaderless
        }
        self.missing = tuple(
            topic for topic in topics if topic not in described and topic not in self._reader.troubles
        )
        with connection(self._engine) as conn:
            stored = offsets.read_offsets(conn, topics)
            existed = offsets.remember_topics(conn, topics, described)
            if self._changes(described, stored, existed).write(conn):
                stored = offsets.read_offsets(conn, topics)
            conn.commit()
        alive = {
            row.log: row
            for (topic, partition), row in stored.items()
            if topic in described
            and partition in described[topic].partitions
            and not row.ended
            # Not begun anew, because its bounds are unknown now: its offsets are those of another log.
            and not _recreated(row, described[topic])
        }
        self._reader.assign({log: _position(row) for log, row in alive.items()})
        return alive

    def record_ends(self, ends: Mapping[LogPartition, LogEnd]) -> int:
        """Keep the ends of the logs for those who look at the lag; returns the lag in messages."""
        with connection(self._engine) as conn:
            lock_raw_commits(conn)
            offsets.record_high_offsets(conn, [(log, end.high_offset) for log, end in ends.items()])
            conn.commit()
        return sum(end.lag_messages for end in ends.values())

    # ------------------------------------------------------------------ what is new

    def _changes(
        self, described: Mapping[str, TopicInfo], stored: Stored, existed: Mapping[str, bool]
    ) -> _Changes:
        changes = _Changes()
        for topic, info in described.items():
            known = [row for row in stored.values() if row.log.topic == topic]
            first_time = not known and existed[topic]
            for partition in info.partitions:
                try:
                    self._compare(changes, info, partition, stored.get((topic, partition)), first_time)
                except BrokerUnreachableError as error:
                    self.troubles[f"{topic}[{partition}]"] = str(error)
            # A partition that a recreated topic has no more stays in the epoch in which it ended.
            there = {*info.partitions, *info.leaderless}
            gone = [row for row in known if row.log.partition not in there and not row.ended]
            if gone:
                changes.ended.setdefault("topic id changed", []).extend(
                    row for row in gone if _recreated(row, info)
                )
        changes.ended = {reason: rows for reason, rows in changes.ended.items() if rows}
        return changes

    def _compare(
        self, changes: _Changes, info: TopicInfo, partition: int, row: StoredOffset | None, first_time: bool
    ) -> None:
        if row is None:
            self._begin_first(changes, info, partition, first_time)
        elif row.ended or _recreated(row, info):
            why = "topic id changed"
            low, _ = self._reader.bounds(info.topic, partition)
            new = LogPartition(info.topic, row.log.epoch + 1, partition)
            log.warning("a new log begins", log=str(new), reason=why)
            changes.begun.append(NewLog(new, low, info.topic_id, why))
            if not row.ended:
                changes.ended.setdefault(why, []).append(row)
        elif info.topic_id and not row.kafka_topic_id:
            changes.topic_ids.append((row.log_id, info.topic_id))

    def _begin_first(self, changes: _Changes, info: TopicInfo, partition: int, first_time: bool) -> None:
        """``FIRST_OFFSET=latest`` is about what is there when the settings first name the topic; what appears
        later is read from its beginning."""
        low, high = self._reader.bounds(info.topic, partition)
        new = LogPartition(info.topic, 1, partition)
        latest = self._settings.first_offset == "latest" and first_time
        if latest and low < high:
            changes.gaps.append(Gap(new, low, high, "skipped: FIRST_OFFSET is latest"))
        changes.begun.append(NewLog(new, high if latest else low, info.topic_id, FIRST_SEEN))

    # ------------------------------------------------------------------ what moved under the reader

    def resolve(self, moved: Mapping[LogPartition, str]) -> list[str]:
        """For logs that do not hold the offset to read next: retention passed it (a gap), or they were cut short
        (an epoch of this partition). Call it when no batch is being written.

        Returns:
            What was found, a line per log. One that cannot be asked now is tried again by the next tick.
        """
        said = []
        for where, error in moved.items():
            try:
                said.append(self._resolve(where, error))
            except BrokerUnreachableError as unreachable:
                said.append(f"{where}: {unreachable}")
        return said

    def _resolve(self, where: LogPartition, error: str) -> str:
        low, high = self._reader.bounds(where.topic, where.partition)
        with connection(self._engine) as conn:
            lock_raw_commits(conn)
            row = offsets.read_offsets(conn, [where.topic])[where.topic, where.partition]
            if row.log != where:
                return f"{where}: another drain began epoch {row.log.epoch}"
            if row.next_offset < low:
                said = f"retention passed offsets {row.next_offset} to {low - 1}, which were not read yet"
                offsets.record_gaps(conn, [Gap(where, row.next_offset, low, "expired before it was read")])
                offsets.move(conn, [OffsetMove(range=OffsetRange(where, row.next_offset, low), log_id=row.log_id)])
            elif row.next_offset > high or "truncation" in error:
                said = self._cut_short(conn, row, low, high)
            else:
                said = error
            conn.commit()
        log.warning("a log does not hold the offset to read next", log=str(where), reason=said)
        return f"{where}: {said}"

    def _cut_short(self, conn: Connection, row: StoredOffset, low: int, high: int) -> str:
        """The epoch ends, and the next one of this partition begins where the log diverges from what was read.

        Found by comparing messages with what is stored: the log may have grown again since it was cut short, and
        may even be another one, of a topic that was recreated, where brokers have no topic ids to tell."""
        where = row.log
        end = min(high, row.next_offset)
        begin = self._reader.cluster.first_that(where, low, end, lambda message: not offsets.holds(conn, message))
        reason = f"log diverges at {begin} from what was read, before offset {row.next_offset}"
        new = LogPartition(where.topic, where.epoch + 1, where.partition)
        offsets.end_logs(conn, [row], reason)
        offsets.begin_logs(conn, [NewLog(new, begin, row.kafka_topic_id, reason)])
        return f"{reason}; epoch {new.epoch} of this partition begins at {begin}"


def _position(row: StoredOffset) -> Position:
    """Leader epochs begin anew with a recreated topic, which only its id tells from one that was cut short; a
    broker that has not reached ours yet would not answer at all."""
    return Position(row.next_offset, row.leader_epoch if row.kafka_topic_id else None)


def _recreated(row: StoredOffset, info: TopicInfo) -> bool:
    return bool(row.kafka_topic_id and info.topic_id and row.kafka_topic_id != info.topic_id)


def told(troubles: Mapping[str, str]) -> Sequence[str]:
    """Troubles as lines."""
    return [f"{where}: {what}" for where, what in sorted(troubles.items())]
