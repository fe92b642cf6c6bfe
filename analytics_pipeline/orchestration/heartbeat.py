"""Signs of life of runs, kept in Valkey: workers refresh them, the launcher reads them. Knows no Celery.

A run is alive while its key exists. The key expires when the worker dies, however it dies.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
import structlog

log = structlog.get_logger(__name__)

#: Refreshed this often, and gone this long after the last time. With two looks of the run monitoring, 5 s
#: apart, a dead worker's run is failed within 12 + 5 + 5 s.
REFRESH_S = 2.0
TIME_TO_LIVE_S = 12

#: A run that was asked to stop has this long to end, then its process is killed.
STOP_GRACE_S = 10.0

#: A child is silent for so long, after its key expired, before its worker kills it. Its first sign of life comes
#: once it has read its run, and when Valkey comes back empty the next sign takes up to two refreshes.
SILENT_CHILD_LIVES_S = 10.0

_ALIVE = "analytics_pipeline:alive:"
_STOP = "analytics_pipeline:stop:"
STOP_REQUEST_LIVES_S = 600


def connect(url: str) -> Any:
    """A client whose commands do not hang for long."""
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)


def is_alive(client: Any, run_id: str) -> bool:
    """Whether a worker has shown lately that it works on the run."""
    return bool(client.exists(_ALIVE + run_id))


def ask_to_stop(client: Any, run_id: str) -> None:
    """The worker that has the run interrupts it at its next sign of life."""
    client.set(_STOP + run_id, "1", ex=STOP_REQUEST_LIVES_S)


@dataclass(frozen=True, slots=True)
class RunHooks:
    """What signs of life need to know about a run, and whom they tell.

    Attributes:
        on_killed: called just before the process kills itself, because the interrupt did not end the run.
        may_go_on: whether Dagster still holds the run for under way. Asked after a pause so long that the run
            may have been given up meanwhile: the process was frozen, or Valkey was out of reach.
        longest_wait_s: how long the run may wait without doing anything, as it does in a long query.
    """

    on_killed: Callable[[], None]
    may_go_on: Callable[[], bool]
    longest_wait_s: float


@contextmanager
def signs_of_life(client: Any, run_id: str, hooks: RunHooks) -> Iterator[None]:
    """While the block runs, show that this thread works on the run, and interrupt it when asked to stop.

    The signs come from a thread of their own, which would go on for ever beside a run that hangs: they end when
    this thread, the main one of a worker's child, has used no CPU for longer than ``hooks.longest_wait_s``.
    """
    ended = threading.Event()
    beat = _Beat(client, run_id, ended, hooks, Progress(threading.get_ident(), hooks.longest_wait_s))
    beat.show()
    thread = threading.Thread(target=beat.run, name=f"signs-of-life-{run_id[:8]}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=REFRESH_S)
        _quietly(lambda: client.delete(_ALIVE + run_id, _STOP + run_id))


class Progress:
    """Whether a thread has used CPU lately. A query that is waited for uses none, nor does a deadlock."""

    def __init__(self, thread_id: int, longest_wait_s: float) -> None:
        self._clock = time.pthread_getcpuclockid(thread_id)
        self._longest_wait_s = longest_wait_s
        self._cpu_s = time.clock_gettime(self._clock)
        self._moved_at = time.monotonic()

    def stalled(self) -> bool:
        """Whether the last use of CPU is longer ago than the thread may wait."""
        cpu_s, now = time.clock_gettime(self._clock), time.monotonic()
        if cpu_s > self._cpu_s:
            self._cpu_s, self._moved_at = cpu_s, now
        return now - self._moved_at > self._longest_wait_s


class _Beat:
    def __init__(
        self, client: Any, run_id: str, ended: threading.Event, hooks: RunHooks, progress: Progress
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._ended = ended
        self._hooks = hooks
        self._progress = progress
        self._shown_at = time.monotonic()
        self._interrupted_at: float | None = None

    def show(self) -> None:
        if _quietly(lambda: self._client.set(_ALIVE + self._run_id, os.getpid(), ex=TIME_TO_LIVE_S)):
            self._shown_at = time.monotonic()

    def run(self) -> None:
        while not self._ended.wait(REFRESH_S):
            if time.monotonic() - self._shown_at > TIME_TO_LIVE_S and not self._hooks.may_go_on():
                log.error("run was given up while this process was silent", run_id=self._run_id)
                os.kill(os.getpid(), signal.SIGKILL)
            if not self._progress.stalled():
                self.show()
            if self._interrupted_at is None:
                if not _quietly(lambda: self._client.exists(_STOP + self._run_id)):
                    continue
                self._interrupted_at = time.monotonic()
            if time.monotonic() - self._interrupted_at > STOP_GRACE_S:
                self._kill()
            os.kill(os.getpid(), signal.SIGINT)  # Dagster turns it into an orderly end of the run

    def _kill(self) -> None:
        log.error("run did not stop when interrupted: killing its worker process", run_id=self._run_id)
        try:
            self._hooks.on_killed()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that a worker's parent process has handed to a child."""

    run_id: str
    pid: int


class ChildWatch:
    """Kills children whose run shows no sign of life: frozen or hanging, they would hold their slot for ever."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._silent_since: dict[ChildRun, float] = {}

    def look(self, children: Collection[ChildRun], now: float) -> list[ChildRun]:
        """Look at every child once; returns those that were killed. ``now``: monotonic seconds."""
        try:
            silent = {child for child in children if not is_alive(self._client, child.run_id)}
        except redis.RedisError:
            self._silent_since.clear()  # nobody is heard while Valkey is out of reach
            return []
        self._silent_since = {child: self._silent_since.get(child, now) for child in silent}
        late = [child for child, since in self._silent_since.items() if now - since > SILENT_CHILD_LIVES_S]
        for child in late:
            log.error("run shows no sign of life: killing its process", run_id=child.run_id, pid=child.pid)
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        return late


def _quietly(action: Callable[[], Any]) -> Any:
    """Valkey out of reach for a moment must not end a run that works."""
    try:
        return action()
    except redis.RedisError as error:
        log.warning("no sign of life could be given", error=str(error))
        return None
