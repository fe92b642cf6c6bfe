"""Events of apps, on ``octane.events``: what users do, with free properties.

::

    {"app_id": "openstream", "event_name": "video_buffering", "user_id": "user_550e8400",
     "timestamp": "2026-02-02T12:00:00.000Z",
     "properties": {"stream_id": "st-998877", "buffer_duration_ms": 1500, "network_type": "5g"}}

Required: ``app_id, event_name, user_id`` (text or number), ``timestamp``. Optional: ``properties`` (an object with
anything; at most 256 KiB as JSON), ``tenant_id``.

It becomes an event ``event_name`` of the app, by the user; the properties are kept as JSON with sorted keys. Events
have no id: the same app, user, name, time and properties again are the same event. The view ``ai_analytics_events`` has
the columns of the table that the worker before this one wrote.
"""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, EventTuple, canonical_json


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    timestamp: datetime


class AppEvent(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    app_id: str
    event_name: str
    user_id: str | int
    properties: dict[str, Any] | None = None
    tenant_id: str | None = None


def _events(event: AppEvent) -> tuple[EventTuple]:
    of = (None, event.tenant_id, None, None, "app", event.app_id)
    return ((*of, event.event_name, str(event.user_id), None, canonical_json(event.properties or {})),)


DOMAIN = Domain(
    name="app",
    topics=("octane.events",),
    envelope=Envelope,
    event_time=attrgetter("timestamp"),
    payload=AppEvent,
    events=_events,
    event_identity=("tenant_id", "entity_type", "entity_id", "user_id", "event_type", "properties"),
)
