"""Counters that only grow until they are reset: plain measurements for now, whose longest gap passes an hour.

::

    {"time": "2025-08-20T03:12:00Z", "line": "l-1", "counter": "pieces", "count": 1204}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from operator import attrgetter

import msgspec

from analytics_pipeline.domains.base import Domain, SeriesTuple


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Count(msgspec.Struct):
    """What normalization needs to know."""

    line: str
    counter: str
    count: int


def _samples(payload: Count) -> tuple[tuple[SeriesTuple, float, int]]:
    series = (None, None, payload.line, None, None, payload.counter, "1")
    return ((series, float(payload.count), 0),)


def with_resets(steps: Iterable[int], capacity: int) -> Iterator[int]:
    """What a counter of some capacity shows after each step: it begins at zero again when it is full."""
    shown = 0
    for step in steps:
        shown = (shown + step) % capacity
        yield shown


def message(time: datetime, count: int, line: str = "l-1") -> bytes:
    return msgspec.json.encode({"time": time, "line": line, "counter": "pieces", "count": count})


DOMAIN = Domain(
    name="counters",
    topics=("counters",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Count,
    samples=_samples,
    longest_gap_s=3 * 3600,
)
