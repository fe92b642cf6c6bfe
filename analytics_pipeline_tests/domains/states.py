"""States of machines that last for days, told when they change; a heartbeat only says that time has passed.

::

    {"time": "2025-08-20T03:12:00Z", "machine": "m-1", "kind": "mode", "state": "running"}

Without ``machine`` it is a heartbeat. With ``gauge`` there is also a sample, of another domain than the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, SeriesTuple


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Change(msgspec.Struct):
    """What normalization needs to know."""

    machine: str | None = None
    kind: str = "mode"
    state: str = ""
    gauge: float | None = None


def _states(payload: Change) -> Sequence[tuple[SeriesTuple, str]]:
    if payload.machine is None:
        return ()
    return ((("t1", "f1", payload.machine, None, None, payload.kind, None), payload.state),)


def _samples(payload: Change) -> Sequence[tuple[SeriesTuple, float, int]]:
    if payload.gauge is None:
        return ()
    return ((("t1", "f1", payload.machine, None, None, "gauge", None), payload.gauge, 0),)


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
