"""Moisture of batches, on ``moisture.readings``: what a probe reads while a batch passes.

::

    {"time": "2025-11-20T06:00:00Z", "tenant_id": "t1", "factory_id": "f1", "device_id": "dryer-2",
     "batch_id": "B-2025-1120-03", "moisture": 12.4, "temperature": 61.5, "product_id": "brick-240"}

Required: ``time, device_id, moisture``. Optional: everything else.

* ``moisture``: % by mass. A measurement of the metric ``moisture``, unit ``%``; its limits are spec limits.
* ``temperature``: °C. A measurement of the metric ``temperature``, unit ``degC``.
* ``batch_id, product_id``: the states ``batch`` and ``product`` of the device, from this moment on. The batch is not
  part of the series: a batch is the time from its first reading to that of the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, SeriesTuple, Timed


class Moisture(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    device_id: str
    moisture: float
    tenant_id: str | None = None
    factory_id: str | None = None
    temperature: float | None = None
    batch_id: str | None = None
    product_id: str | None = None


def _series(reading: Moisture, metric: str, unit: str | None = None) -> SeriesTuple:
    return (reading.tenant_id, reading.factory_id, reading.device_id, None, None, metric, unit)


def _samples(reading: Moisture) -> Sequence[tuple[SeriesTuple, float, int]]:
    moisture = (_series(reading, "moisture", "%"), reading.moisture, 0)
    if reading.temperature is None:
        return (moisture,)
    return moisture, (_series(reading, "temperature", "degC"), reading.temperature, 0)


def _states(reading: Moisture) -> Sequence[tuple[SeriesTuple, str]]:
    told = (("batch", reading.batch_id), ("product", reading.product_id))
    return [(_series(reading, kind), state) for kind, state in told if state is not None]


DOMAIN = Domain(
    name="moisture",
    topics=("moisture.readings",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Moisture,
    samples=_samples,
    states=_states,
    detectors=(RobustZScore(), SpecLimits()),
)
