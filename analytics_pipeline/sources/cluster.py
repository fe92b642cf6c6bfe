"""The Kafka cluster: how to connect, which topics there are, single messages looked up. No reading along logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.slices import append, close

METADATA_TIMEOUT_S = 5.0
#: Bounds what librdkafka holds ahead of us.
QUEUED_KIB = 64 * 1024


class BrokerUnreachableError(PipelineError):
    """No broker answers. Nothing is lost: the offsets stay where they are."""


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as the broker describes it. ``topic_id`` tells a recreated topic from the one before.

    ``partitions`` are those with a leader; of the others nothing can be read or asked now.
    """

    topic: str
    topic_id: str | None
    partitions: tuple[int, ...]
    leaderless: tuple[int, ...] = ()


class KafkaCluster:
    """Answers questions about the cluster that the settings name. One per process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None

    def describe(self, topics: Sequence[str]) -> tuple[dict[str, TopicInfo], dict[str, str]]:
        """The topics that exist, by name; and why others may not be described.

        Raises:
            BrokerUnreachableError: names the brokers and the remedy.
        """
        found: dict[str, TopicInfo] = {}
        refused: dict[str, str] = {}
        for topic, future in self._describe(topics).items():
            try:
                found[topic] = _topic_info(topic, future.result(timeout=METADATA_TIMEOUT_S))
            except KafkaException as error:
                code = error.args[0].code()
                if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION):
                    refused[topic] = error.args[0].str()
                elif code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self.unreachable(str(error)) from error
            except TimeoutError as error:
                raise self.unreachable("no answer") from error
        return found, refused

    def _describe(self, topics: Sequence[str]) -> dict[str, Any]:
        if self._admin is None:
            self._admin = AdminClient(self._settings.kafka_config() | {"log_level": 0})
        return self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=METADATA_TIMEOUT_S)

    def first_that(self, log: LogPartition, low: int, high: int, differs: Callable[[MessageSlice], bool]) -> int:
        """The first offset of ``[low, high)`` whose message differs, where all later ones do too; else ``high``.

        ``differs`` gets slices of one message.

        Raises:
            BrokerUnreachableError: the partition does not answer.
        """
        consumer = Consumer(self.consumer_config())
        try:
            while low < high:
                middle = (low + high) // 2
                found = self._message_at(consumer, log, middle)
                if found is None or found.from_offset >= high or differs(found):
                    high = middle
                else:
                    low = found.next_offset
        finally:
            consumer.close()
        return high

    def _message_at(self, consumer: Consumer, log: LogPartition, offset: int) -> MessageSlice | None:
        """The first message from an offset on; None: there is none."""
        consumer.assign([TopicPartition(log.topic, log.partition, offset)])
        found = consumer.consume(1, METADATA_TIMEOUT_S)
        if not found:
            raise self.unreachable(f"{log}: nothing arrived for {METADATA_TIMEOUT_S:.0f} s")
        if found[0].error() is not None:
            return None
        at = int(found[0].offset() or 0)
        part = MessageSlice(log=log, from_offset=at, next_offset=at + 1)
        append(part, found, [found[0].value()])
        close(part)
        return part

    def consumer_config(self) -> dict[str, Any]:
        """Of a consumer that is assigned, never subscribed, and reads to the end."""
        return self._settings.kafka_config() | {
            "group.id": self._settings.consumer_group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "queued.max.messages.kbytes": QUEUED_KIB,
            "queued.min.messages": 200_000,
            # Checked by length when it arrives, so that one large message cannot stop its partition.
            "fetch.message.max.bytes": 32 * 1024 * 1024,
            "fetch.max.bytes": 64 * 1024 * 1024,
            "receive.message.max.bytes": 128 * 1024 * 1024,
            "log_level": 0,  # errors come back from calls, with a remedy
            "reconnect.backoff.ms": 200,
        }

    def unreachable(self, detail: str) -> BrokerUnreachableError:
        """The error to raise when nobody answers."""
        return BrokerUnreachableError(
            f"Kafka at {self._settings.kafka_brokers} does not answer ({detail}); "
            "check KAFKA_BROKERS and that the broker runs; reading continues where it stopped"
        )


def _topic_info(topic: str, described: Any) -> TopicInfo:
    led = {one.id: one.leader is not None and one.leader.id >= 0 for one in described.partitions}
    return TopicInfo(
        topic,
        str(described.topic_id or "") or None,
        tuple(sorted(number for number, has_leader in led.items() if has_leader)),
        tuple(sorted(number for number, has_leader in led.items() if not has_leader)),
    )
