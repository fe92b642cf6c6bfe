"""Messages of the client library, taken over column by column. No broker is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from operator import methodcaller
from typing import Any

from analytics_pipeline.messages import Headers, MessageSlice

#: Producers may write any timestamp. No calendar has those beyond, and one of them would stop its partition.
KAFKA_TIMES_MS = (0, 253_402_214_400_000)  # 1970-01-01 to 9999-12-31

# Called in C: every message passes here.
_OFFSET, _KEY, _HEADERS, _TIMESTAMP = map(methodcaller, ("offset", "key", "headers", "timestamp"))


def append(part: MessageSlice, messages: Sequence[Any], values: list[bytes | None]) -> None:
    """Add messages of its log to a slice; ``values`` are theirs, which the caller needs as well."""
    first = len(part.offsets)
    part.offsets.extend(map(_OFFSET, messages))
    part.kafka_times_ms.extend([kind_and_ms[1] for kind_and_ms in map(_TIMESTAMP, messages)])
    part.values.extend(values)
    part.keys.extend(map(_KEY, messages))
    part.headers.extend(_headers(messages, first, part.unreadable))
    part.leader_epoch = messages[-1].leader_epoch()


def close(part: MessageSlice) -> None:
    """When everything is appended: where the slice ends, the holes inside of it, times that calendars have."""
    if part.offsets:
        part.next_offset = max(part.next_offset, part.offsets[-1] + 1)
    part.gaps = _gaps(part)
    part.kafka_times_ms = _representable(part.kafka_times_ms)


def _headers(messages: Sequence[Any], first: int, unreadable: dict[int, str]) -> list[Headers]:
    """The headers of some messages; adds to ``unreadable`` where a name is no text, counted from ``first``.

    A message that raised is never asked again: the client library (2.16) then hands out half a list, and the
    process crashes when it is looked at.
    """
    found: list[Headers] = []
    rest = iter(messages)
    while len(found) < len(messages):
        try:
            found.extend(map(_HEADERS, rest))
        except (SystemError, ValueError) as error:
            unreadable[first + len(found)] = f"the name of a header is not UTF-8: {error.__cause__ or error}"
            found.append(None)
    return found


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
