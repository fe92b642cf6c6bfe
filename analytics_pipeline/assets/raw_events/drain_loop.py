"""Drains on between two ticks of the sensor: a commit about every second, in a thread that each tick keeps alive.

The daemon looks every five seconds; waiting for it would be nearly all of the delay from Kafka to the database. When
no tick comes any more (the sensor is off, the daemon is gone), the thread ends, ``LINGER_S`` after the
last one. It may die at any moment: what counts is in the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from analytics_pipeline.records import DrainOutcome

log = structlog.get_logger(__name__)

#: Commits begin this far apart: often enough for people who watch, rarely enough that a commit is worth its cost.
COMMIT_EVERY_S = 1.0


class DrainLoop:
    """Calls a drain's tick about every second, as long as somebody keeps asking.

    Args:
        tick: drains to the end of the logs at a time.
    """

    def __init__(self, tick: Callable[[datetime], DrainOutcome]) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._until = 0.0
        self._passes = 0
        self._thread: threading.Thread | None = None
        self._done: list[DrainOutcome] = []
        self._error: Exception | None = None

    def keep_alive(self, for_s: float, *, first_pass_within_s: float) -> None:
        """Drain for so long from now on. Where the loop did not run, wait for its first pass."""
        with self._changed:
            self._until = time.monotonic() + for_s
            if self._thread is None:
                passes = self._passes
                self._thread = threading.Thread(target=self._run, name="drain-loop", daemon=True)
                self._thread.start()
                self._changed.wait_for(
                    lambda: self._passes > passes or self._thread is None, timeout=first_pass_within_s
                )

    def take(self) -> DrainOutcome | None:
        """What was drained since the last call, as one outcome; None where no pass ended meanwhile.

        Raises:
            Exception: what ended the loop; the next `keep_alive` begins it anew.
        """
        with self._changed:
            error, self._error = self._error, None
            done, self._done = self._done, []
        if error is not None:
            raise error
        return _together(done) if done else None

    def stop(self) -> None:
        """End the loop and wait for the pass under way."""
        with self._changed:
            self._until = 0.0
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        try:
            while True:
                began = time.monotonic()
                outcome = self._tick(datetime.now(UTC))
                with self._changed:
                    self._done.append(outcome)
                    self._passes += 1
                    self._changed.notify_all()
                    left = COMMIT_EVERY_S - (time.monotonic() - began)
                    if left > 0:
                        self._changed.wait_for(lambda: time.monotonic() >= self._until, timeout=left)
                    if time.monotonic() >= self._until:
                        self._thread = None
                        return
        except Exception as error:  # noqa: BLE001
            with self._changed:
                self._error, self._thread = error, None
                self._changed.notify_all()


def _together(outcomes: list[DrainOutcome]) -> DrainOutcome:
    last = outcomes[-1]
    messages = sum(one.messages for one in outcomes)
    return replace(
        last,
        batches=sum(one.batches for one in outcomes),
        messages=messages,
        raw_rows=sum(one.raw_rows for one in outcomes),
        dead_letters=sum(one.dead_letters for one in outcomes),
        skip_reason=None if messages else last.skip_reason,
        duration_s=sum(one.duration_s for one in outcomes),
    )
