"""Test domains, one file each, as the plug-ins of the product are: they prove what the derived side must carry.

They are given to a pipeline by `open_domains`; the product never discovers them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from confluent_kafka import Producer

from analytics_pipeline.domains import Domain, Registry
from analytics_pipeline.settings import load_settings
from analytics_pipeline.storage.engine import engine_for
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline_tests.conftest import DatabaseServer, _drop
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.worlds import MAX_MESSAGE_BYTES, World, create_topics


@contextmanager
def open_domains(
    server: DatabaseServer, brokers: str, domains: Sequence[Domain], *, partitions: int = 1, **options: Any
) -> Iterator[World]:
    """A fresh database and, for each domain, a topic of its own: `topic_of` names it."""
    topics = {f"test.{domain.name}.{uuid.uuid4().hex[:12]}": domain.name for domain in domains}
    create_topics(brokers, list(topics), partitions)
    database = f"test_{uuid.uuid4().hex[:16]}"
    server.execute(f"CREATE DATABASE {database}")
    settings = load_settings(
        _env_file=None,
        db_host=server.host,
        db_port=server.port,
        db_user=server.user,
        db_password=server.password,
        db_name=database,
        kafka_brokers=brokers,
        kafka_topics=list(topics),
        **options,
    )
    producer = Producer({"bootstrap.servers": brokers, "message.max.bytes": MAX_MESSAGE_BYTES, "log_level": 2})
    registry = registry_of(domains, topics)
    try:
        migrate(settings, registry.domain_topics)
        world = World(settings, topics, Pipeline(settings, engine_for(settings), registry), producer)
        try:
            yield world
        finally:
            world.pipeline.close()
    finally:
        engine_for(settings).dispose()
        _drop(server, database)


def registry_of(domains: Sequence[Domain], topics: dict[str, str]) -> Registry:
    """These domains on these topics: ``{topic: domain name}``."""
    return Registry(tuple(domains), tuple(topics)).with_topics(topics)


def topic_of(world: World, domain: str) -> str:
    """The topic of one domain."""
    return next(topic for topic, name in world.topics.items() if name == domain)


def with_domain(world: World, changed: Domain) -> Pipeline:
    """Another worker on the same database, whose code of one domain is another."""
    domains = [
        replace(changed, topics=one.topics) if one.name == changed.name else one
        for one in world.pipeline.registry.domains
    ]
    registry = Registry(tuple(domains), world.pipeline.registry.topics)
    return Pipeline(world.settings, world.pipeline.engine, registry)
