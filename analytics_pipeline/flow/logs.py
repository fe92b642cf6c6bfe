"""Keeps the database's view of Kafka's logs: new partitions, new epochs, and gaps that retention tore.

Every step is written down before anything is read from it: never a silent reset.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from sqlalchemy import Engine

from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.kafka import LogEnd, LogReader, OffsetOutOfRangeError, Position, TopicInfo
from analytics_pipeline.storage import offsets
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.offsets import Gap, StoredOffset

log = structlog.get_logger(__name__)

Stored = dict[tuple[str, int], StoredOffset]


class LogKeeper:
    """Holds the reader's assignment to what the database says, and the database to what Kafka has."""

    def __init__(self, settings: Settings, engine: Engine, reader: LogReader) -> None:
        self._settings = settings
        self._engine = engine
        self._reader = reader
        #: Topics that Kafka did not have when it was asked last.
        self.missing: tuple[str, ...] = ()

    def prepare(self, topics: tuple[str, ...]) -> Stored:
        """Record what is new, assign the reader, and return the offsets that it reads from."""
        described = self._reader.describe(topics)
        self.missing = tuple(topic for topic in topics if topic not in described)
        with connection(self._engine) as conn:
            stored = offsets.read_offsets(conn, topics)
            if self._record_new(conn, described, stored):
                stored = offsets.read_offsets(conn, topics)
            conn.commit()
        alive = {key: row for key, row in stored.items() if key[1] in _partitions(described, key[0])}
        self._reader.assign({key: Position(row.epoch, row.next_offset) for key, row in alive.items()})
        return stored

    def record_ends(self, ends: Mapping[tuple[str, int], LogEnd]) -> int:
        """Keep the ends of the logs for those who look at the lag; returns the lag in messages."""
        with connection(self._engine) as conn:
            offsets.record_high_offsets(conn, [(*key, end.epoch, end.high_offset) for key, end in ends.items()])
            conn.commit()
        return sum(end.lag_messages for end in ends.values())

    def _record_new(self, conn: Connection, described: dict[str, TopicInfo], stored: Stored) -> bool:
        changed = False
        for topic, info in described.items():
            known = [row for row in stored.values() if row.topic == topic]
            # A partition that the topic has no more stays in the epoch in which it ended.
            newest = max(known, key=lambda row: row.epoch, default=None)
            if newest and _recreated(newest, info):
                self._begin_epoch(conn, info, known, "topic id changed")
                changed = True
                continue
            if newest is None:
                offsets.begin_log(conn, topic, 1, info.topic_id, "first seen")
            epoch = newest.epoch if newest else 1
            for partition in info.partitions:
                row = stored.get((topic, partition))
                if row is None or row.epoch < epoch:
                    offsets.place(conn, topic, partition, epoch, self._first(topic, partition))
                    changed = True
        return changed

    def _begin_epoch(self, conn: Connection, info: TopicInfo, known: list[StoredOffset], why: str) -> None:
        epoch = max(row.epoch for row in known) + 1
        log.warning("a new log begins", topic=info.topic, epoch=epoch, reason=why)
        offsets.begin_log(conn, info.topic, epoch, info.topic_id, why)
        offsets.record_gaps(
            conn, [Gap(r.topic, r.epoch, r.partition, r.next_offset, None, f"log ended: {why}") for r in known]
        )
        # An ended partition that the new log does not have stays in its old epoch; its gap says so.
        for partition in info.partitions:
            low, _ = self._reader.bounds(info.topic, partition)
            offsets.place(conn, info.topic, partition, epoch, low)

    def _first(self, topic: str, partition: int) -> int:
        low, high = self._reader.bounds(topic, partition)
        return low if self._settings.first_offset == "earliest" else high

    def resolve(self, error: OffsetOutOfRangeError) -> None:
        """The log does not hold the next offset: retention passed it (a gap), or it restarted (an epoch)."""
        low, high = self._reader.bounds(error.topic, error.partition)
        with connection(self._engine) as conn:
            stored = offsets.read_offsets(conn, [error.topic])
            row = stored[error.topic, error.partition]
            if row.next_offset < low:
                log.warning("retention passed unread messages", topic=row.topic, partition=row.partition,
                            from_offset=row.next_offset, to_offset=low)  # fmt: skip
                gap = Gap(row.topic, row.epoch, row.partition, row.next_offset, low, "expired before it was read")
                offsets.record_gaps(conn, [gap])
                offsets.skip(conn, row, low)
            elif row.next_offset > high:
                info = self._reader.describe([error.topic])[error.topic]
                known = [one for one in stored.values() if one.topic == error.topic]
                self._begin_epoch(conn, info, known, f"log ends at {high}, before offset {row.next_offset}")
            conn.commit()


def _partitions(described: dict[str, TopicInfo], topic: str) -> tuple[int, ...]:
    info = described.get(topic)
    return info.partitions if info else ()


def _recreated(row: StoredOffset, info: TopicInfo) -> bool:
    return bool(row.kafka_topic_id and info.topic_id and row.kafka_topic_id != info.topic_id)
