"""Ten domains to measure with: copies of sensor, each on a topic of its own. Not part of the product."""

from __future__ import annotations

from dataclasses import replace

from analytics_pipeline.domains import Registry
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR

DOMAINS = 10


def registry_of(count: int) -> Registry:
    """So many copies of sensor; the first is sensor itself."""
    domains = tuple(
        replace(SENSOR, name=domain_name(number), topics=(topic_name(number),)) for number in range(count)
    )
    return Registry(domains, tuple(topic for domain in domains for topic in domain.topics))


def domain_name(number: int) -> str:
    """The name of the copy; of number 0 the original's."""
    return f"{SENSOR.name}_{number}" if number else SENSOR.name


def topic_name(number: int) -> str:
    """The topic of the copy; of number 0 the original's."""
    return f"{SENSOR.topics[0]}.{number}" if number else SENSOR.topics[0]
