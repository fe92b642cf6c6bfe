"""What comes from Kafka, and where it stands there. Pure data: no IO, no clock, no decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

Headers = list[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True, order=True)
class LogPartition:
    """One life of one partition's log. A new epoch begins when the topic is recreated or the log is cut short:
    offsets of different epochs have nothing to do with each other."""

    topic: str
    epoch: int
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Half-open range ``[from_offset, to_offset)`` of one log."""

    log: LogPartition
    from_offset: int
    to_offset: int


@dataclass(slots=True, kw_only=True)
class MessageSlice:
    """Consecutive messages of one log, column by column; all columns have one entry per message.

    Attributes:
        gaps: half-open offset ranges inside ``[from_offset, next_offset)`` that hold no message: compacted,
            control records, or aborted transactions.
        unreadable: messages of which the client library could not read everything, with what it said, by row.
        leader_epoch: of the newest message, where the broker tells it.
        ordinals: where rows are elements of split messages, the place of each in its message; None: all 0.
    """

    log: LogPartition
    from_offset: int
    next_offset: int
    offsets: list[int] = field(default_factory=list)
    kafka_times_ms: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    leader_epoch: int | None = None
    ordinals: list[int] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def ordinal(self, row: int) -> int:
        """The place of a row in its message."""
        return self.ordinals[row] if self.ordinals else 0

    @property
    def topic(self) -> str:
        return self.log.topic
