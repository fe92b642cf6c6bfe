"""The pipeline's own drain and deriver as production composes them, one process each; Dagster stays out.

Each function here is a ``prepare`` of ``processes.Worker``: it warms its process up and returns the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from typing import Any

import psycopg2

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.domains import Registry, registry_for
from analytics_pipeline.quality.gates import warm_up
from analytics_pipeline.records import DERIVED, HOUR, Mode, hour_of
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline.storage.pending_work import actionable_hours
from benchmarks.copies import registry_of
from benchmarks.payloads import FACTORY, TOPIC, Stream
from benchmarks.stack import Stack

DOMAIN = "sensor"
RUN_ID = "benchmark"
#: What workers warm up with.
WARM_TOPIC, WARM_EVENTS, WARM_RATE_PER_S = "benchmarks.warm-up", 2_000, 100
#: Between two looks when nothing was pending.
IDLE_S = 0.02

Work = Callable[..., Any]


@dataclass(frozen=True)
class Counts:
    """What the tables hold of the measured stream."""

    raw: int
    normalized: int
    in_windows: int
    in_kpis: int
    dead_letters: int
    pending: int

    def hold_to(self, count: int) -> None:
        """Every message is in every table once, and nothing is pending.

        Raises:
            RuntimeError: names what differs.
        """
        expected = Counts(count, count, count, count, 0, 0)
        if self != expected:
            raise RuntimeError(f"the pipeline holds {self}, expected {expected}")


def registry(settings: Settings, domains: int = 1) -> Registry:
    """The product's domains, or so many copies of sensor."""
    return registry_of(domains) if domains > 1 else registry_for(settings)


def migrated(
    stack: Stack, database: dict[str, Any], brokers: str = "127.0.0.1:9", *, domains: int = 1
) -> Settings:
    """Settings for a database that now has the schema. Without a broker given, nothing may drain."""
    settings = stack.settings(database, brokers)
    migrate(settings, registry(settings, domains).domain_topics)
    return settings


def warm_up_stream() -> Stream:
    """To be produced to `WARM_TOPIC` before the workers are prepared, on a database of its own."""
    return Stream(hour_of(datetime.now(UTC)) - HOUR, WARM_RATE_PER_S, WARM_EVENTS)


def _warm_registry(registry: Registry) -> Registry:
    return registry.with_topics({WARM_TOPIC: DOMAIN})


def make_deriver(settings: Settings, domains: int = 1) -> Deriver:
    """Of this process."""
    return Deriver(settings, engine_for(settings), registry(settings, domains))


def drain_backlog(warm: Settings, drained: Event) -> Work:
    """Tick until ``count`` messages are in. The consumer begins cold: nothing was fetched ahead."""
    warm_up()
    drain = Drain(warm, engine_for(warm), _warm_registry(registry_for(warm)))
    drain_messages(drain, WARM_EVENTS)
    drain.close()
    drained.set()

    def work(settings: Settings, count: int, domains: int = 1) -> int:
        drain = Drain(settings, engine_for(settings), registry(settings, domains))
        try:
            return drain_messages(drain, count)
        finally:
            drained.set()
            drain.close()

    return work


def drain_messages(drain: Drain, count: int) -> int:
    """Tick until so many messages are in; returns the batches."""
    messages = batches = 0
    while messages < count:
        outcome = drain.tick(datetime.now(UTC))
        messages, batches = messages + outcome.messages, batches + outcome.batches
    return batches


def derive_pending(warm: Settings, drained: Event) -> Work:
    """Do what is pending, over and over, until the drain is done and nothing is left."""
    warm_up()
    drained.wait()
    _work_off(warm, Deriver(warm, engine_for(warm), _warm_registry(registry_for(warm))))

    def work(settings: Settings, domains: int = 1) -> int:
        deriver, rounds = make_deriver(settings, domains), 0
        while True:
            last = drained.is_set()
            rounds += (done := _work_off(settings, deriver))
            if last and not done:
                return rounds
            if not done:
                time.sleep(IDLE_S)

    return work


def finish_pending(settings: Settings, domains: int = 1) -> None:
    """Do what is pending until nothing is, in this process."""
    deriver = make_deriver(settings, domains)
    while _work_off(settings, deriver):
        pass


def work_off(settings: Settings, domains: int = 1) -> Work:
    """Do what is pending until nothing is; returns the seconds of each pass over the assets."""
    warm_up()
    deriver = make_deriver(settings, domains)

    def work() -> list[float]:
        passes: list[float] = []
        while True:
            began_s = time.monotonic()
            if not _work_off(settings, deriver):
                return passes
            passes.append(time.monotonic() - began_s)

    return work


def _work_off(settings: Settings, deriver: Deriver) -> int:
    """One look at pending work, and a run of what it names; returns the hours."""
    with connection(engine_for(settings)) as conn:
        hours = actionable_hours(conn)
    if hours:
        derive_pass(deriver, [one.hour for one in hours])
    return len(hours)


def derive_pass(deriver: Deriver, hours: Sequence[datetime]) -> int:
    """The run that the sensor asks for: one asset after the other, each over all hours; returns rows written."""
    return _derive(deriver, hours, "incremental")


def recompute_hours(settings: Settings, domains: int = 1) -> Work:
    """The run of a backfilled range: one asset after the other, each over all hours, replaced as a whole."""
    warm_up()
    deriver = make_deriver(settings, domains)
    return lambda hours: _derive(deriver, hours, "full")


def _derive(deriver: Deriver, hours: Sequence[datetime], mode: Mode) -> int:
    """Returns rows written.

    Raises:
        RuntimeError: a domain was quarantined, or an hour was left out.
    """
    rows = 0
    for asset in DERIVED:
        done = deriver.derive_hours(asset, hours, mode, RUN_ID)
        if done.errors:
            raise done.errors[0].error
        if done.busy or done.expired:
            raise RuntimeError(f"{asset}: {len(done.busy)} domain partitions busy, {len(done.expired)} expired")
        for outcome in done.outcomes:
            if outcome.quarantined:
                raise RuntimeError(f"{asset} of {outcome.hour}: quarantined")
            rows += sum(domain.written for domain in outcome.domains)
    return rows


def counts(database: dict[str, Any]) -> Counts:
    """What the tables hold of the topics and factory of the measured stream."""
    query = """
        WITH mine AS (SELECT series_id FROM measurement_series WHERE factory_id = %(factory)s)
        SELECT (SELECT count(*) FROM raw_events WHERE starts_with(topic, %(topic)s)),
               (SELECT count(*) FROM normalized_measurements JOIN mine USING (series_id)),
               (SELECT coalesce(sum(count_n), 0) FROM window_aggregates JOIN mine USING (series_id)
                WHERE window_s = 3600),
               (SELECT coalesce(sum(value), 0) FROM kpis
                WHERE kpi = 'messages' AND window_s = 3600 AND factory_id = %(factory)s),
               (SELECT count(*) FROM dead_letters),
               (SELECT count(*) FROM pending_work)
    """
    conn = psycopg2.connect(**database, options="-c search_path=analytics,public")
    try:
        with conn.cursor() as cursor:
            cursor.execute(query, {"factory": FACTORY, "topic": TOPIC})
            return Counts(*map(int, cursor.fetchone()))
    finally:
        conn.close()
