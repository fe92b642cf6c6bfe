"""Signs of life of runs, kept in Valkey: workers refresh them, the launcher reads them. Knows no Celery.

A run is alive while its key exists. The key goes away by itself when the worker dies, however it dies.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
import structlog

log = structlog.get_logger(__name__)

#: Refreshed this often, and gone this long after the last time. With two looks of the run monitoring, 5 s
#: apart, a dead worker's run is failed within 12 + 5 + 5 s.
REFRESH_S = 2.0
TIME_TO_LIVE_S = 12

#: A run that was asked to stop has this long to end by itself, then its process is killed.
STOP_GRACE_S = 10.0

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


@contextmanager
def signs_of_life(client: Any, run_id: str, on_killed: Callable[[], None]) -> Iterator[None]:
    """While the block runs, shows that this process works on the run, and interrupts it when asked to stop.

    Args:
        on_killed: called just before the process kills itself, because the interrupt did not end the run.
    """
    ended = threading.Event()
    beat = _Beat(client, run_id, ended, on_killed)
    beat.show()
    thread = threading.Thread(target=beat.run, name=f"signs-of-life-{run_id[:8]}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=REFRESH_S)
        _quietly(lambda: client.delete(_ALIVE + run_id, _STOP + run_id))


class _Beat:
    def __init__(self, client: Any, run_id: str, ended: threading.Event, on_killed: Callable[[], None]) -> None:
        self._client = client
        self._run_id = run_id
        self._ended = ended
        self._on_killed = on_killed
        self._interrupted_at: float | None = None

    def show(self) -> None:
        _quietly(lambda: self._client.set(_ALIVE + self._run_id, os.getpid(), ex=TIME_TO_LIVE_S))

    def run(self) -> None:
        while not self._ended.wait(REFRESH_S):
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
            self._on_killed()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def _quietly(action: Callable[[], Any]) -> Any:
    """Valkey out of reach for a moment must not end a run that works."""
    try:
        return action()
    except redis.RedisError as error:
        log.warning("no sign of life could be given", error=str(error))
        return None
