"""From Kafka messages to raw events: read the event time, name what cannot be read. Pure; time is an argument.

Nothing is raised for a bad payload: each gets one reason, its neighbours go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.raw_events.payload_bytes import Keys, duplicate_keys, not_utf8
from analytics_pipeline.domains.base import Domain, PayloadError
from analytics_pipeline.messages import MessageSlice
from analytics_pipeline.records import HOUR_US, from_us

#: What decoding a payload may raise because of the payload. Anything else is the domain's: ``domain_error``.
PAYLOAD_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeError, PayloadError)
ERROR_CHARACTERS = 500
#: Messages decoded in one go; one that cannot be read has all of them gone through one by one.
CHUNK_MESSAGES = 5_000
_ZONE = attrgetter("tzinfo")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one message is rejected: a stable reason to count by, and a sentence for people."""

    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedSlice:
    """What decoding made of a slice; ``event_time_us`` holds nothing useful where rejected.

    Attributes:
        rows: what becomes raw events or dead letters: the messages, or the elements of those that were split.
        origin: which message each row comes from; None: the rows are the messages.
        whole: rows that are whole messages although their domain splits: they could not be split.
    """

    rows: MessageSlice
    event_time_us: npt.NDArray[np.int64]
    payload_bytes: npt.NDArray[np.int64]
    rejections: dict[int, Rejection]
    origin: npt.NDArray[np.int64] | None = None
    whole: frozenset[int] = frozenset()


def decode_slice(
    messages: MessageSlice,
    domain: Domain | None,
    max_message_bytes: int,
    *,
    elements: bool = False,
    rejected: Mapping[int, Rejection] | None = None,
) -> DecodedSlice:
    """Event times of a slice.

    Args:
        domain: None where no domain claims the topic.
        elements: the rows are elements that were split before: each is decoded alone.
        rejected: rows that are not looked at any more.
    """
    if domain is None:
        rejection = Rejection("unknown_topic", f"no domain claims topic {messages.topic}; add one or drop it")
        rejections = dict.fromkeys(range(len(messages)), rejection)
        return DecodedSlice(
            rows=messages,
            event_time_us=np.zeros(len(messages), np.int64),
            payload_bytes=_lengths(messages),
            rejections=rejections,
        )
    if domain.split is not None and not elements:
        return _split_slice(messages, domain, max_message_bytes)
    rejections = {**_unreadable(messages), **(rejected or {})}
    seconds: list[float] = []
    for first in range(0, len(messages), CHUNK_MESSAGES):
        seconds += _decode_chunk(messages, first, domain, max_message_bytes, rejections)
    rejections |= _not_utf8(messages.values, rejections)
    return DecodedSlice(
        rows=messages, event_time_us=_to_us(seconds), payload_bytes=_lengths(messages), rejections=rejections
    )


def _lengths(messages: MessageSlice) -> npt.NDArray[np.int64]:
    values = messages.values
    return np.fromiter((len(v) if v is not None else 0 for v in values), np.int64, len(values))


def _unreadable(messages: MessageSlice) -> dict[int, Rejection]:
    return {row: Rejection("headers_unreadable", error) for row, error in messages.unreadable.items()}


def _decode_chunk(
    messages: MessageSlice,
    first: int,
    domain: Domain,
    max_message_bytes: int,
    rejections: dict[int, Rejection],
) -> list[float]:
    """Event times of a chunk in seconds; adds to ``rejections``."""
    values = messages.values[first : first + CHUNK_MESSAGES]
    decode, event_time = msgspec.json.Decoder(domain.envelope).decode, domain.event_time
    try:
        if all(values) and max(map(len, values)) <= max_message_bytes:  # type: ignore[arg-type]
            moments = list(map(event_time, map(decode, values)))  # type: ignore[arg-type]  # in C: all pass here
            if None not in set(map(_ZONE, moments)):
                return list(map(datetime.timestamp, moments))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # looked at one by one
        pass
    return [
        _seconds(messages, row, decode, domain, max_message_bytes, rejections)
        for row in range(first, first + len(values))
    ]


def _seconds(
    messages: MessageSlice,
    row: int,
    decode: Callable[[bytes], Any],
    domain: Domain,
    max_message_bytes: int,
    rejections: dict[int, Rejection],
) -> float:
    value = messages.values[row]
    if row in rejections:
        return 0.0
    if not value or len(value) > max_message_bytes:
        rejections[row] = _unread(value, max_message_bytes)
        return 0.0
    try:
        return _timestamp(domain.event_time(decode(value)), domain.time_zone, messages.kafka_times_ms[row])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a domain raises is about this message alone
        rejections[row] = _why(value, error, domain)
        return 0.0


def _timestamp(moment: datetime, zone: tzinfo, kafka_time_ms: int) -> float:
    """Seconds since the Unix epoch. A local time that occurs twice, when clocks are set back, is the occurrence
    nearer to the Kafka time, which is stored: a replay chooses alike."""
    if moment.tzinfo:
        return moment.timestamp()
    either = [moment.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)]
    return min(either, key=lambda seconds: abs(seconds - kafka_time_ms / 1000))


def _why(value: bytes, error: Exception, domain: Domain) -> Rejection:
    if isinstance(error, PAYLOAD_ERRORS):
        return explain(value, error)
    said = f"domain {domain.name} raised {type(error).__name__}: {error}"
    return Rejection("domain_error", said[:ERROR_CHARACTERS])


# ---------------------------------------------------------------------- messages that are split


def _split_slice(
    messages: MessageSlice, domain: Domain, max_message_bytes: int, rejected: Mapping[int, Rejection] | None = None
) -> DecodedSlice:
    """The elements of a slice's messages as rows; a message that cannot be split is one row, rejected.

    Each element is also decoded alone, as it is when its hour is rebuilt: a message of which an element reads
    another time then is rejected now.
    """
    origin: list[int] = []
    values: list[bytes | None] = []
    ordinals: list[int] = []
    moments: list[Any] = []
    rejections: dict[int, Rejection] = {}
    known = {**_unreadable(messages), **(rejected or {})}
    for row in range(len(messages)):
        split = known.get(row) or _elements(messages.values[row], domain, max_message_bytes)
        elements: list[tuple[Any, bytes | None]]
        if isinstance(split, Rejection):
            rejections[len(origin)] = split
            elements = [(None, messages.values[row])]
        else:
            elements = split
        origin += [row] * len(elements)
        ordinals += range(len(elements))
        moments += [moment for moment, _ in elements]
        values += [text for _, text in elements]
    rows = _rows_of(messages, origin, values, ordinals)
    whole = frozenset(rejections)
    decoded = decode_slice(rows, replace(domain, split=None), max_message_bytes, rejected=rejections)
    if others := _other_times(decoded, moments, domain):
        wrong = {origin[row]: rejection for row, rejection in others.items()}
        return _split_slice(messages, domain, max_message_bytes, {**(rejected or {}), **wrong})
    return replace(decoded, origin=np.array(origin, np.int64), whole=whole)


def _elements(
    value: bytes | None, domain: Domain, max_message_bytes: int
) -> list[tuple[Any, bytes | None]] | Rejection:
    if not value or len(value) > max_message_bytes:
        return _unread(value, max_message_bytes)
    assert domain.split is not None
    try:
        elements: list[tuple[Any, bytes | None]] = [(moment, bytes(text)) for moment, text in domain.split(value)]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a domain raises is about this message alone
        return _not_read(value) or _why(value, error, domain)
    if len(elements) > 1 and (found := duplicate_keys([value], keys_of(domain))):
        return duplicate_key(found[0])  # its elements hold one of the two, so that nobody would notice later
    return elements or Rejection("no_elements", "message splits into nothing")


@lru_cache(maxsize=256)
def keys_of(domain: Domain) -> Keys:
    """The keys that a domain reads of a payload."""
    return Keys.of(domain.envelope, domain.payload)


def duplicate_key(name: str) -> Rejection:
    """A key that is read stands more than once."""
    return Rejection("duplicate_key", f"key {name!r} is there more than once; which one counts is not defined")


def _not_read(value: bytes) -> Rejection | None:
    """Why a payload is no JSON, whatever the domain made of that; None where it is."""
    try:
        msgspec.json.decode(value)
    except PAYLOAD_ERRORS as error:
        return explain(value, error)
    return None


def _other_times(decoded: DecodedSlice, moments: Sequence[Any], domain: Domain) -> dict[int, Rejection]:
    """Elements whose text gives another time than the split did: a fault of the domain."""
    times = decoded.event_time_us.tolist()
    found: dict[int, Rejection] = {}
    for row, moment in enumerate(moments):
        if row in decoded.rejections:
            continue
        try:
            split_s = _timestamp(moment, domain.time_zone, decoded.rows.kafka_times_ms[row])
            if round(split_s * 1e6) != times[row]:
                said = f"domain {domain.name}: split gives {moment}, the element reads {from_us(times[row])}"
                found[row] = Rejection("domain_error", said)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            found[row] = _why(b"", error, domain)
    return found


def _rows_of(
    messages: MessageSlice, origin: Sequence[int], values: list[bytes | None], ordinals: list[int]
) -> MessageSlice:
    return replace(
        messages,
        offsets=[messages.offsets[row] for row in origin],
        kafka_times_ms=[messages.kafka_times_ms[row] for row in origin],
        values=values,
        keys=[messages.keys[row] for row in origin],
        headers=[messages.headers[row] for row in origin],
        unreadable={},
        ordinals=ordinals,
    )


# ---------------------------------------------------------------------- what cannot be read


def _to_us(seconds: list[float]) -> npt.NDArray[np.int64]:
    """Microseconds. A double holds a second's fraction to 0.24 us until 2106, so that rounding is exact;
    what is further off is not plausible anyway."""
    times: npt.NDArray[np.int64] = np.rint(np.array(seconds, np.float64) * 1e6).astype(np.int64)
    return times


def _not_utf8(values: Sequence[bytes | None], rejected: Mapping[int, Rejection]) -> dict[int, Rejection]:
    """Of what was not rejected yet, payloads whose bytes are no text: decoding looks only at what it reads."""
    rows = [row for row in range(len(values)) if row not in rejected] if rejected else range(len(values))
    texts = [values[row] or b"" for row in rows] if rejected else values
    return {
        rows[at]: Rejection("not_utf8", f"payload is not UTF-8: {_utf8_error(values[rows[at]])}")
        for at in not_utf8(texts)  # type: ignore[arg-type]  # what has no value was rejected
    }


def _utf8_error(value: bytes | None) -> str:
    try:
        (value or b"").decode()
    except UnicodeDecodeError as error:
        return str(error)
    return "no value"


def _unread(value: bytes | None, max_message_bytes: int) -> Rejection:
    if value is None:
        return Rejection("null_value", "message has no value (a tombstone); this topic is not compacted by us")
    if not value:
        return Rejection("empty_value", "message has an empty value")
    return Rejection("too_large", f"payload has {len(value)} bytes, at most {max_message_bytes} are taken")


def explain(value: bytes, error: Exception) -> Rejection:
    """The reason behind a decoding error, looked for only once there is one."""
    text = str(error)[:ERROR_CHARACTERS]
    if isinstance(error, PayloadError):
        return Rejection(error.reason, text or error.reason)
    if isinstance(error, RecursionError):
        return Rejection("nested_too_deep", "payload is nested too deep to be read")
    if isinstance(error, UnicodeError):
        return Rejection("not_utf8", f"payload is not UTF-8: {text}")
    if isinstance(error, msgspec.ValidationError):
        return Rejection(_field_reason(text), text)
    return _not_json(value, text)


def _field_reason(text: str) -> str:
    if text.startswith("Expected `object`") and " - at " not in text:
        return "not_an_object"
    if "missing required field" in text:
        return "field_missing"
    return "field_invalid"


#: What the standard library takes for JSON and the standard does not, and what may hide half of a pair.
_ODD_JSON = (b"NaN", b"Infinity", b"\\u")


def _not_json(value: bytes, text: str) -> Rejection:
    if value.isascii() and not any(odd in value for odd in _ODD_JSON):
        return Rejection("not_json", text)  # nearly always: an hour may hold tens of thousands of them
    try:
        parsed: Any = json.loads(value)
        json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return Rejection("lone_surrogate", f"payload holds half of a surrogate pair: {error.reason}")
    except UnicodeDecodeError as error:
        return Rejection("not_utf8", f"payload is not UTF-8: {error}"[:ERROR_CHARACTERS])
    except (ValueError, RecursionError):
        return Rejection("not_json", text)
    return Rejection("not_json", f"{text}; NaN and Infinity are not JSON")


@dataclass(frozen=True, slots=True)
class GateBounds:
    """What is plausible for an event time, classified against arrival, which is stored: a replay judges alike."""

    start_us: int
    retention_floor_us: int


def gate_frame(
    event_time_us: npt.NDArray[np.int64],
    arrived_at_us: npt.NDArray[np.int64],
    payload_bytes: npt.NDArray[np.int64],
    bounds: GateBounds,
) -> pl.DataFrame:
    """What the gate of raw_events validates.

    Columns: ``ahead_s`` event time minus arrival; ``since_start_s`` event time minus the partitions' start;
    ``since_floor_s`` start of the event's hour minus the retention floor; ``payload_bytes``.
    """
    return pl.DataFrame(
        {
            "ahead_s": (event_time_us - arrived_at_us) / 1e6,
            "since_start_s": (event_time_us - bounds.start_us) / 1e6,
            "since_floor_s": (event_time_us // HOUR_US * HOUR_US - bounds.retention_floor_us) / 1e6,
            "payload_bytes": payload_bytes,
        }
    )


def count_reasons(rejections: Sequence[Rejection]) -> dict[str, int]:
    """How often each reason occurs."""
    counts: dict[str, int] = {}
    for rejection in rejections:
        counts[rejection.reason] = counts.get(rejection.reason, 0) + 1
    return counts
