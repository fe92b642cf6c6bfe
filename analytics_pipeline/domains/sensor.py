"""Sensor readings: one value of one metric of one sensor on a machine, on ``sensors.device.readings``.

::

    {"time": "2025-08-20T03:12:00Z", "tenant_id": "t1", "factory_id": "f1", "machine_id": "mc-01",
     "sensor_id": "s-001", "metric": "temp", "value": 23.7}

``unit`` is optional. Further fields are kept in the raw payload and otherwise ignored.
"""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, SeriesTuple


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Reading(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    tenant_id: str
    factory_id: str
    machine_id: str
    sensor_id: str
    metric: str
    value: float
    unit: str | None = None


def _samples(reading: Reading) -> tuple[tuple[SeriesTuple, float, int]]:
    # Plain tuples, in the order of SeriesKey: every message passes here.
    series = (
        reading.tenant_id,
        reading.factory_id,
        reading.machine_id,
        None,
        reading.sensor_id,
        reading.metric,
        reading.unit,
    )
    return ((series, reading.value, 0),)


DOMAIN = Domain(
    name="sensor",
    topics=("sensors.device.readings",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Reading,
    samples=_samples,
    detectors=(RobustZScore(), SpecLimits()),
)
