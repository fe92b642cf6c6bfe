"""Domains of plain events, by configuration: any topic whose messages carry entity, type and value.

::

    {"time": "2025-08-20T03:12:00Z", "tenant_id": "t1", "factory_id": "f1", "entity_type": "line",
     "entity_id": "line-2", "event_type": "shift_handover", "value": 3, "user_id": "u-17",
     "properties": {"note": "press 4 noisy"}}

Required: ``time, entity_id, event_type``. Optional: ``domain`` (of another domain than the topic's: a dead letter
``other_domain``), ``tenant_id, factory_id, machine_id, entity_type`` (by default the domain's), ``value`` (a number,
whose unit is the type's), ``user_id, event_id, properties``.

It becomes an event. With an ``event_id`` of at most 200 bytes it is that id; without one, the same entity, type, time
and value again are the same event.

A domain is three lines below, or an entry of the setting ``EVENT_DOMAINS``: ``{"safety": ["safety.events"]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, EventTuple, PayloadError, Timed, canonical_json


class PlainEvent(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    entity_id: str
    event_type: str
    domain: str | None = None
    tenant_id: str | None = None
    factory_id: str | None = None
    machine_id: str | None = None
    entity_type: str | None = None
    value: float | None = None
    user_id: str | None = None
    event_id: str | None = None
    properties: dict[str, Any] | None = None


def _events_of(name: str, entity_type: str) -> Callable[[PlainEvent], tuple[EventTuple]]:
    def events(event: PlainEvent) -> tuple[EventTuple]:
        if event.domain is not None and event.domain != name:
            raise PayloadError("other_domain", f"domain: takes {name!r}, or nothing, got {event.domain!r}")
        of = (event.event_id, event.tenant_id, event.factory_id, event.machine_id)
        what = (event.entity_type or entity_type, event.entity_id, event.event_type)
        return ((*of, *what, event.user_id, event.value, canonical_json(event.properties or {})),)

    return events


def event_domain(name: str, topics: Sequence[str], entity_type: str = "thing") -> Domain:
    """A domain of plain events.

    Args:
        entity_type: of messages that name none.
    """
    return Domain(
        name=name,
        topics=tuple(topics),
        envelope=Timed,
        event_time=attrgetter("time"),
        payload=PlainEvent,
        events=_events_of(name, entity_type),
        event_identity=("tenant_id", "factory_id", "entity_type", "entity_id", "event_type", "value"),
    )


OPS = event_domain(  # operations: work orders, handovers, checks
    "ops", ["ops.events"], entity_type="machine",
)
ECON = event_domain(  # economics: prices, costs, sales
    "econ", ["econ.events"], entity_type="market",
)
VET = event_domain(  # veterinary: treatments, findings, losses
    "vet", ["vet.events"], entity_type="animal",
)
DOMAINS = (OPS, ECON, VET)
