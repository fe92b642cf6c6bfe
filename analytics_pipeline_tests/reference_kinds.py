"""What the pipeline should say of events and of states, computed the slow and obvious way. See reference.py."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from analytics_pipeline_tests.reference import HOUR_US, MICROS

# ---------------------------------------------------------------------- events


class EventMessage(NamedTuple):
    """One event as Kafka brought it. ``position`` as in `Message`; ``content`` is all of it but id and value."""

    position: tuple[str, int, int, int, int]
    kafka_time_us: int
    event_time_us: int
    event_id: str | None
    tenant_id: str | None
    kind: tuple[str | None, ...]
    content: tuple[str | None, ...]
    value: float | None

    @property
    def identity(self) -> tuple[object, ...]:
        if self.event_id is not None:
            return "id", self.tenant_id, self.event_id
        return "content", self.event_time_us, self.tenant_id, self.content, self.value


def events(messages: Iterable[EventMessage]) -> dict[tuple[object, ...], EventMessage]:
    """The event of each identity: of the message with the latest (Kafka time, position), in whatever hour."""
    winner: dict[tuple[object, ...], EventMessage] = {}
    for message in messages:
        known = winner.get(message.identity)
        if known is None or (message.kafka_time_us, message.position) > (known.kafka_time_us, known.position):
            winner[message.identity] = message
    return winner


def event_rollups(
    messages: Iterable[EventMessage], size_s: int
) -> dict[tuple[object, ...], tuple[int, int, float | None]]:
    """(events, events with a value, exact sum of the values) by (start, tenant, kind of event)."""
    values: dict[tuple[object, ...], list[float | None]] = defaultdict(list)
    for event in events(messages).values():
        start_us = event.event_time_us - event.event_time_us % (size_s * MICROS)
        values[start_us, event.tenant_id, *event.kind].append(event.value)
    found = {}
    for key, its in values.items():
        known = [value for value in its if value is not None]
        found[key] = (len(its), len(known), math.fsum(known) if known else None)
    return found


# ---------------------------------------------------------------------- states


class StateMessage(NamedTuple):
    """One change of state as Kafka brought it; ``series`` is (machine, kind of state)."""

    position: tuple[str, int, int, int, int]
    kafka_time_us: int
    event_time_us: int
    series: tuple[str, str]
    state: str


def state_changes(messages: Iterable[StateMessage]) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """(time, state) of each series, in order: of several at one time the latest by (Kafka time, position)."""
    winner: dict[tuple[tuple[str, str], int], StateMessage] = {}
    for message in messages:
        known = winner.get((message.series, message.event_time_us))
        if known is None or (message.kafka_time_us, message.position) > (known.kafka_time_us, known.position):
            winner[message.series, message.event_time_us] = message
    found: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for (series, time_us), message in sorted(winner.items()):
        found[series].append((time_us, message.state))
    return found


def state_durations(
    messages: Iterable[StateMessage], size_s: int, until_us: int
) -> dict[tuple[int, tuple[str, str], str], int]:
    """Microseconds by (start of the window, series, state), up to a moment."""
    size_us = size_s * MICROS
    found: dict[tuple[int, tuple[str, str], str], int] = defaultdict(int)
    for series, changes in state_changes(messages).items():
        for at, (begin_us, state) in enumerate(changes):
            end_us = min(changes[at + 1][0] if at + 1 < len(changes) else until_us, until_us)
            from_us = begin_us
            while from_us < end_us:
                start_us = from_us - from_us % size_us
                edge_us = min(start_us + size_us, end_us)
                found[start_us, series, state] += edge_us - from_us
                from_us = edge_us
    return dict(found)


def carried_states(messages: Iterable[StateMessage], until_us: int) -> dict[tuple[int, tuple[str, str]], str]:
    """The state at the end of each hour that has begun before a moment, by (begin of the hour, series)."""
    found = {}
    for series, changes in state_changes(messages).items():
        hour_us = changes[0][0] // HOUR_US * HOUR_US
        while hour_us < until_us:
            found[hour_us, series] = [state for time_us, state in changes if time_us < hour_us + HOUR_US][-1]
            hour_us += HOUR_US
    return found
