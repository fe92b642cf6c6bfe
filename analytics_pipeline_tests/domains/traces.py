"""Messages that carry samples of many times, which the drain splits into plain readings.

::

    {"shared": {"machine_id": "m-1", "sensor_id": "s-1"}, "samples": [["2025-08-20T03:12:00+00:00", 1.5]]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from analytics_pipeline.domains.sensor import DOMAIN as SENSOR
from analytics_pipeline_tests.pipeline import reading


class Trace(msgspec.Struct):
    """A message: what its readings share, and each one's time and value."""

    shared: dict[str, str]
    samples: list[tuple[str, Any]]


def split(payload: bytes) -> list[tuple[datetime, bytes]]:
    """The readings of a trace, each with its time."""
    trace = msgspec.json.decode(payload, type=Trace)
    return [
        (msgspec.convert(time, datetime, strict=False), reading(time, value, **trace.shared))
        for time, value in trace.samples
    ]


def message(samples: Sequence[tuple[datetime, Any]], **shared: str) -> bytes:
    """A trace of one series."""
    return json.dumps({"shared": shared, "samples": [[time.isoformat(), value] for time, value in samples]}).encode()


DOMAIN = replace(SENSOR, name="traces", topics=("traces",), split=split)
