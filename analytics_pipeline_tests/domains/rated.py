"""Samples that carry their quality: bad, uncertain, and values that are only known to lie below or above another.

::

    {"time": "2025-08-20T03:12:00Z", "station": "st-1", "metric": "lead", "value": "<0.05", "quality": "good"}

A value that is null, absent or no number is a bad sample without a value.
"""

from __future__ import annotations

import math
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal

import msgspec

from analytics_pipeline.detectors.robust_zscore import RobustZScore
from analytics_pipeline.detectors.spec_limits import SpecLimits
from analytics_pipeline.domains.base import ABOVE, BAD, BELOW, GOOD, UNCERTAIN, Domain, RatedTuple

_QUALITIES = {"good": GOOD, "uncertain": UNCERTAIN, "bad": BAD, "nonsense": 7}
QualityName = Literal["good", "uncertain", "bad", "nonsense"]
_QUALIFIERS = {"<": BELOW, ">": ABOVE}
GAP_S = 300


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Rated(msgspec.Struct):
    """What normalization needs to know."""

    station: str
    metric: str
    value: float | str | None = None
    quality: QualityName = "good"


def _samples(payload: Rated) -> tuple[RatedTuple]:
    series = (None, None, payload.station, None, None, payload.metric, None)
    value, quality = payload.value, _QUALITIES[payload.quality]
    if isinstance(value, str) and value[:1] in _QUALIFIERS:
        value, quality = value[1:], _QUALIFIERS[value[0]]
    try:
        number = math.nan if value is None else float(value)
    except ValueError:
        number = math.nan
    return ((series, number, 0, BAD if math.isnan(number) else quality),)


def message(time: datetime, value: Any, quality: str = "good", station: str = "st-1") -> bytes:
    """One sample."""
    content = {"time": time, "station": station, "metric": "lead", "value": value, "quality": quality}
    return msgspec.json.encode(content)


DOMAIN = Domain(
    name="rated",
    topics=("rated",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Rated,
    samples=_samples,
    rated=True,
    detectors=(RobustZScore(), SpecLimits()),
    longest_gap_s=GAP_S,
)
