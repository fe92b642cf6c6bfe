"""From Kafka messages to raw events: read the event time, name what cannot be read. Pure; time is an argument.

Nothing is raised for a bad payload: each gets one reason, its neighbours go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.domains.base import Domain
from analytics_pipeline.records import HOUR_US
from analytics_pipeline.stages.payload_bytes import not_utf8

#: What decoding a payload may raise because of the payload. Anything else is a bug and must surface.
PAYLOAD_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeError)
ERROR_CHARACTERS = 500
#: Messages decoded in one go; one that cannot be read has all of them gone through one by one.
CHUNK_MESSAGES = 5_000
_ZONE = attrgetter("tzinfo")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one message is refused: a stable reason to count by, and a sentence for people."""

    reason: str
    error: str


@dataclass(slots=True)
class MessageSlice:
    """Consecutive messages of one partition, column by column; all columns have one entry a message.

    ``gaps`` are half-open offset ranges inside ``[from_offset, next_offset)`` that hold no message: compacted,
    control records, or aborted transactions.
    """

    topic: str
    epoch: int
    partition: int
    from_offset: int
    next_offset: int
    offsets: list[int] = field(default_factory=list)
    kafka_times_ms: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[list[tuple[str, bytes | None]] | None] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class DecodedSlice:
    """What decoding made of a slice: ``event_time_us`` holds nothing useful where refused."""

    event_time_us: npt.NDArray[np.int64]
    payload_bytes: npt.NDArray[np.int64]
    refusals: dict[int, Refusal]


def decode_slice(messages: MessageSlice, domain: Domain | None, max_message_bytes: int) -> DecodedSlice:
    """Event times of a slice. ``domain`` is None where no domain claims the topic."""
    values = messages.values
    payload_bytes = np.fromiter((len(v) if v is not None else 0 for v in values), np.int64, len(values))
    if domain is None:
        refusal = Refusal("unknown_topic", f"no domain claims topic {messages.topic}; add one or drop it")
        refusals = dict.fromkeys(range(len(values)), refusal)
        return DecodedSlice(np.zeros(len(values), np.int64), payload_bytes, refusals)
    refusals = {}
    seconds: list[float] = []
    for first in range(0, len(values), CHUNK_MESSAGES):
        seconds += _decode_chunk(
            values[first : first + CHUNK_MESSAGES], first, domain, max_message_bytes, refusals
        )
    refusals |= _not_utf8(values, refusals)
    return DecodedSlice(_to_us(seconds), payload_bytes, refusals)


def _decode_chunk(
    values: Sequence[bytes | None],
    first: int,
    domain: Domain,
    max_message_bytes: int,
    refusals: dict[int, Refusal],
) -> list[float]:
    """Event times of a chunk in seconds; adds to ``refusals``."""
    decode, event_time = msgspec.json.Decoder(domain.envelope).decode, domain.event_time
    try:
        if all(values) and max(map(len, values)) <= max_message_bytes:  # type: ignore[arg-type]
            moments = list(map(event_time, map(decode, values)))  # type: ignore[arg-type]  # in C: all pass here
            if None not in set(map(_ZONE, moments)):
                return list(map(datetime.timestamp, moments))
    except PAYLOAD_ERRORS:
        pass  # looked at one by one
    return [
        _seconds(value, row, decode, domain, max_message_bytes, refusals)
        for row, value in enumerate(values, first)
    ]


def _seconds(
    value: bytes | None,
    row: int,
    decode: Callable[[bytes], Any],
    domain: Domain,
    max_message_bytes: int,
    refusals: dict[int, Refusal],
) -> float:
    try:
        if not value or len(value) > max_message_bytes:
            refusals[row] = _unread(value, max_message_bytes)
            return 0.0
        moment = domain.event_time(decode(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=domain.time_zone)).timestamp()
    except PAYLOAD_ERRORS as error:
        refusals[row] = explain(value or b"", error)
        return 0.0


def _to_us(seconds: list[float]) -> npt.NDArray[np.int64]:
    """Microseconds. A double holds a second's fraction to 0.24 us until 2106, so that rounding is exact;
    what is further off is not plausible anyway."""
    times: npt.NDArray[np.int64] = np.rint(np.array(seconds, np.float64) * 1e6).astype(np.int64)
    return times


def _not_utf8(values: Sequence[bytes | None], refused: Mapping[int, Refusal]) -> dict[int, Refusal]:
    """Of what was not refused yet, payloads whose bytes are no text: decoding looks only at what it reads."""
    rows = [row for row in range(len(values)) if row not in refused] if refused else range(len(values))
    texts = [values[row] or b"" for row in rows] if refused else values
    return {
        rows[at]: Refusal("not_utf8", f"payload is not UTF-8: {_utf8_error(values[rows[at]])}")
        for at in not_utf8(texts)  # type: ignore[arg-type]  # what has no value was refused
    }


def _utf8_error(value: bytes | None) -> str:
    try:
        (value or b"").decode()
    except UnicodeDecodeError as error:
        return str(error)
    return "no value"


def _unread(value: bytes | None, max_message_bytes: int) -> Refusal:
    if value is None:
        return Refusal("null_value", "message has no value (a tombstone); this topic is not compacted by us")
    if not value:
        return Refusal("empty_value", "message has an empty value")
    return Refusal("too_large", f"payload has {len(value)} bytes, at most {max_message_bytes} are taken")


def explain(value: bytes, error: Exception) -> Refusal:
    """The reason behind a decoding error, looked for only once there is one."""
    text = str(error)[:ERROR_CHARACTERS]
    if isinstance(error, RecursionError):
        return Refusal("nested_too_deep", "payload is nested too deep to be read")
    if isinstance(error, UnicodeError):
        return Refusal("not_utf8", f"payload is not UTF-8: {text}")
    if isinstance(error, msgspec.ValidationError):
        return Refusal(_field_reason(text), text)
    return _not_json(value, text)


def _field_reason(text: str) -> str:
    if text.startswith("Expected `object`") and " - at " not in text:
        return "not_an_object"
    if "missing required field" in text:
        return "field_missing"
    return "field_invalid"


def _not_json(value: bytes, text: str) -> Refusal:
    try:
        parsed: Any = json.loads(value)
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return Refusal("lone_surrogate", f"payload holds half of a surrogate pair: {error.reason}")
    except UnicodeDecodeError as error:
        return Refusal("not_utf8", f"payload is not UTF-8: {error}"[:ERROR_CHARACTERS])
    except (ValueError, RecursionError):
        return Refusal("not_json", text)
    return Refusal("not_json", f"{text}; NaN and Infinity are not JSON")


@dataclass(frozen=True, slots=True)
class GateBounds:
    """What is plausible for an event time, judged against arrival, which is stored: a replay judges alike."""

    start_us: int
    retention_floor_us: int


def gate_frame(
    decoded: DecodedSlice,
    rows: npt.NDArray[np.int64],
    arrived_at_us: npt.NDArray[np.int64],
    bounds: GateBounds,
) -> pl.DataFrame:
    """What the gate of raw_events judges, one row for each of ``rows``.

    Columns: ``ahead_s`` event time minus arrival; ``since_start_s`` event time minus the partitions' start;
    ``since_floor_s`` start of the event's hour minus the retention floor; ``payload_bytes``.
    """
    times = decoded.event_time_us[rows]
    return pl.DataFrame(
        {
            "ahead_s": (times - arrived_at_us) / 1e6,
            "since_start_s": (times - bounds.start_us) / 1e6,
            "since_floor_s": (times // HOUR_US * HOUR_US - bounds.retention_floor_us) / 1e6,
            "payload_bytes": decoded.payload_bytes[rows],
        }
    )


def count_reasons(refusals: Sequence[Refusal]) -> dict[str, int]:
    """How often each reason occurs."""
    counts: dict[str, int] = {}
    for refusal in refusals:
        counts[refusal.reason] = counts.get(refusal.reason, 0) + 1
    return counts
