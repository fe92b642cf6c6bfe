"""Ctrl-C, SIGTERM and SIGHUP as one request to stop, which never lands between a start and its record."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While open, each of the signals raises KeyboardInterrupt in the main thread, at once or after ``hold``."""

    def __init__(self) -> None:
        self._held = 0
        self._asked = False

    @contextmanager
    def installed(self) -> Iterator[StopSignals]:
        """Take the signals over, and give them back afterwards."""
        before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A request that comes in here is heard when the block is left."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._asked and not self._held:
            self._asked = False
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on nothing interrupts: a clean stop is under way."""
        self._held += 1

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._asked = True
        else:
            raise KeyboardInterrupt
