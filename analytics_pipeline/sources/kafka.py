"""Reading Kafka logs from exactly where the database says: assigned, never subscribed; fetched to their end.

The end of a log is where librdkafka reports ``PARTITION_EOF``, not what ListOffsets answers: a broker may
answer that late. The assignment is kept between reads, so that librdkafka fetches ahead meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import methodcaller
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from analytics_pipeline.errors import PipelineError
from analytics_pipeline.settings import Settings
from analytics_pipeline.stages.raw import MessageSlice

TopicPartitionKey = tuple[str, int]

#: One call to librdkafka: enough messages to be quick, and so short a wait that memory stays bounded.
CHUNK_MESSAGES = 10_000
CHUNK_WAIT_S = 0.1
#: Without a message, an end of log or an error for this long, the broker counts as out of reach.
SILENCE_S = 3.0
METADATA_TIMEOUT_S = 5.0
#: Producers may write any timestamp. No calendar has those beyond, and one of them would stop its partition.
KAFKA_TIMES_MS = (0, 253_402_214_400_000)  # 1970-01-01 to 9999-12-31
#: Bounds what librdkafka holds ahead of us.
QUEUED_KIB = 64 * 1024

# Called in C: every message passes here.
_TOPIC, _PARTITION, _ERROR, _OFFSET = map(methodcaller, ("topic", "partition", "error", "offset"))
_VALUE, _KEY, _HEADERS, _TIMESTAMP = map(methodcaller, ("value", "key", "headers", "timestamp"))


class BrokerUnreachableError(PipelineError):
    """No broker answers. Nothing is lost: the offsets stay where they are."""


class OffsetOutOfRangeError(PipelineError):
    """The log no longer holds, or does not yet hold, the offset that the database wants to read next."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        super().__init__(f"{topic}[{partition}]: offset {offset} is not in the log")
        self.topic, self.partition, self.offset = topic, partition, offset


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as the broker describes it. ``topic_id`` tells a recreated topic from the one before."""

    topic: str
    topic_id: str | None
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """Where to read a partition from, and in which epoch of its log."""

    epoch: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log of a partition ends (``high_offset``), and where we are in it."""

    epoch: int
    next_offset: int
    high_offset: int

    @property
    def lag_messages(self) -> int:
        return self.high_offset - self.next_offset


class LogReader:
    """Reads the logs of some topics. Not thread-safe; one per process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self._positions: dict[TopicPartitionKey, Position] = {}
        self._described: dict[str, TopicInfo | None] = {}
        self._at_end: set[TopicPartitionKey] = set()
        self._reached: set[TopicPartitionKey] = set()
        self._queue_empty = False

    # ------------------------------------------------------------------ what there is

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """The topics that exist, by name.

        Raises:
            BrokerUnreachableError: names the brokers and the remedy.
        """
        found: dict[str, TopicInfo] = {}
        for topic, future in self._describe(topics).items():
            try:
                described = future.result(timeout=METADATA_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise self._unreachable(str(error)) from error
            except TimeoutError as error:
                raise self._unreachable("no answer") from error
            partitions = tuple(sorted(partition.id for partition in described.partitions))
            found[topic] = TopicInfo(topic, str(described.topic_id or "") or None, partitions)
        self._start_afresh_if_changed({topic: found.get(topic) for topic in topics})
        return found

    def _start_afresh_if_changed(self, now: Mapping[str, TopicInfo | None]) -> None:
        """A client of librdkafka knows added partitions minutes later, and of a topic that was made again it goes
        on asking for the old one (github.com/confluentinc/librdkafka/issues/4898). A new client knows at once."""
        if any(self._described.get(topic, info) != info for topic, info in now.items()):
            self.close()
        self._described |= now

    def _describe(self, topics: Sequence[str]) -> dict[str, Any]:
        if self._admin is None:
            self._admin = AdminClient(self._settings.kafka_config() | {"log_level": 0})
        return self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=METADATA_TIMEOUT_S)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset held and the end, as the broker answers; the end may fall short, the start does not."""
        try:
            low, high = self._client().get_watermark_offsets(
                TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S
            )
        except KafkaException as error:
            raise self._unreachable(str(error)) from error
        return int(low), int(high)

    def ends(self) -> dict[TopicPartitionKey, LogEnd]:
        """How far we are in each assigned log, and its end, as the last fetches told."""
        ends = {}
        for key, position in self._positions.items():
            high = position.next_offset
            if key not in self._at_end:
                _, cached = self._client().get_watermark_offsets(TopicPartition(*key), cached=True)
                high = max(high, int(cached))
            ends[key] = LogEnd(position.epoch, position.next_offset, high)
        return ends

    def ask_ends(self) -> dict[TopicPartitionKey, LogEnd]:
        """The same, asked of the broker: for when nothing is fetched.

        Raises:
            BrokerUnreachableError: no answer.
        """
        return {
            key: LogEnd(at.epoch, at.next_offset, max(at.next_offset, self.bounds(*key)[1]))
            for key, at in self._positions.items()
        }

    # ------------------------------------------------------------------ reading

    def assign(self, positions: Mapping[TopicPartitionKey, Position]) -> None:
        """Read on from these positions. Keeps what was fetched ahead where nothing changed."""
        self._reached = set()
        if dict(positions) == self._positions:
            return
        self._positions = dict(positions)
        self._at_end = set()
        self._client().assign(
            [TopicPartition(topic, part, at.next_offset) for (topic, part), at in positions.items()]
        )

    def forget(self) -> None:
        """The positions are not to be trusted, as after a rollback: the next ``assign`` starts afresh."""
        self._positions = {}
        self._at_end, self._reached = set(), set()

    @property
    def at_end(self) -> bool:
        """Whether every assigned log was read to an end since ``assign``.

        Not to all ends at one moment: where messages keep coming, that moment never is, and a reader would
        chase the tail until its time is over.
        """
        return self._queue_empty and len(self._at_end | self._reached) == len(self._positions)

    def read(self, max_messages: int, max_bytes: int, deadline: float) -> list[MessageSlice]:
        """Messages up to the bounds, the end of all logs, or the deadline (``time.monotonic``).

        Raises:
            BrokerUnreachableError: neither messages nor ends of logs arrive.
            OffsetOutOfRangeError: names topic, partition and offset.
        """
        slices: dict[TopicPartitionKey, MessageSlice] = {}
        messages = size = 0
        silent_since = time.monotonic()
        while messages < max_messages and size < max_bytes:
            asked = min(CHUNK_MESSAGES, max_messages - messages)
            chunk = self._client().consume(asked, CHUNK_WAIT_S)
            # librdkafka fetches on between ticks: behind an end that it queued then stand messages that came
            # since. Only what comes short says that nothing more is queued.
            self._queue_empty = len(chunk) < asked
            taken, taken_bytes = self._take(chunk, slices)
            messages, size = messages + taken, size + taken_bytes
            now = time.monotonic()
            if chunk:
                silent_since = now
            if self.at_end or now >= deadline:
                break
            if not chunk and now - silent_since > SILENCE_S:
                if not messages:
                    raise self._unreachable(f"nothing arrived for {SILENCE_S:.0f} s")
                break
        self._advance(slices)
        return [part for part in slices.values() if part.next_offset > part.from_offset]

    def _take(self, chunk: Sequence[Any], slices: dict[TopicPartitionKey, MessageSlice]) -> tuple[int, int]:
        """Append a chunk, run by run: messages of one partition mostly follow each other."""
        taken = size = start = 0
        sources = zip(map(_TOPIC, chunk), map(_PARTITION, chunk), map(_ERROR, chunk), strict=True)
        for (topic, partition, is_message), run in groupby((t, p, e is None) for t, p, e in sources):
            end = start + len(list(run))
            messages, start = chunk[start:end], end
            key = (topic, partition)
            if not is_message:
                for message in messages:
                    self._take_error(message, message.error(), slices)
                continue
            part = self._slice(key, slices)
            values = list(map(_VALUE, messages))
            part.offsets.extend(map(_OFFSET, messages))
            part.kafka_times_ms.extend([kind_and_ms[1] for kind_and_ms in map(_TIMESTAMP, messages)])
            part.values.extend(values)
            part.keys.extend(map(_KEY, messages))
            part.headers.extend(map(_HEADERS, messages))
            self._at_end.discard(key)
            taken += len(messages)
            size += sum([len(value) for value in values if value is not None])
        return taken, size

    def _slice(self, key: TopicPartitionKey, slices: dict[TopicPartitionKey, MessageSlice]) -> MessageSlice:
        known = slices.get(key)
        if known is not None:
            return known
        position = self._positions[key]
        part = MessageSlice(key[0], position.epoch, key[1], position.next_offset, position.next_offset)
        slices[key] = part
        return part

    def _take_error(self, message: Any, error: KafkaError, slices: dict[TopicPartitionKey, MessageSlice]) -> None:
        code = error.code()
        key = (message.topic(), message.partition())
        if code == KafkaError._PARTITION_EOF:
            part = self._slice(key, slices)
            part.next_offset = max(part.next_offset, message.offset())
            self._at_end.add(key)
            self._reached.add(key)
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise OffsetOutOfRangeError(*key, self._positions[key].next_offset)
        elif not error.retriable() and error.fatal():
            raise self._unreachable(str(error))

    def _advance(self, slices: Mapping[TopicPartitionKey, MessageSlice]) -> None:
        """Close the slices: their ends, the holes inside them, and our own positions."""
        for key, part in slices.items():
            if part.offsets:
                part.next_offset = max(part.next_offset, part.offsets[-1] + 1)
            part.gaps = _gaps(part)
            part.kafka_times_ms = _representable(part.kafka_times_ms)
            self._positions[key] = Position(part.epoch, part.next_offset)

    # ------------------------------------------------------------------ the rest

    def commit(self) -> None:
        """Tell Kafka how far we are, for lag tools only; what counts is in the database."""
        offsets = [TopicPartition(*key, at.next_offset) for key, at in self._positions.items()]
        if offsets:
            self._client().commit(offsets=offsets, asynchronous=True)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self.forget()

    def _client(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                self._settings.kafka_config()
                | {
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
            )
        return self._consumer

    def _unreachable(self, detail: str) -> BrokerUnreachableError:
        return BrokerUnreachableError(
            f"Kafka at {self._settings.kafka_brokers} does not answer ({detail}); "
            "check KAFKA_BROKERS and that the broker runs; reading goes on where it stopped"
        )


def _representable(times_ms: list[int]) -> list[int]:
    """The times, or where one is outside of `KAFKA_TIMES_MS` (it was unknown, or nonsense), the nearest."""
    first, last = KAFKA_TIMES_MS
    if not times_ms or (min(times_ms) >= first and max(times_ms) <= last):
        return times_ms
    return [min(max(time_ms, first), last) for time_ms in times_ms]


def _gaps(part: MessageSlice) -> list[tuple[int, int]]:
    """Half-open ranges of offsets between ``from_offset`` and ``next_offset`` without a message."""
    gaps: list[tuple[int, int]] = []
    expected = part.from_offset
    offsets = part.offsets
    if offsets and offsets[0] == expected and offsets[-1] - expected + 1 == len(offsets):
        expected = offsets[-1] + 1  # contiguous, as nearly always
    else:
        for offset in offsets:
            if offset > expected:
                gaps.append((expected, offset))
            expected = offset + 1
    if part.next_offset > expected:
        gaps.append((expected, part.next_offset))
    return gaps
