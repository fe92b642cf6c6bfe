"""Events of products in a shop, on ``product.events``.

::

    {"eventId": "5f0c3a8e-1d52-4a53-9d0b-0c8f3f1c7a11", "eventType": "LowStockWarning",
     "timestamp": "2024-01-15T10:30:00.000Z",
     "data": {"productId": "p-100", "name": "Brick 240", "status": "active", "price": 1.95, "stock": 4}}

Required: ``eventId, eventType, timestamp``. Optional: ``data`` (an object with anything), ``tenantId``.

* ``eventType``: ProductCreated, ProductUpdated, ProductDeleted or LowStockWarning; any other is an event as well.
* ``data.productId`` (or else ``data.id``), text or number: which product; ``unknown`` where neither is there.
* ``data.stock``: pieces left, as a number. The value of the event.

It becomes an event of the product, identified by ``eventId`` (text or number, at most 200 bytes) in whatever hour it
comes again: the message that is last in Kafka wins. The properties are ``data``. The view ``recent_events`` shows the
last 30 days.
"""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import Domain, EventTuple, canonical_json


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    timestamp: datetime


class ProductEvent(msgspec.Struct, rename="camel"):
    """What normalization needs to know; the time is the raw event's."""

    event_id: str | int
    event_type: str
    data: dict[str, Any] | None = None
    tenant_id: str | None = None


def _product(data: dict[str, Any]) -> str:
    for name in ("productId", "id"):
        product = data.get(name)
        if isinstance(product, (str, int)) and not isinstance(product, bool) and product != "":
            return str(product)
    return "unknown"


def _stock(data: dict[str, Any]) -> float | None:
    stock = data.get("stock")
    if isinstance(stock, bool) or not isinstance(stock, (int, float)):
        return None
    try:
        number = float(stock)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _events(event: ProductEvent) -> tuple[EventTuple]:
    data = event.data or {}
    of = (str(event.event_id), event.tenant_id, None, None, "product", _product(data))
    return ((*of, event.event_type, None, _stock(data), canonical_json(data)),)


DOMAIN = Domain(
    name="product",
    topics=("product.events",),
    envelope=Envelope,
    event_time=attrgetter("timestamp"),
    payload=ProductEvent,
    events=_events,
)
