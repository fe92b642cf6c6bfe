"""What runs in processes that tests kill, or run beside each other. Each function is a process's whole life."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.assets.slice_protocol import SliceProtocol
from analytics_pipeline.domains import Registry, registry_for
from analytics_pipeline.errors import OffsetConflictError
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.engine import connection, engine_for
from analytics_pipeline.storage.pending_work import actionable_hours

Topics = Mapping[str, str]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _registry(settings: Settings, topics: Topics) -> Registry:
    return registry_for(settings).with_topics(topics)


class DyingDrain(Drain):
    """Is killed at a point of the batch ``at_batch``, counted from 1."""

    point = ""
    at_batch = 1
    batch = 0

    def _write_rows(self, *arguments: Any) -> None:
        self.batch += 1
        if self.point == "before the write" and self.batch == self.at_batch:
            _die()
        super()._write_rows(*arguments)

    def _commit(self, conn: Any) -> None:
        if self.point == "between write and commit" and self.batch == self.at_batch:
            _die()
        super()._commit(conn)
        if self.point == "after the commit" and self.batch == self.at_batch:
            _die()


def drain_and_die(settings: Settings, topics: Topics, point: str, at_batch: int) -> None:
    """Drains as the sensor does, until it is killed."""
    drain = DyingDrain(settings, engine_for(settings), _registry(settings, topics))
    drain.point, drain.at_batch = point, at_batch
    drain.tick(datetime.now(UTC))


class DyingProtocol(SliceProtocol):
    """Is killed while it holds the writes of one asset, or right after it committed them."""

    asset = ""
    point = ""
    deriving = ""

    def compute(self, run: Any, keys: Any) -> Any:
        self.deriving = run.asset
        return super().compute(run, keys)

    def _commit(self, conn: Any) -> None:
        if self.deriving != self.asset:
            super()._commit(conn)
            return
        if self.point == "after the commit":
            super()._commit(conn)
        _die()


def derive_and_die(settings: Settings, topics: Topics, asset: str, point: str) -> None:
    """Does pending work as a worker does, until it is killed."""
    engine = engine_for(settings)
    deriver, protocol = Deriver(settings, engine, _registry(settings, topics)), DyingProtocol(settings, engine)
    protocol.asset, protocol.point = asset, point
    deriver.protocol = protocol
    for _ in range(20):
        with connection(engine) as conn:
            todo = actionable_hours(conn)
        for one in todo:
            for name in one.assets:
                deriver.derive(name, one.hour, "incremental", "killed")


def drain_against_others(
    settings: Settings, topics: Topics, start: Barrier, rounds: int, told: Queue[tuple[int, int]]
) -> None:
    """Ticks in step with other drains; tells how many messages it wrote and how often another was first."""
    drain = Drain(settings, engine_for(settings), _registry(settings, topics))
    written = lost = 0
    for _ in range(rounds):
        start.wait(30)
        try:
            written += drain.tick(datetime.now(UTC)).messages
        except OffsetConflictError:
            lost += 1
    drain.close()
    told.put((written, lost))


def drain_and_tell_memory(settings: Settings, topics: Topics, messages: int, told: Queue[tuple[int, int]]) -> None:
    """Drains so many messages; tells the memory that it held before and at its peak, in MiB."""
    drain = Drain(settings, engine_for(settings), _registry(settings, topics))
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from now on
    seen = 0
    while seen < messages:
        seen += drain.tick(datetime.now(UTC)).messages
    drain.close()
    told.put((before, _resident_mib("VmHWM")))


def _resident_mib(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    raise AssertionError(f"no {name} in /proc/self/status")


def _import_what_gates_need() -> None:
    """Great Expectations takes seconds to import; the server that forks processes does it once."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations  # noqa: F401


_import_what_gates_need()
