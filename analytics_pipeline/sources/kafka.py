"""Reading Kafka logs from exactly where the database says: assigned, never subscribed; fetched to their end.

The end of a log is where librdkafka reports ``PARTITION_EOF``, or where the last fetch said that it is; not what
ListOffsets answers: a broker may answer that late. The assignment is kept between reads, so that librdkafka fetches
ahead meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import methodcaller
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.settings import Settings
from analytics_pipeline.sources.cluster import METADATA_TIMEOUT_S, BrokerUnreachableError, KafkaCluster, TopicInfo
from analytics_pipeline.sources.slices import append, close

__all__ = ["BrokerUnreachableError", "LogEnd", "LogReader", "Position", "TopicInfo"]

log = structlog.get_logger(__name__)

TopicPartitionKey = tuple[str, int]

#: One call to librdkafka: enough messages to be quick, and so short a wait that memory stays bounded.
CHUNK_MESSAGES = 10_000
CHUNK_WAIT_S = 0.1
#: What was collected for so long is handed over, though more keeps coming: it is to be written within a second.
COLLECT_S = 0.5
#: Without a message, an end of log or an error for this long, the broker counts as out of reach.
SILENCE_S = 3.0
#: How long a consumer may take to close before it is left behind.
CLOSE_TIMEOUT_S = 10.0
# Called in C: every message passes here.
_TOPIC, _PARTITION, _ERROR, _VALUE = map(methodcaller, ("topic", "partition", "error", "value"))

#: The log does not hold the offset that was asked for, or no longer the one that was read before it.
_MOVED = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION)


@dataclass(frozen=True, slots=True)
class Position:
    """Where to read a log from. With the leader epoch of the message before, a broker that supports it tells
    when that message is no longer in the log (KIP-320)."""

    next_offset: int
    leader_epoch: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where a log ends (``high_offset``), and where we are in it."""

    next_offset: int
    high_offset: int

    @property
    def lag_messages(self) -> int:
        return self.high_offset - self.next_offset


class LogReader:
    """Reads the logs of some partitions. Not thread-safe; one per process.

    Attributes:
        moved: logs that do not hold the offset to read next, with what the client said. They are set aside
            until the next ``assign``; the others go on.
        troubles: what else is wrong with single topics or partitions, since ``describe``.
        cluster: where the logs are.
    """

    def __init__(self, settings: Settings) -> None:
        self.cluster = KafkaCluster(settings)
        self._consumer: Consumer | None = None
        self._positions: dict[TopicPartitionKey, Position] = {}
        self._logs: dict[TopicPartitionKey, LogPartition] = {}
        self._described: dict[str, TopicInfo | None] = {}
        self._at_end: set[TopicPartitionKey] = set()
        self._reached: set[TopicPartitionKey] = set()
        self._aside: set[TopicPartitionKey] = set()
        self._silent: set[TopicPartitionKey] = set()
        self._doubted: dict[TopicPartitionKey, tuple[int, int] | None] = {}
        self._in_doubt = False
        self._queue_empty = False
        self.moved: dict[LogPartition, str] = {}
        self.troubles: dict[str, str] = {}

    # ------------------------------------------------------------------ what there is

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """The topics that exist, by name. One that may not be described is left out and is in `troubles`.

        Raises:
            BrokerUnreachableError: names the brokers and the remedy.
        """
        found, self.troubles = self.cluster.describe(topics)
        self._start_afresh_if_changed({topic: found.get(topic) for topic in topics})
        return found

    def _start_afresh_if_changed(self, now: Mapping[str, TopicInfo | None]) -> None:
        """A client of librdkafka knows added partitions minutes later, and of a topic that was made again it goes
        on asking for the old one (github.com/confluentinc/librdkafka/issues/4898). A new client knows at once."""
        if any(_differs(self._described.get(topic, info), info) for topic, info in now.items()):
            self.close()
        self._described |= now

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset held and the end, as the broker answers; the end may fall short, the start does not.

        Raises:
            BrokerUnreachableError: the leader of the partition does not answer.
        """
        try:
            low, high = self._client().get_watermark_offsets(
                TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S
            )
        except KafkaException as error:
            raise self.cluster.unreachable(f"{topic}[{partition}]: {error}") from error
        return int(low), int(high)

    def ends(self) -> dict[LogPartition, LogEnd]:
        """How far we are in each assigned log, and its end, as the last fetches told. What a transaction that is
        still open holds back lies between the two."""
        ends = {}
        for key, position in self._positions.items():
            _, cached = self._client().get_watermark_offsets(TopicPartition(*key), cached=True)
            high = max(position.next_offset, int(cached))
            ends[self._logs[key]] = LogEnd(position.next_offset, high)
        return ends

    def ask_ends(self) -> dict[LogPartition, LogEnd]:
        """The same, asked of the broker: for when nothing is fetched. A partition that does not answer is left
        out and is in `troubles`.

        Raises:
            BrokerUnreachableError: none answers.
        """
        ends = {}
        for key, at in self._positions.items():
            try:
                ends[self._logs[key]] = LogEnd(at.next_offset, max(at.next_offset, self.bounds(*key)[1]))
            except BrokerUnreachableError as error:
                self._note(key, str(error))
                if not ends:
                    raise
        return ends

    # ------------------------------------------------------------------ reading

    def assign(self, positions: Mapping[LogPartition, Position]) -> None:
        """Read on from these positions. Keeps what was fetched ahead where nothing changed."""
        self._reached, self.moved = set(), {}
        wanted = {(log.topic, log.partition): at for log, at in positions.items()}
        fresh = not self._positions
        self._logs = {(log.topic, log.partition): log for log in positions}
        gone = {key for key, at in self._positions.items() if wanted.get(key) != at} | self._aside | self._ahead()
        begun = [key for key in wanted if key in gone or key not in self._positions]
        assigned = [TopicPartition(*key) for key in gone if key not in self._aside]
        self._positions, self._aside = wanted, set()
        self._at_end -= gone
        if self._in_doubt:
            self._doubted, self._in_doubt = dict.fromkeys(wanted), False
        if fresh:
            self._client().assign([_place(key, at) for key, at in wanted.items()])
            return
        if assigned:
            self._client().incremental_unassign(assigned)
        if begun:
            self._client().incremental_assign([_place(key, wanted[key]) for key in begun])

    def _ahead(self) -> set[TopicPartitionKey]:
        """Partitions of which the client has handed out more than we know of: never, unless there is a bug."""
        held = [TopicPartition(*key) for key in self._positions if key not in self._aside]
        where = self._client().position(held) if held else ()
        return {
            (one.topic, one.partition)
            for one in where
            if one.offset > self._positions[one.topic, one.partition].next_offset
        }

    def set_aside(self, logs: Mapping[LogPartition, int]) -> None:
        """Read these no further, until the next ``assign``; they stand at the given offsets again."""
        for log, next_offset in logs.items():
            self._positions[log.topic, log.partition] = Position(next_offset)
            self._set_aside((log.topic, log.partition))

    def _set_aside(self, key: TopicPartitionKey) -> None:
        if key not in self._aside:
            self._aside.add(key)
            self._client().incremental_unassign([TopicPartition(*key)])

    def forget(self) -> None:
        """The positions are not to be trusted, as after a rollback: the next ``assign`` starts afresh."""
        self._positions, self._logs = {}, {}
        self._at_end, self._reached, self._aside, self._silent = set(), set(), set(), set()
        self._in_doubt = True

    @property
    def at_end(self) -> bool:
        """Whether every assigned log was read to an end since ``assign``.

        Not to all ends at one moment: where messages keep coming, that moment never is, and a reader would
        chase the tail until its time is over. Logs that are set aside, or were silent lately, do not count.
        """
        done = self._at_end | self._reached | self._aside | self._silent
        return self._queue_empty and len(done) >= len(self._positions)

    def ended(self, log: LogPartition) -> bool:
        """Whether the broker said that the log ends where we are; not whether something else kept it from us."""
        return (log.topic, log.partition) in self._at_end

    def read(self, max_messages: int, max_bytes: int, deadline: float) -> list[MessageSlice]:
        """Messages up to the bounds, those of ``COLLECT_S``, the end of all logs, or the deadline (``time.monotonic``).

        Whatever it raises, the positions are forgotten: what was taken by then is read again.

        Raises:
            BrokerUnreachableError: neither messages nor ends of logs arrive.
        """
        try:
            slices = self._collect(max_messages, max_bytes, deadline)
            self._advance(slices)
        except BaseException:
            self.forget()
            raise
        return [part for part in slices.values() if part.next_offset > part.from_offset]

    def _collect(
        self, max_messages: int, max_bytes: int, deadline: float
    ) -> dict[TopicPartitionKey, MessageSlice]:
        slices: dict[TopicPartitionKey, MessageSlice] = {}
        messages = size = 0
        began = silent_since = time.monotonic()
        while messages < max_messages and size < max_bytes:
            asked = min(CHUNK_MESSAGES, max_messages - messages)
            chunk = self._client().consume(asked, CHUNK_WAIT_S)
            # librdkafka fetches on between ticks: behind an end that it queued then stand messages that came
            # since. Only what comes short says that nothing more is queued.
            self._queue_empty = len(chunk) < asked
            taken, taken_bytes = self._take(chunk, slices)
            messages, size = messages + taken, size + taken_bytes
            self._see_ends(slices)
            now = time.monotonic()
            if chunk:
                silent_since = now
            if self.at_end or now >= deadline or (messages and now - began >= COLLECT_S):
                break
            if not chunk and now - silent_since > SILENCE_S:
                self._accept_silence(messages)
                break
        return slices

    def _see_ends(self, slices: Mapping[TopicPartitionKey, MessageSlice]) -> None:
        """Logs that were read to where the last fetch said that they end. ``PARTITION_EOF`` comes with a fetch that
        finds nothing: where messages come faster than the broker answers, it does not come for seconds."""
        if not self._queue_empty:
            return
        for key, part in slices.items():
            if part.offsets and key not in self._reached and key not in self._aside:
                _, cached = self._client().get_watermark_offsets(TopicPartition(*key), cached=True)
                if 0 < cached <= part.offsets[-1] + 1:
                    self._reached.add(key)

    def _accept_silence(self, messages: int) -> None:
        """Some partitions answer and others do not: those are not waited for until they do."""
        if not messages and not self._at_end and not self._reached:
            raise self.cluster.unreachable(f"nothing arrived for {SILENCE_S:.0f} s")
        self._silent = self._positions.keys() - self._at_end - self._reached - self._aside
        if not messages:
            for key in self._silent:
                self._note(key, f"nothing arrived for {SILENCE_S:.0f} s")

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
            if key in self._aside:
                continue  # queued before it was set aside
            values = list(map(_VALUE, messages))
            append(self._slice(key, slices), messages, values)
            self._at_end.discard(key)
            self._silent.discard(key)
            taken += len(messages)
            size += sum([len(value) for value in values if value is not None])
        return taken, size

    def _slice(self, key: TopicPartitionKey, slices: dict[TopicPartitionKey, MessageSlice]) -> MessageSlice:
        known = slices.get(key)
        if known is not None:
            return known
        at = self._positions[key]
        part = MessageSlice(
            log=self._logs[key], from_offset=at.next_offset, next_offset=at.next_offset, leader_epoch=at.leader_epoch
        )
        slices[key] = part
        return part

    def _take_error(self, message: Any, error: KafkaError, slices: dict[TopicPartitionKey, MessageSlice]) -> None:
        code = error.code()
        key = (message.topic(), message.partition())
        if key in self._aside:
            return
        if key not in self._positions:
            if error.fatal():
                raise self.cluster.unreachable(str(error))
            return  # of the client as a whole: it tries again automatically, and silence says when that is in vain
        self._silent.discard(key)
        self._reached.add(key)
        if code == KafkaError._PARTITION_EOF:
            part = self._slice(key, slices)
            part.next_offset = max(part.next_offset, message.offset())
            self._at_end.add(key)
        elif code in _MOVED:
            self.moved[self._logs[key]] = error.str()
            self._set_aside(key)
        else:
            self._note(key, error.str())

    def _note(self, key: TopicPartitionKey, what: str) -> None:
        self.troubles[f"{key[0]}[{key[1]}]"] = what

    def _advance(self, slices: dict[TopicPartitionKey, MessageSlice]) -> None:
        """Close the slices: their ends, the holes inside them, and our own positions."""
        for key, part in list(slices.items()):
            close(part)
            if key in self._doubted and self._reads_again(key, part):
                del slices[key]
                continue
            self._positions[key] = Position(part.next_offset, part.leader_epoch)

    def _reads_again(self, key: TopicPartitionKey, part: MessageSlice) -> bool:
        """After an error, a gap right at the beginning is believed only when it is seen a second time."""
        leading = next((gap for gap in part.gaps if gap[0] == part.from_offset), None)
        seen = self._doubted[key]
        if leading is None or (seen is not None and seen[0] == leading[0]) or key in self._aside:
            del self._doubted[key]
            return False
        self._doubted[key] = leading
        self._at_end.discard(key)
        self._reached.discard(key)
        self._client().seek(TopicPartition(*key, part.from_offset))
        return True

    # ------------------------------------------------------------------ the rest

    def commit(self) -> None:
        """Tell Kafka how far we are, for lag tools only; what counts is in the database."""
        offsets = [TopicPartition(*key, at.next_offset) for key, at in self._positions.items()]
        try:
            if offsets:
                self._client().commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self.troubles["group offsets"] = str(error)

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        self.forget()
        if consumer is not None:
            _close(consumer)

    def _client(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(self.cluster.consumer_config())
        return self._consumer


def _differs(before: TopicInfo | None, now: TopicInfo | None) -> bool:
    """Whether a client would have to learn of it: that a leader is away for a while it learns automatically."""
    if before is None or now is None:
        return before is not now
    partitions = [sorted(one.partitions + one.leaderless) for one in (before, now)]
    return before.topic_id != now.topic_id or partitions[0] != partitions[1]


def _place(key: TopicPartitionKey, at: Position) -> TopicPartition:
    if at.leader_epoch is None or at.leader_epoch < 0:
        return TopicPartition(*key, at.next_offset)
    return TopicPartition(*key, at.next_offset, leader_epoch=at.leader_epoch)


def _close(consumer: Consumer) -> None:
    """Close a consumer, or leave it behind: librdkafka waits without limit for a commit of group offsets whose
    broker was frozen in between, and those are for lag tools only."""
    closing = threading.Thread(target=consumer.close, name="kafka-close", daemon=True)
    closing.start()
    closing.join(CLOSE_TIMEOUT_S)
    if closing.is_alive():
        log.warning("the Kafka consumer did not close; it is left behind", waited_s=CLOSE_TIMEOUT_S)
