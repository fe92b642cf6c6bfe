"""Sweeps: one metric of a machine, read several times, on ``sensors.sweep.readings``.

::

    {"time": "2025-08-20T03:20:00Z", "tenant_id": "t1", "factory_id": "f1", "machine_id": "mc-01",
     "metric": "temp", "unit": "degC", "readings": [{"value": 23.1}, {"value": 22.9}, {"value": 23.6}]}

Required: ``time, machine_id, metric, readings`` with at least one reading (else a dead letter ``no_readings``).
Optional: ``tenant_id, factory_id, sensor_id, unit``, and in each reading a ``time`` of its own.

* Each reading is a measurement of the metric, at its own time or else at that of the message; its sample key is its
  place among the readings.
* The message is an event ``sweep.<metric>`` of the machine at the time of the message. Its value is the mean;
  ``count, max, mean, min`` are in its properties. The same machine, metric and time again is the same event.
* A reading that is no finite number, or beyond 1e150, is a dead letter of its place and not in the summary; the other
  readings count. Where none counts, the count is 0 and the rest is null. A reading with a good value at a time that
  is not plausible is a dead letter too, but the summary holds it: it knows no arrival.

Where readings have times of their own the message is split: element 0 is the message, for its summary, and each
reading is an element of its own, which carries what they share:

``{"time": …, "tenant_id": …, …, "metric": "temp", "reading": {"value": 23.1}, "ordinal": 0}``
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import fsum, nan
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import Domain, EventTuple, PayloadError, SeriesTuple, Timed, canonical_json
from analytics_pipeline.formulas.moments import LARGEST_VALUE


class Reading(msgspec.Struct):
    """One reading that counts."""

    value: float
    time: datetime | None = None


class _OwnTime(msgspec.Struct):
    """The time of a reading as it was sent, whatever that is."""

    time: msgspec.Raw = msgspec.Raw()


class Sweep(msgspec.Struct):
    """What normalization needs to know of a message, or of an element that is one reading of it."""

    machine_id: str
    metric: str
    tenant_id: str | None = None
    factory_id: str | None = None
    sensor_id: str | None = None
    unit: str | None = None
    readings: list[msgspec.Raw] | None = None
    reading: msgspec.Raw = msgspec.Raw()
    ordinal: int = 0


class Message(msgspec.Struct):
    """What splitting needs to know."""

    time: msgspec.Raw
    readings: list[msgspec.Raw]


class _Element(msgspec.Struct, omit_defaults=True):
    """One reading with a time of its own, and what it shares with the others."""

    time: msgspec.Raw
    machine_id: str
    metric: str
    reading: msgspec.Raw
    ordinal: int
    tenant_id: str | None = None
    factory_id: str | None = None
    sensor_id: str | None = None
    unit: str | None = None


_read_message = msgspec.json.Decoder(Message).decode
_read_sweep = msgspec.json.Decoder(Sweep).decode
_read_reading = msgspec.json.Decoder(Reading).decode
_read_time = msgspec.json.Decoder(datetime).decode
_read_own_time = msgspec.json.Decoder(_OwnTime).decode


def _value(reading: msgspec.Raw) -> float:
    """The value of a reading; NaN, which the gate refuses with its place, where it has none or no readable time."""
    try:
        return _read_reading(reading).value
    except msgspec.MsgspecError:
        return nan


def _counts(value: float) -> bool:
    """Whether the gate lets a value pass; NaN is no less than anything."""
    return abs(value) <= LARGEST_VALUE


def _own_time(reading: msgspec.Raw) -> msgspec.Raw | None:
    """The time of a reading as it was sent; None: it has none, or is no object."""
    try:
        time = _read_own_time(reading).time
    except msgspec.MsgspecError:
        return None
    return time if bytes(time) not in (b"", b"null") else None


def _readings(sweep: Sweep) -> list[msgspec.Raw]:
    if sweep.readings is None:
        raise PayloadError("field_missing", "Object missing required field `readings`")
    if not sweep.readings:
        raise PayloadError("no_readings", "takes at least one reading")
    return sweep.readings


def _samples(sweep: Sweep) -> Sequence[tuple[SeriesTuple, float, int]]:
    series = (sweep.tenant_id, sweep.factory_id, sweep.machine_id, None, sweep.sensor_id, sweep.metric, sweep.unit)
    if bytes(sweep.reading):
        return ((series, _value(sweep.reading), sweep.ordinal),)
    readings = _readings(sweep)
    if any(_own_time(reading) is not None for reading in readings):
        return ()  # each is an element of its own
    return tuple((series, _value(reading), place) for place, reading in enumerate(readings))


def _events(sweep: Sweep) -> Sequence[EventTuple]:
    if bytes(sweep.reading):
        return ()
    values = [value for value in map(_value, _readings(sweep)) if _counts(value)]
    mean = fsum(values) / len(values) if values else None
    summary = {
        "count": len(values),
        "max": max(values, default=None),
        "mean": mean,
        "min": min(values, default=None),
    }
    of = (None, sweep.tenant_id, sweep.factory_id, sweep.machine_id, "machine", sweep.machine_id)
    return ((*of, f"sweep.{sweep.metric}", None, mean, canonical_json(summary)),)


def _split(payload: bytes) -> Sequence[tuple[datetime, bytes]]:
    """The message, for its summary; and where a reading has a time of its own, each of the readings."""
    message = _read_message(payload)
    whole = (_read_time(message.time), payload)
    times = [_own_time(reading) for reading in message.readings]
    if all(time is None for time in times):
        return (whole,)
    sweep = _read_sweep(payload)
    elements = [whole]
    for place, (reading, own) in enumerate(zip(message.readings, times, strict=True)):
        moment, time = _moment(own) or (whole[0], message.time)
        element = _Element(
            time=time,
            machine_id=sweep.machine_id,
            metric=sweep.metric,
            reading=reading,
            ordinal=place,
            tenant_id=sweep.tenant_id,
            factory_id=sweep.factory_id,
            sensor_id=sweep.sensor_id,
            unit=sweep.unit,
        )
        elements.append((moment, msgspec.json.encode(element)))
    return elements


def _moment(time: msgspec.Raw | None) -> tuple[datetime, msgspec.Raw] | None:
    """A time with its text; None where there is none, or it cannot be read."""
    try:
        return None if time is None else (_read_time(time), time)
    except msgspec.MsgspecError:
        return None


DOMAIN = Domain(
    name="sweep",
    topics=("sensors.sweep.readings",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Sweep,
    samples=_samples,
    events=_events,
    split=_split,
    event_identity=("tenant_id", "factory_id", "machine_id", "entity_type", "entity_id", "event_type"),
    detectors=(RobustZScore(), SpecLimits()),
)
