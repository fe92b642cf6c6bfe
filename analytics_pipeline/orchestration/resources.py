"""What assets and sensors get from outside, made once per process. Opens no connection at import."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg2

from analytics_pipeline.errors import BelowRetentionError
from analytics_pipeline.orchestration.fingerprint import LOADED
from analytics_pipeline.records import (
    AssetName,
    DerivedHours,
    DerivedName,
    DomainState,
    DrainOutcome,
    Mode,
    PartitionError,
)
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection, engine_for
from analytics_pipeline.storage.live_signal import Listener, listening

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from analytics_pipeline.assets.derive import Deriver
    from analytics_pipeline.assets.raw_events.drain import Drain
    from analytics_pipeline.assets.raw_events.drain_loop import DrainLoop
    from analytics_pipeline.domains import Registry

#: Held for as long as a tick drains. A tick that Dagster gave up waiting for continues in its thread: the next
#: one must not share its consumer.
DRAIN_LOCK = threading.Lock()

#: States that nobody speaks of grow by this much at a time: often enough for who watches, and an hour of all states is
#: computed again each time.
STATES_EVERY_S = 60.0
#: Those who commit windows hold a domain for milliseconds. One that is held for longer, as by a worker that is frozen,
#: is left for the next tick, which would wait for minutes: for so long, once for each domain.
STATES_WAIT_MS = 200


class Pipeline:
    """The flow, wired to one set of settings: the one resource of every asset, sensor and job.

    Its parts are imported and made on first use, so that a code location loads fast; and kept by process,
    because Celery forks its workers and no child may use its parent's connections.

    Args:
        domains: instead of those that the settings enable; for tests.
    """

    def __init__(self, settings: Settings, domains: Registry | None = None) -> None:
        self.settings = settings
        self._domains = domains
        self._drains: dict[int, Drain] = {}
        self._derivers: dict[int, Deriver] = {}
        self._loops: dict[int, DrainLoop] = {}
        self._states_due_at = 0.0

    @property
    def engine(self) -> Engine:
        return engine_for(self.settings)

    @property
    def domains(self) -> Registry:
        if self._domains is None:
            from analytics_pipeline.domains import registry_for

            self._domains = registry_for(self.settings)
        return self._domains

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A psycopg2 connection of the pool; rolled back unless committed."""
        with connection(self.engine) as conn:
            yield conn

    def derive_hours(
        self,
        asset: DerivedName,
        hours: Sequence[datetime],
        mode: Mode,
        run_id: str,
        domains: Sequence[str] | None = None,
        *,
        wait: bool = True,
    ) -> DerivedHours:
        """Some hours of a derived asset, committed slice by slice."""
        return self._deriver().derive_hours(asset, hours, mode, run_id, domains=domains, wait=wait)

    def advance_states(self) -> int:
        """Let states last up to the watermarks of their domains, once a minute at most; returns how many hours were
        asked for."""
        with_states = [domain.name for domain in self.domains if domain.states]
        if not with_states or time.monotonic() < self._states_due_at:
            return 0
        from analytics_pipeline.assets.windows import state_clock

        with self.connection() as conn:
            numbers = DomainNumbers(self.engine).numbers(with_states)
            hours = state_clock.advance(conn, numbers, STATES_WAIT_MS)
        self._states_due_at = time.monotonic() + STATES_EVERY_S
        return hours

    def listening(self) -> AbstractContextManager[Listener]:
        """What the drain says to live runs."""
        return listening(self.engine)

    def _deriver(self) -> Deriver:
        from analytics_pipeline.assets.derive import Deriver

        pid = os.getpid()
        if pid not in self._derivers:
            self._derivers[pid] = Deriver(self.settings, self.engine, self.domains, code_version=LOADED)
        return self._derivers[pid]

    def rebuild_raw_hours(self, hours: Sequence[datetime], run_id: str) -> DerivedHours:
        """Hours of raw events, read again from Kafka, each committed separately; one that fails stops no other."""
        from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw

        done = DerivedHours()
        for hour in hours:
            try:
                rebuilt = rebuild_raw(self.settings, self.engine, self.domains, hour, run_id)
                done.outcomes.append(rebuilt.outcome)
                done.errors.extend(rebuilt.unread)
            except BelowRetentionError:
                done.expired.append(hour)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                raise  # the database is out of reach: the other hours would wait for it in vain
            except Exception as error:
                if len(hours) == 1:
                    raise
                done.errors.append(PartitionError(domain="every domain", hour=hour, error=error))
        return done

    def hour_states(self, asset: AssetName, hours: Sequence[datetime]) -> dict[datetime, list[DomainState]]:
        """What some hours of an asset hold, by domain."""
        from analytics_pipeline.storage.partition_state import domain_states

        with self.connection() as conn:
            return domain_states(conn, asset, hours)

    def drain(self, now: datetime) -> DrainOutcome:
        """One tick of this process's drain, which keeps its Kafka assignment from tick to tick."""
        return self._drain().tick(now)

    def drain_loop(self, drain_once: Callable[[datetime], DrainOutcome]) -> DrainLoop:
        """The thread of this process that drains between ticks."""
        from analytics_pipeline.assets.raw_events.drain_loop import DrainLoop

        pid = os.getpid()
        if pid not in self._loops:
            self._loops[pid] = DrainLoop(drain_once)
        return self._loops[pid]

    def look(self) -> int:
        """Instead of a drain: the messages that wait in Kafka."""
        return self._drain().look()

    def _drain(self) -> Drain:
        from analytics_pipeline.assets.raw_events.drain import Drain

        pid = os.getpid()
        if pid not in self._drains:
            self._drains[pid] = Drain(self.settings, self.engine, self.domains)
        return self._drains[pid]

    def close(self) -> None:
        """Let go of Kafka. For processes that go on without the pipeline, as tests do."""
        loop = self._loops.pop(os.getpid(), None)
        if loop is not None:
            loop.stop()
        drain = self._drains.pop(os.getpid(), None)
        if drain is not None:
            drain.close()
