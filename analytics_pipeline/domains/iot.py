"""Decoded data of IoT gateways, on ``decoded_iot_data``: the fields of the sink that wrote ``iot_measurements``.

::

    {"timestamp": "2025-08-20T03:12:00Z", "mac_address": "a4:cf:12:0b:7e:01", "mode": "modbus",
     "data_point_label": "temperature", "pin": "4", "value": "23.7", "unit": "degC", "original_topic": "plant/l1/raw"}

Each field has two spellings; where both are there, the second one counts, unless it is null:

* ``device_id`` or ``mac_address``: required, text or number. The series' machine.
* ``connector_mode`` or ``mode``: ``unknown`` by default. The series' station: what the device is attached by.
* ``component_type`` or ``data_point_label``: ``unknown`` by default. The series' metric.
* ``pin_position`` or ``pin``: ``-1`` by default, text or number. The series' sensor.
* ``topic`` or ``original_topic``, and ``unit``: empty by default. Not part of the series: what the last message said
  is kept in ``series_attributes``.

``timestamp`` is required: ISO 8601, or seconds, milliseconds or microseconds since 1970 as a number or text, told apart
by their size: below 1e11 seconds (the year 5138), below 1e14 milliseconds, else microseconds.

``value`` is a number, or text that is one; true and false are 1 and 0. Where it is null, absent or anything else,
there is no value: the sample is bad, and its value NaN. Optional: ``tenant_id, factory_id``; gateways know no tenant,
so set ``DOMAIN_DEFAULTS``.

It becomes a measurement. The view ``iot_measurements`` has the columns of the table that the sink wrote.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite, isnan, nan
from typing import Any

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import BAD, GOOD, Domain, PayloadError, SeriesTuple, canonical_json

_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Up to where a number is seconds, milliseconds, microseconds; and how many microseconds one of them has.
_UNITS = ((10**11, 1_000_000), (10**14, 1000), (10**17, 1))

Name = str | int | None


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    timestamp: str | int | float


class Decoded(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    device_id: Name = None
    mac_address: Name = None
    connector_mode: Name = None
    mode: Name = None
    component_type: Name = None
    data_point_label: Name = None
    pin_position: Name = None
    pin: Name = None
    topic: str | None = None
    original_topic: str | None = None
    unit: str | None = None
    value: Any = None
    tenant_id: str | None = None
    factory_id: str | None = None


def event_time(envelope: Envelope) -> datetime:
    """The moment that a timestamp means; without a zone where it has none.

    Raises:
        PayloadError: ``field_invalid``.
    """
    given = envelope.timestamp
    try:
        if isinstance(given, str):
            if not _NUMBER.fullmatch(given):
                return datetime.fromisoformat(given)
            given = int(given) if given.strip().lstrip("+-").isdecimal() else float(given)
        factor = next(factor for limit, factor in _UNITS if abs(given) < limit)
        return _EPOCH + timedelta(microseconds=round(given * factor))
    except (ValueError, OverflowError, StopIteration):
        said = f"takes ISO 8601, or s, ms or us since 1970, got {envelope.timestamp!r} - at `$.timestamp`"
        raise PayloadError("field_invalid", said) from None


def value_of(value: Any) -> float:
    """The number that a value is; NaN where it is none.

    >>> value_of(23), value_of(" 2.5e1 "), value_of(True), value_of("n/a"), value_of(None)
    (23.0, 25.0, 1.0, nan, nan)
    """
    try:
        if isinstance(value, (int, float)) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
            number = float(value)
            return number if isfinite(number) else nan
    except OverflowError:
        pass
    return nan


def _name(alias: Name, plain: Name, default: str) -> str:
    if alias is not None:
        return str(alias)
    return default if plain is None else str(plain)


def _series(decoded: Decoded) -> SeriesTuple:
    if decoded.mac_address is None and decoded.device_id is None:
        raise PayloadError("field_missing", "Object missing required field `mac_address` or `device_id`")
    return (
        decoded.tenant_id,
        decoded.factory_id,
        _name(decoded.mac_address, decoded.device_id, ""),
        _name(decoded.mode, decoded.connector_mode, "unknown"),
        _name(decoded.pin, decoded.pin_position, "-1"),
        _name(decoded.data_point_label, decoded.component_type, "unknown"),
        None,
    )


def _samples(decoded: Decoded) -> tuple[tuple[SeriesTuple, float, int, int]]:
    value = value_of(decoded.value)
    return ((_series(decoded), value, 0, BAD if isnan(value) else GOOD),)


def _attributes(decoded: Decoded) -> tuple[tuple[SeriesTuple, str]]:
    topic = decoded.topic if decoded.original_topic is None else decoded.original_topic
    return ((_series(decoded), _attributes_text(topic or "", decoded.unit or "")),)


@lru_cache(maxsize=4096)  # few and the same, message for message
def _attributes_text(topic: str, unit: str) -> str:
    attributes = canonical_json({"topic": topic, "unit": unit})
    if "\\u0000" in attributes:
        raise PayloadError("nul_character", f"topic or unit hold NUL: {attributes}")
    return attributes


DOMAIN = Domain(
    name="iot",
    topics=("decoded_iot_data",),
    envelope=Envelope,
    event_time=event_time,
    payload=Decoded,
    samples=_samples,
    rated=True,
    series_attributes=_attributes,
    detectors=(RobustZScore(), SpecLimits()),
)
