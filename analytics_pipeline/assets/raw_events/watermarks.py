"""How far each topic is in event time, as its batches come. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from analytics_pipeline.messages import LogPartition
from analytics_pipeline.records import to_us
from analytics_pipeline.storage.offsets import StoredOffset


class Watermarks:
    """Per topic, the least watermark over the partitions that are not idle; what the view ``topic_watermark``
    says, one batch ahead of it."""

    def __init__(self, logs: Mapping[LogPartition, StoredOffset], idle_partition_s: int) -> None:
        self._idle_us = idle_partition_s * 1_000_000
        #: By topic and partition: the newest Kafka time, and the watermark.
        self._known: dict[str, dict[int, tuple[int, int]]] = {}
        for log, row in logs.items():
            if row.watermark_time and row.last_kafka_time:
                times = (to_us(row.last_kafka_time), to_us(row.watermark_time))
                self._known.setdefault(log.topic, {})[log.partition] = times

    def by_topic(self, topics: Iterable[str]) -> dict[str, int | None]:
        """The watermarks of some topics in microseconds; None for those without a message."""
        return {topic: self._of(self._known.get(topic, {}).values()) for topic in topics}

    def _of(self, known: Iterable[tuple[int, int]]) -> int | None:
        times = list(known)
        if not times:
            return None
        active_since = max(kafka for kafka, _ in times) - self._idle_us
        return min(watermark for kafka, watermark in times if kafka >= active_since)

    def advance(self, steps: Iterable[tuple[LogPartition, int | None, int | None]]) -> None:
        """After a batch: each log's watermark and newest Kafka time in it."""
        for log, watermark_us, kafka_us in steps:
            if watermark_us is None or kafka_us is None:
                continue
            partitions = self._known.setdefault(log.topic, {})
            kafka, watermark = partitions.get(log.partition, (kafka_us, watermark_us))
            partitions[log.partition] = (max(kafka, kafka_us), max(watermark, watermark_us))
