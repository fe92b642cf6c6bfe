"""Copies of the sensor domain on topics of their own: many domains, one kind of data."""

from __future__ import annotations

from dataclasses import replace

from analytics_pipeline.domains import Domain
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR


def copy(name: str) -> Domain:
    """The sensor domain under another name."""
    return replace(SENSOR, name=name, topics=(name,))


PRESS = copy("press")
OVEN = copy("oven")
