"""Monitoring of machines, on ``machine.monitoring``: changes of state, and how the machine feels.

::

    {"time": "2025-11-20T06:00:00Z", "tenant_id": "t1", "factory_id": "f1", "machine_id": "press-4",
     "state": "production", "vibration": 2.8, "temperature": 54.1, "current": 18.6, "product_id": "brick-240",
     "order_id": "o-7731"}

Required: ``time, machine_id``, and at least one of the others: else a dead letter ``nothing_measured``.

* ``vibration``: mm/s, RMS velocity as of ISO 20816. ``temperature``: °C. ``current``: A. Each is a measurement of the
  metric of its name, unit ``mm/s``, ``degC`` and ``A``.
* ``state``: the state ``state`` of the machine from this moment on, until the next one: for example production, setup,
  delay, stop, off. A message per change is enough, and one with each reading does no harm.
* ``product_id, order_id``: the states ``product`` and ``order``: what the machine works on from this moment on.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, PayloadError, SeriesTuple, Timed


class Monitoring(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    machine_id: str
    tenant_id: str | None = None
    factory_id: str | None = None
    state: str | None = None
    vibration: float | None = None
    temperature: float | None = None
    current: float | None = None
    product_id: str | None = None
    order_id: str | None = None


def _series(seen: Monitoring, metric: str, unit: str | None = None) -> SeriesTuple:
    return (seen.tenant_id, seen.factory_id, seen.machine_id, None, None, metric, unit)


def _samples(seen: Monitoring) -> Sequence[tuple[SeriesTuple, float, int]]:
    read = (
        ("vibration", "mm/s", seen.vibration),
        ("temperature", "degC", seen.temperature),
        ("current", "A", seen.current),
    )
    return [(_series(seen, metric, unit), value, 0) for metric, unit, value in read if value is not None]


def _states(seen: Monitoring) -> Sequence[tuple[SeriesTuple, str]]:
    told = (("state", seen.state), ("product", seen.product_id), ("order", seen.order_id))
    states = [(_series(seen, kind), state) for kind, state in told if state is not None]
    if not states and seen.vibration is None and seen.temperature is None and seen.current is None:
        raise PayloadError("nothing_measured", "takes a state, vibration, temperature or current, and has none of them")
    return states


DOMAIN = Domain(
    name="machine",
    topics=("machine.monitoring",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Monitoring,
    samples=_samples,
    states=_states,
    detectors=(RobustZScore(), SpecLimits()),
)
