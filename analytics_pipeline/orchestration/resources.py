"""What assets and sensors get from outside, made once per process. Opens no connection at import."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from analytics_pipeline.records import DerivedName, DrainOutcome, HourOutcome, Mode
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import Connection, connection, engine_for

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from analytics_pipeline.flow.derive import Deriver
    from analytics_pipeline.flow.drain import Drain


class Pipeline:
    """The flow, wired to one set of settings: the one resource of every asset, sensor and job.

    Its parts are imported and made on first use, so that a code location loads fast; and kept by process,
    because Celery forks its workers and no child may use its parent's connections.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def engine(self) -> Engine:
        return engine_for(self.settings)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A psycopg2 connection of the pool; rolled back unless committed."""
        with connection(self.engine) as conn:
            yield conn

    def derive(self, asset: DerivedName, hour: datetime, mode: Mode, run_id: str) -> HourOutcome:
        """One hour of a derived asset, committed."""
        return _deriver(self.settings, os.getpid()).derive(asset, hour, mode, run_id)

    def rebuild_raw(self, hour: datetime, run_id: str) -> HourOutcome:
        """One hour of raw events, read again from Kafka, committed."""
        from analytics_pipeline.domains import registry_for
        from analytics_pipeline.flow.rebuild_raw import rebuild_raw

        return rebuild_raw(self.settings, self.engine, registry_for(self.settings), hour, run_id)

    def drain(self, now: datetime) -> DrainOutcome:
        """One tick of this process's drain, which keeps its Kafka assignment from tick to tick."""
        return _drain(self.settings, os.getpid()).tick(now)

    def close(self) -> None:
        """Let go of Kafka and of the pool. For processes that go on without the pipeline, as tests do."""
        if _drain.cache_info().currsize:
            _drain(self.settings, os.getpid()).close()
        _drain.cache_clear()
        _deriver.cache_clear()
        self.engine.dispose()


#: Held for as long as a tick drains. A tick that Dagster gave up waiting for goes on in its thread: the next
#: one must not share its consumer.
DRAIN_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def _drain(settings: Settings, _pid: int) -> Drain:
    from analytics_pipeline.domains import registry_for
    from analytics_pipeline.flow.drain import Drain

    return Drain(settings, engine_for(settings), registry_for(settings))


@lru_cache(maxsize=1)
def _deriver(settings: Settings, _pid: int) -> Deriver:
    from analytics_pipeline.domains import registry_for
    from analytics_pipeline.flow.derive import Deriver

    return Deriver(settings, engine_for(settings), registry_for(settings))
