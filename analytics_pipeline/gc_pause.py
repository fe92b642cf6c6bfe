"""Pausing Python's cycle collector while millions of messages pass. Nothing else."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cycle_collection_paused() -> Iterator[None]:
    """Messages are freed by their reference counts; the collector only looks through them again and again.

    With it, draining took 1.4 times the processor time (400,000 messages, 2.5 s against 1.8 s). What is
    garbage in cycles waits until the block ends.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
