"""The ground on which a scenario plays: servers that may fail, the pipeline, and what was sent and read.

Not here: what the actors do (scenario.py, scenario_operators.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.domains import registry_for
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, Mode
from analytics_pipeline.settings import load_settings
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.migrate import migrate
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline.storage.retention import expire
from analytics_pipeline_tests.conftest import KafkaServer
from analytics_pipeline_tests.domains.intermittent import Switch
from analytics_pipeline_tests.environments import Environment, Sent
from analytics_pipeline_tests.fault_points import FaultPoint, InterruptedByTestError, faulty_engine
from analytics_pipeline_tests.pipeline import Pipeline
from analytics_pipeline_tests.scenario_messages import RETENTION_DAYS, where

#: So that a window of two hours begins before the stream, and one inside of it.
START = datetime(2026, 3, 3, 1, tzinfo=UTC)
HOURS = 4
#: With which each example begins.
WINDOWS = [60, 300, 3600, 7200]


class Servers:
    """What all examples are played on. No dataclass: hypothesis would print all of it."""

    def __init__(self, env: Environment, kafka: KafkaServer, switch: Switch, broker: FaultPoint) -> None:
        self.env, self.kafka, self.switch, self.broker = env, kafka, switch, broker


class Stage:
    """One example: its faults, its processes, and its books.

    Attributes:
        engine: the pipeline's, whose connections fail; ``worker`` is that of another process beside it.
        enabled: the domains that the processes drain and compute.
        now: the time of each tick. It moves with the recorded retention floor.
        known_from: what lies before is no history either: the base windows of before are not those of now.
        arrived: which messages were read, and when.
        history: what happened, a line per step.
        failed_runs: what a person's runs could not compute.
        accepted: the gaps that a person knows of.
    """

    def __init__(self, servers: Servers) -> None:
        self.env, self.kafka, self.switch, self.broker = servers.env, servers.kafka, servers.switch, servers.broker
        self.broker.heal()
        self.broker.happened.clear()
        self.switch.places = frozenset()
        self.database = FaultPoint()
        self.engine = faulty_engine(self.env.settings, self.database)
        self.worker = faulty_engine(self.env.settings, self.database)
        self.registry = self.env.pipeline.registry
        self.enabled = frozenset(self.registry.by_name)
        self.now = START + timedelta(days=RETENTION_DAYS)
        self.known_from = START
        self.arrived: dict[tuple[str, int, int, int], datetime] = {}
        self.epochs = dict.fromkeys(self.env.topics, 1)
        self.history: list[str] = []
        self.failed_runs: set[tuple[DerivedName, datetime, str]] = set()
        self.accepted: set[int] = set()
        self.pipeline = self._new_pipeline()

    @property
    def observer(self) -> Pipeline:
        """Reads the same database, of all domains, through connections that do not fail."""
        return self.env.pipeline

    def close(self) -> None:
        self.heal()
        if self.env.settings.windows != WINDOWS:
            self.use_windows(WINDOWS)
            migrate(self.env.settings)
        self.pipeline.close()
        self.engine.dispose()
        self.worker.dispose()

    # ------------------------------------------------------------------ processes

    def _new_pipeline(self) -> Pipeline:
        chosen = {"domains_enabled": sorted(self.enabled), "kafka_topics": []}
        settings = self.env.settings.model_copy(update=chosen)
        pipeline = Pipeline(settings, self.engine, registry_for(settings, self.registry.domains))
        pipeline.drain._clock = lambda: 0.0  # a batch arrives at the time of its tick
        return pipeline

    def restart(self) -> None:
        """Another process takes over: nothing but the servers remembers anything."""
        self.pipeline.close()
        self.pipeline = self._new_pipeline()

    def enable(self, domains: Sequence[str]) -> None:
        """From now on these domains are drained and computed, and no other."""
        if self.enabled != frozenset(domains):
            self.enabled = frozenset(domains)
            self.restart()

    def enable_all(self) -> None:
        self.enable(sorted(self.registry.by_name))

    def use_windows(self, windows: Sequence[int]) -> None:
        """Every process starts anew with other window sizes. The caller migrates."""
        changed = self.env.settings.model_dump() | {"windows": list(windows)}
        values = load_settings(_env_file=None, **changed)
        if values.base_window_s != self.env.settings.base_window_s:
            self.known_from = self.floor
        self.env.settings = values
        self.env.pipeline.close()
        self.env.pipeline = Pipeline(values, self.env.pipeline.engine, self.registry)
        self.restart()

    # ------------------------------------------------------------------ steps

    def step(self, name: str, rng: random.Random) -> None:
        """One step, whatever a fault makes of it."""
        with self._may_fail(name):
            getattr(self, name)(rng)

    @contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        self.history.append(name)
        try:
            yield
        except AssertionError:
            raise
        except (Exception, InterruptedByTestError) as error:
            if not (self.database.happened or self.broker.happened):
                raise
            self.history[-1] += f" -> {type(error).__name__}: {str(error)[:80]}"
        finally:
            self._note_arrivals()
            self.history[-1] += "".join(f"; {one}" for one in (*self.database.happened, *self.broker.happened))
            self.database.happened.clear()

    # ------------------------------------------------------------------ hands

    def heal(self) -> None:
        self.database.heal()
        self.broker.heal()

    @property
    def floor(self) -> datetime:
        """The first hour that is kept."""
        return self.now - timedelta(days=RETENTION_DAYS)

    def read(self) -> list[Sent]:
        return [one for one in self.env.sent if where(one) in self.arrived]

    def kept_hours(self) -> list[datetime]:
        return [START + HOUR * at for at in range(HOURS) if START + HOUR * at >= self.floor]

    def some_hours(self, rng: random.Random) -> list[datetime]:
        hours = self.kept_hours()
        return rng.sample(hours, rng.randrange(1, len(hours) + 1))

    def run_by_hand(self, deriver: Deriver, asset: DerivedName, hours: Sequence[datetime], *domains: str) -> None:
        """A person materializes one asset: of all enabled domains, or of those named."""
        done = deriver.derive_hours(asset, hours, "full", "by hand", domains=domains or None)
        self.failed_runs.update((asset, one.hour, one.domain) for one in done.errors)

    def derive_pending(self, deriver: Deriver, *, together: bool, live_from: datetime) -> None:
        """One round of what the sensor asks for: hour by hour, or several together."""
        mode: Mode = "incremental"
        with connection(self.engine) as conn:
            todo = actionable_hours(conn, domains=sorted(self.enabled))
        if together:
            for asset in DERIVED:
                if hours := [one.hour for one in todo if asset in one.assets]:
                    deriver.derive_hours(asset, hours, mode, "test", now=live_from)
            return
        for one in todo:
            for asset in one.assets:
                deriver.derive_hours(asset, [one.hour], mode, "test", now=live_from)

    def rebuild_raw_hour(self, hour: datetime) -> None:
        rebuild_raw(self.env.settings, self.engine, self.pipeline.registry, hour, "by hand")

    def _expire(self, now: datetime) -> None:
        with connection(self.engine) as conn:
            look_back = max(domain.history for domain in self.observer.registry)
            expire(conn, self.observer.registry.by_name, now, RETENTION_DAYS, look_back=look_back)

    def _is_settled(self) -> bool:
        [(left,)] = self.observer.query(
            "SELECT (SELECT count(*) FROM pending_work) + (SELECT count(*) FROM partition_failure) "
            "+ (SELECT count(*) FROM partition_state WHERE status <> 'open') "
            "+ (SELECT count(*) FROM dead_letters WHERE reason = 'domain_error')"
        )
        return not left

    def _note_arrivals(self) -> None:
        """What is below the stored offsets now and was not before came with this step."""
        stored = {
            tuple(row[:3]): row[3]
            for row in self.observer.query("SELECT topic, epoch, partition, next_offset FROM kafka_offset")
        }
        for one in self.env.sent:
            if one.offset < stored.get(where(one)[:3], 0):
                self.arrived.setdefault(where(one), self.now)
