"""Events of an app with free properties, some with an id of their own; what counts something is a sample as well.

::

    {"time": "2025-08-20T03:12:00Z", "tenant": "t1", "id": "e-1", "kind": "order", "entity": "o-1", "what": "paid",
     "user": "u-1", "value": 12.5, "gauge": "revenue", "properties": {"plan": "pro"}}

Only ``time``, ``what`` and ``entity`` are required. With ``gauge`` the value is also a sample of that
metric, where the domain has samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, EventTuple, SeriesTuple, canonical_json


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Happened(msgspec.Struct):
    """What normalization needs to know."""

    what: str
    entity: str
    tenant: str | None = "t1"
    id: str | None = None
    kind: str = "thing"
    user: str | None = None
    value: float | None = None
    gauge: str | None = None
    properties: dict[str, Any] = {}


def of(payload: Happened) -> tuple[EventTuple]:
    """The events of one payload."""
    properties = canonical_json(payload.properties)
    who = (payload.id, payload.tenant, "f1", None)
    return ((*who, payload.kind, payload.entity, payload.what, payload.user, payload.value, properties),)


def _samples(payload: Happened) -> Sequence[tuple[SeriesTuple, float, int]]:
    if payload.gauge is None or payload.value is None:
        return ()
    return (((payload.tenant, "f1", payload.entity, None, None, payload.gauge, None), payload.value, 0),)


def message(time: datetime, what: str, entity: str = "x-1", **more: Any) -> bytes:
    return msgspec.json.encode({"time": time, "what": what, "entity": entity, **more})


DOMAIN = Domain(
    name="events",
    topics=("events",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Happened,
    events=of,
)

#: The same, with samples beside the events.
BOTH = replace(DOMAIN, name="both", topics=("both",), samples=_samples)
