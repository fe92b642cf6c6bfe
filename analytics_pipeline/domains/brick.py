"""Brick production, on ``production.bricks``: what a machine's counters show, how fast it runs, in what state it is.

::

    {"time": "2025-11-20T06:00:00Z", "tenant_id": "t1", "factory_id": "f1", "device_id": "SAU-ME-01",
     "count": 120450, "errors": 310, "speed": 1250.0, "status": "running", "product_id": "brick-240",
     "order_id": "o-7731"}

Required: ``time, device_id, count``. Optional: everything else.

* ``count``: bricks made since the counter began, **rejects included**; a whole number, never negative. It is
  cumulative: it starts again at 0 by a reset, a roll-over, or another meter.
* ``errors``: of these the rejected ones, **cumulative** as well. Good bricks are the increments of ``count`` minus
  those of ``errors``; the error rate is the increment of ``errors`` through that of ``count``.
* ``speed``: bricks per hour, as the machine says. A measurement of the metric ``speed``, unit ``bricks/h``.
* ``status``: the state ``status`` of the machine, from this moment on: for example running, setup, stopped, off.
* ``product_id, order_id``: the states ``product`` and ``order``: what the machine makes from this moment on.

``count`` and ``errors`` become the counters of the same names, unit ``bricks``: see `counters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, SeriesTuple, Timed

#: What a counter may show: int8, never negative.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Production(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    device_id: str
    count: Count
    tenant_id: str | None = None
    factory_id: str | None = None
    errors: Count | None = None
    speed: float | None = None
    status: str | None = None
    product_id: str | None = None
    order_id: str | None = None


def _series(production: Production, metric: str, unit: str | None = None) -> SeriesTuple:
    return (production.tenant_id, production.factory_id, production.device_id, None, None, metric, unit)


def counters(production: Production) -> Sequence[tuple[SeriesTuple, int]]:
    """What the counters of a machine show: bricks since each began, as whole numbers."""
    found = [(_series(production, "count", "bricks"), production.count)]
    if production.errors is not None:
        found.append((_series(production, "errors", "bricks"), production.errors))
    return found


def _samples(production: Production) -> Sequence[tuple[SeriesTuple, float, int]]:
    if production.speed is None:
        return ()
    return ((_series(production, "speed", "bricks/h"), production.speed, 0),)


def _states(production: Production) -> Sequence[tuple[SeriesTuple, str]]:
    told = (("status", production.status), ("product", production.product_id), ("order", production.order_id))
    return [(_series(production, kind), state) for kind, state in told if state is not None]


DOMAIN = Domain(
    name="brick",
    topics=("production.bricks",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Production,
    samples=_samples,
    states=_states,
    counters=counters,
    detectors=(RobustZScore(), SpecLimits()),
)
