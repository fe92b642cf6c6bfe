"""Counters of production lines, with everything that a counter does but count: resets, roll-overs, swaps, silence.

::

    {"time": "2025-08-20T03:12:00Z", "line": "l-1", "counter": "pieces", "count": 1204}

Of ``pieces`` modulus and rate are declared, of ``strokes`` the modulus, of ``cycles`` the rate, of others nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec

from analytics_pipeline.domains.base import CounterLimits, Domain, SeriesTuple


class Envelope(msgspec.Struct):
    """What the drain needs to know."""

    time: datetime


class Count(msgspec.Struct):
    """What normalization needs to know."""

    line: str
    counter: str
    count: int | float


def _series(payload: Count) -> SeriesTuple:
    return (None, None, payload.line, None, None, payload.counter, "1")


def _counters(payload: Count) -> tuple[tuple[SeriesTuple, Any]]:
    return ((_series(payload), payload.count),)


def _samples(payload: Count) -> tuple[tuple[SeriesTuple, float, int]]:
    return ((_series(payload), float(payload.count), 0),)


def with_resets(steps: Iterable[int], capacity: int) -> Iterator[int]:
    """What a counter of some capacity shows after each step: it begins at zero again when it is full."""
    shown = 0
    for step in steps:
        shown = (shown + step) % capacity
        yield shown


def message(time: datetime, count: Any, line: str = "l-1", counter: str = "pieces") -> bytes:
    return msgspec.json.encode({"time": time, "line": line, "counter": counter, "count": count})


DOMAIN = Domain(
    name="counters",
    topics=("counters",),
    envelope=Envelope,
    event_time=attrgetter("time"),
    payload=Count,
    counters=_counters,
    counter_limits=(
        CounterLimits("pieces", modulus=1000, max_rate_per_s=1.0),
        CounterLimits("strokes", modulus=1000),
        CounterLimits("cycles", max_rate_per_s=0.3),
    ),
)

#: The same, with samples beside them, which hold for hours.
GAUGED = replace(DOMAIN, name="slow", topics=("slow",), samples=_samples, longest_gap_s=3 * 3600)
