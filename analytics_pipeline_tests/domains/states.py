"""States of machines that last for days, told when they change; a heartbeat only says that time has passed.

::

    {"time": "2025-08-20T03:12:00Z", "machine": "m-1", "kind": "mode", "state": "running", "gauge": 3.5, "id": "c-1"}

Without ``machine`` it is a heartbeat. Other domains than the plain one read a sample from ``gauge`` as well, and a
counter, or an event from the change, with the id ``id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, EventTuple, SeriesTuple
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Change(msgspec.Struct):
    """What normalization needs to know."""

    machine: str | None = None
    kind: str = "mode"
    state: str = ""
    gauge: float | None = None
    id: str | None = None


def _states(payload: Change) -> Sequence[tuple[SeriesTuple, str]]:
    if payload.machine is None:
        return ()
    return ((("t1", "f1", payload.machine, None, None, payload.kind, None), payload.state),)


def _samples(payload: Change) -> Sequence[tuple[SeriesTuple, float, int]]:
    if payload.gauge is None:
        return ()
    return ((("t1", "f1", payload.machine, None, None, "gauge", None), payload.gauge, 0),)


def _counters(payload: Change) -> Sequence[tuple[SeriesTuple, int]]:
    return [(series, int(value)) for series, value, _ in _samples(payload)]


def _events(payload: Change) -> Sequence[EventTuple]:
    if payload.machine is None:
        return ()
    return ((payload.id, "t1", "f1", payload.machine, "machine", payload.machine, payload.state, None, None, "{}"),)


def message(time: datetime, state: str, machine: str = "m-1", **more: Any) -> bytes:
    return msgspec.json.encode({"time": time, "machine": machine, "state": state, **more})


def heartbeat(time: datetime) -> bytes:
    return msgspec.json.encode({"time": time})


DOMAIN = Domain(
    name="states",
    topics=("states",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Change,
    states=_states,
)

#: The same, with samples beside the states.
GAUGED = replace(DOMAIN, name="gauged", topics=("gauged",), samples=_samples)

#: The same, with everything that a domain may yield.
EVERYTHING = replace(
    GAUGED,
    name="everything",
    topics=("everything",),
    events=_events,
    counters=_counters,
    detectors=SENSOR.detectors,
)
