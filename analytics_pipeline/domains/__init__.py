"""The registry of domains: finds every file here that holds a ``DOMAIN``, and answers by name and by topic."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from analytics_pipeline.domains.base import Domain
from analytics_pipeline.errors import DomainCollisionError, SettingsError
from analytics_pipeline.settings import Settings

__all__ = ["Domain", "Registry", "discover", "registry_for"]


@dataclass(frozen=True)
class Registry:
    """The enabled domains.

    Raises:
        DomainCollisionError: two domains claim one name or one topic; names both.
    """

    domains: tuple[Domain, ...]
    #: Topics to drain; one that no domain claims gives dead letters with the reason ``unknown_topic``.
    topics: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: dict[str, Domain] = {}
        for domain in self.domains:
            for claim in (f"name {domain.name!r}", *(f"topic {topic!r}" for topic in domain.topics)):
                if claim in seen:
                    other = seen[claim]
                    raise DomainCollisionError(
                        f"domains {other.name!r} ({other.payload.__module__}) and {domain.name!r} "
                        f"({domain.payload.__module__}) both claim the {claim}; rename one of them"
                    )
                seen[claim] = domain

    def __iter__(self) -> Iterator[Domain]:
        return iter(self.domains)

    @cached_property
    def by_name(self) -> Mapping[str, Domain]:
        return {domain.name: domain for domain in self.domains}

    @cached_property
    def by_topic(self) -> Mapping[str, Domain]:
        return {topic: domain for domain in self.domains for topic in domain.topics}

    @cached_property
    def domain_topics(self) -> Mapping[str, tuple[str, ...]]:
        return {domain.name: domain.topics for domain in self.domains}

    def with_topics(self, topics: Mapping[str, str]) -> Registry:
        """The same domains on other topics: ``{topic: domain name}``. For tests and renamed topics."""
        moved = tuple(
            replace(domain, topics=tuple(topic for topic, name in topics.items() if name == domain.name))
            for domain in self.domains
        )
        return Registry(moved, tuple(topics))


@lru_cache(maxsize=1)
def discover() -> tuple[Domain, ...]:
    """Every ``DOMAIN`` of the modules beside this one, by name."""
    modules = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
        if module.name != "base"
    )
    return tuple(sorted((module.DOMAIN for module in modules), key=lambda domain: domain.name))


def registry_for(settings: Settings, available: Iterable[Domain] | None = None) -> Registry:
    """The domains and topics that the settings enable.

    Raises:
        SettingsError: ``DOMAINS_ENABLED`` names a domain that does not exist.
    """
    every = tuple(discover() if available is None else available)
    names = {domain.name for domain in every}
    unknown = sorted(set(settings.domains_enabled) - names)
    if unknown:
        raise SettingsError(f"DOMAINS_ENABLED: got {', '.join(unknown)}, takes any of {', '.join(sorted(names))}")
    enabled = tuple(d for d in every if not settings.domains_enabled or d.name in settings.domains_enabled)
    zones = settings.domain_time_zones
    enabled = tuple(replace(d, time_zone=zones[d.name]) if d.name in zones else d for d in enabled)
    topics = tuple(settings.kafka_topics) or tuple(topic for d in enabled for topic in d.topics)
    return Registry(enabled, topics)
