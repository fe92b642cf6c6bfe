"""Test domains, one file each, as the plug-ins of the product are: they prove what the derived side must carry.

They are given to a pipeline by `open_domains`; the product never discovers them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from analytics_pipeline.domains import Domain, Registry
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline_tests.conftest import DatabaseServer
from analytics_pipeline_tests.environments import Environment, create_topics, open_topics
from analytics_pipeline_tests.pipeline import Pipeline


@contextmanager
def open_domains(
    server: DatabaseServer, brokers: str, domains: Sequence[Domain], *, partitions: int = 1, **options: Any
) -> Iterator[Environment]:
    """A fresh database and, for each domain, a topic of its own: `topic_of` names it."""
    topics = _topics_of(domains)
    with open_topics(
        server, brokers, topics, lambda _: registry_of(domains, topics), partitions=partitions, **options
    ) as env:
        yield env


def _topics_of(domains: Sequence[Domain]) -> dict[str, str]:
    return {f"test.{domain.name}.{uuid.uuid4().hex[:12]}": domain.name for domain in domains}


#: Not emptied between tests of one database: what the migration wrote.
KEPT = {"schema_migration", "pipeline_setting", "input_version", "master_data_table"}
#: Emptying a table of master data is an edit, whose notes are read at the commit.
KEPT |= {"master_data_edit", "master_data_commit"}


def begin_anew(env: Environment, domains: Sequence[Domain] | None = None, *, partitions: int = 1) -> None:
    """Another test on the same database: empty tables, new topics, a process that knows of nothing."""
    domains = [*(env.pipeline.registry.domains if domains is None else domains)]
    topics = _topics_of(domains)
    create_topics(env.settings.kafka_brokers, list(topics), partitions)
    env.pipeline.close()
    values = env.settings.model_copy(update={"kafka_topics": list(topics)})
    engine = engine_for(env.settings)
    with connection(engine) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        names = ", ".join(sorted({row[0] for row in cursor.fetchall()} - KEPT))
        cursor.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        cursor.executemany(
            "INSERT INTO domain_topic (domain, topic) VALUES (%s, %s)", [(n, t) for t, n in topics.items()]
        )
        conn.commit()
    env.settings, env.topics, env.sent = values, topics, []
    env.pipeline = Pipeline(values, engine, registry_of(domains, topics))


def registry_of(domains: Sequence[Domain], topics: dict[str, str]) -> Registry:
    """These domains on these topics: ``{topic: domain name}``."""
    return Registry(tuple(domains), tuple(topics)).with_topics(topics)


def topic_of(env: Environment, domain: str) -> str:
    """The topic of one domain."""
    return next(topic for topic, name in env.topics.items() if name == domain)


def with_domain(env: Environment, changed: Domain) -> Pipeline:
    """Another worker on the same database, whose code of one domain is another."""
    domains = [
        replace(changed, topics=one.topics) if one.name == changed.name else one
        for one in env.pipeline.registry.domains
    ]
    registry = Registry(tuple(domains), env.pipeline.registry.topics)
    return Pipeline(env.settings, env.pipeline.engine, registry)
