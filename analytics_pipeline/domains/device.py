"""Health of devices, on ``device.health``: whether a machine is connected, or how well it is, as a score.

::

    {"time": "2025-08-20T03:12:00Z", "tenant_id": "t1", "factory_id": "f1", "machine_id": "mc-01",
     "status": "online", "level": "ok", "health_score": 0.96}

Required: ``time, machine_id``, and at least one of ``status, level, health_score``: else the payload is a dead letter
with the reason ``no_health``. ``health_score`` is a share, by custom from 0 to 1, without a unit.

* ``status`` or ``level``: an event ``health.<status>`` (``health.<level>`` where there is no status) of the machine,
  with both in its properties; and the state ``connection`` of the machine, which is the status, or else the level.
  The same machine, type and time again is the same event.
* ``health_score``: a measurement of the metric ``health_score``.
* Both: all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, EventTuple, PayloadError, SeriesTuple, Timed, canonical_json


class Health(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    machine_id: str
    tenant_id: str | None = None
    factory_id: str | None = None
    status: str | None = None
    level: str | None = None
    health_score: float | None = None


def _series(health: Health, metric: str) -> SeriesTuple:
    return (health.tenant_id, health.factory_id, health.machine_id, None, None, metric, None)


def _samples(health: Health) -> Sequence[tuple[SeriesTuple, float, int]]:
    if health.health_score is not None:
        return ((_series(health, "health_score"), health.health_score, 0),)
    if health.status is None and health.level is None:
        raise PayloadError("no_health", "takes a status, a level or a health_score, and has none of them")
    return ()


def _events(health: Health) -> Sequence[EventTuple]:
    state = health.level if health.status is None else health.status
    if state is None:
        return ()
    said = {name: value for name in ("level", "status") if (value := getattr(health, name)) is not None}
    of = (None, health.tenant_id, health.factory_id, health.machine_id, "machine", health.machine_id)
    return ((*of, f"health.{state}", None, None, canonical_json(said)),)


def _states(health: Health) -> Sequence[tuple[SeriesTuple, str]]:
    state = health.level if health.status is None else health.status
    return () if state is None else ((_series(health, "connection"), state),)


DOMAIN = Domain(
    name="device",
    topics=("device.health",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Health,
    samples=_samples,
    events=_events,
    states=_states,
    event_identity=("tenant_id", "factory_id", "entity_type", "entity_id", "event_type", "value"),
    detectors=(RobustZScore(), SpecLimits()),
)
