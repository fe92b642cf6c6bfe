"""The registry of domains: finds those of the files here, of the settings and of other installed packages.

A file here holds one ``DOMAIN``, or several ``DOMAINS``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.metadata import EntryPoint, entry_points

from analytics_pipeline.domains.base import ENTRY_POINTS, Domain
from analytics_pipeline.domains.event_domains import event_domain
from analytics_pipeline.errors import DomainCollisionError, DomainPackageError, SettingsError
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
        """The domains of some topics, ``{topic: domain name}``, on these instead of their own. For tests."""
        moved = tuple(
            replace(domain, topics=tuple(topic for topic, name in topics.items() if name == domain.name))
            for domain in self.domains
            if domain.name in topics.values()
        )
        return Registry(moved, tuple(topics))


@lru_cache(maxsize=1)
def discover() -> tuple[Domain, ...]:
    """Every domain of the modules beside this one and of other installed packages, by name.

    Raises:
        DomainPackageError: an entry point of another package cannot be loaded, or is no domain.
    """
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    here = [domain for module in modules for domain in getattr(module, "DOMAINS", (getattr(module, "DOMAIN", None),))]
    found = [*(domain for domain in here if domain is not None), *installed()]
    return tuple(sorted(found, key=lambda domain: domain.name))


def installed() -> list[Domain]:
    """The domains that other installed packages bring under the entry points of `ENTRY_POINTS`.

    Raises:
        DomainPackageError: one cannot be loaded, or is no domain; names the package.
    """
    return [_loaded(point) for point in entry_points(group=ENTRY_POINTS)]


def _loaded(point: EntryPoint) -> Domain:
    package = point.dist.name if point.dist else "an installed package"
    where = f"entry point {point.name!r} of {package} ({point.value})"
    try:
        domain = point.load()
    except Exception as error:
        raise DomainPackageError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}; correct that package, or uninstall it"
        ) from error
    if not isinstance(domain, Domain):
        raise DomainPackageError(
            f"{where} is a {type(domain).__name__}, not a Domain; name the object, as in 'module:DOMAIN'"
        )
    return domain


def registry_for(settings: Settings, available: Iterable[Domain] | None = None) -> Registry:
    """The domains and topics that the settings enable.

    Args:
        available: instead of those that are discovered.

    Raises:
        SettingsError: ``DOMAINS_ENABLED`` or ``DOMAIN_DEFAULTS`` names a domain that does not exist.
        DomainCollisionError: two domains have one name, or two of those that are enabled claim one topic.
    """
    configured = [event_domain(name, topics) for name, topics in settings.event_domains.items()]
    every = (*(discover() if available is None else available), *configured)
    names = {domain.name for domain in every}
    for variable, named in (
        ("DOMAINS_ENABLED", settings.domains_enabled),
        ("DOMAIN_DEFAULTS", list(settings.domain_defaults)),
    ):
        unknown = sorted(set(named) - names)
        if unknown:
            raise SettingsError(f"{variable}: got {', '.join(unknown)}, takes any of {', '.join(sorted(names))}")
    enabled = tuple(
        _with_settings(domain, settings)
        for domain in every
        if not settings.domains_enabled or domain.name in settings.domains_enabled
    )
    topics = tuple(settings.kafka_topics) or tuple(topic for d in enabled for topic in d.topics)
    return Registry(enabled, topics)


def _with_settings(domain: Domain, settings: Settings) -> Domain:
    """A domain with the time zone and the defaults that the settings give it; unchanged where they give none."""
    zone = settings.domain_time_zones.get(domain.name)
    given = settings.domain_defaults.get(domain.name)
    if zone is not None:
        domain = replace(domain, time_zone=zone)
    return domain if given is None else replace(domain, defaults=domain.defaults._replace(**given))
