"""What a domain is: its topics, how its payloads are read, how they are judged. Pure; no IO, no clock.

Adding a domain is adding one file beside this one that holds ``DOMAIN = Domain(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, NamedTuple

import msgspec

from analytics_pipeline.detectors.base import Detector


class SeriesKey(NamedTuple):
    """What identifies a series of measurements. ``None``: the domain has no such thing."""

    tenant_id: str | None
    factory_id: str | None
    machine_id: str | None
    station_id: str | None
    sensor_id: str | None
    metric: str
    unit: str | None


class Sample(NamedTuple):
    """One measurement of a message. Its time is the message's event time."""

    series: SeriesKey
    value: float
    sample_key: int = 0


@dataclass(frozen=True)
class Domain:
    """One kind of data.

    Attributes:
        name: as in ``DOMAINS_ENABLED`` and in the column ``domain``.
        topics: Kafka topics that carry it.
        envelope: the struct that the drain decodes: just what gives the event time.
        event_time: from a decoded envelope. A result without a zone takes ``time_zone``.
        payload: the struct that normalization decodes.
        samples: the measurements of a payload, in a stable order.
        detectors: judge the base windows.
        max_failed_ratio: above this share of failed rows, a (domain, hour) is quarantined …
        min_gate_rows: … once it holds this many rows: two bad rows of three say little.
        time_zone: of event times that carry none.
    """

    name: str
    topics: tuple[str, ...]
    envelope: type[msgspec.Struct]
    event_time: Callable[[Any], datetime]
    payload: type[msgspec.Struct]
    samples: Callable[[Any], Sequence[Sample]]
    detectors: tuple[Detector, ...] = ()
    max_failed_ratio: float = 0.5
    min_gate_rows: int = 100
    time_zone: tzinfo = UTC
