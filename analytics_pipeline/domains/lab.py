"""Results of the laboratory, on ``lab.results``: one analyte of one sample.

::

    {"time": "2025-08-20T03:25:00Z", "tenant_id": "t1", "factory_id": "f1", "station_id": "lab-01",
     "sample_id": "S-8892", "replicate": 1, "analyte": "Moisture", "value": 12.4, "unit": "%"}

Required: ``time, station_id, sample_id, analyte, value``. Optional: ``tenant_id, factory_id, replicate`` (text or
whole number, of several determinations of one sample at one time), ``unit`` (of the value; it belongs to the series).

It becomes a measurement of the metric ``analyte`` of the station. The sample is not part of the series: the sample key
is a hash of sample id and replicate, and the table ``sample_names`` says what it stands for. The same station, sample,
analyte, time and replicate again replaces what was there; another time is another determination.

``value`` is a number, or text: a number, and before it what says on which side of it the true value lies: ``"<0.05"``
(below the limit of detection), ``">100"``, also ``<=`` and ``>=``. The number is stored with the quality below or
above: windows count it as censored. Text that is no such number is a dead letter ``value_not_a_number``.
"""

from __future__ import annotations

import re
from operator import attrgetter

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import (
    ABOVE,
    BELOW,
    GOOD,
    Domain,
    PayloadError,
    SeriesTuple,
    Timed,
    sample_key_of,
)

#: Bytes of a sample id, as of every other name.
MAX_NAME_BYTES = 256

_QUALIFIED = re.compile(r"\s*([<>]?)=?\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)


class Result(msgspec.Struct):
    """What normalization needs to know; the time is the raw event's."""

    station_id: str
    sample_id: str | int
    analyte: str
    value: float | str
    tenant_id: str | None = None
    factory_id: str | None = None
    replicate: str | int | None = None
    unit: str | None = None


def qualified(value: float | str) -> tuple[float, int]:
    """The number of a result, and its quality: whether the true value lies below or above.

    >>> from analytics_pipeline.domains.base import QUALITIES
    >>> [(value, QUALITIES[quality]) for value, quality in map(qualified, ("<0.05", ">= 100", "12.4", 12.4))]
    [(0.05, 'below'), (100.0, 'above'), (12.4, 'good'), (12.4, 'good')]

    Raises:
        PayloadError: ``value_not_a_number``.
    """
    if isinstance(value, (int, float)):
        return float(value), GOOD
    found = _QUALIFIED.fullmatch(value)
    if found is None:
        raise PayloadError("value_not_a_number", f"value: takes a number, or text such as '<0.05', got {value!r}")
    return float(found[2]), {"<": BELOW, ">": ABOVE}.get(found[1], GOOD)


def _name(field: str, value: str | int) -> str:
    name = str(value)
    if not name:
        raise PayloadError("name_empty", f"{field} is empty")
    if "\0" in name:
        raise PayloadError("nul_character", f"{field} holds NUL: {name!r}")
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise PayloadError("name_too_long", f"{field} has {size} bytes, at most {MAX_NAME_BYTES} are taken")
    return name


def _sample(result: Result) -> tuple[str, str | None]:
    replicate = result.replicate
    return _name("sample_id", result.sample_id), None if replicate is None else _name("replicate", replicate)


def _samples(result: Result) -> tuple[tuple[SeriesTuple, float, int, int]]:
    series = (result.tenant_id, result.factory_id, None, result.station_id, None, result.analyte, result.unit)
    value, quality = qualified(result.value)
    return ((series, value, sample_key_of(*_sample(result)), quality),)


def _sample_names(result: Result) -> tuple[tuple[int, str, str | None]]:
    sample_id, replicate = _sample(result)
    return ((sample_key_of(sample_id, replicate), sample_id, replicate),)


DOMAIN = Domain(
    name="lab",
    topics=("lab.results",),
    envelope=Timed,
    event_time=attrgetter("time"),
    payload=Result,
    samples=_samples,
    rated=True,
    sample_names=_sample_names,
    detectors=(RobustZScore(), SpecLimits()),
)
