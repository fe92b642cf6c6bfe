"""Letting go of a Kafka consumer that does not let go."""

from __future__ import annotations

import threading
import time

import pytest

from analytics_pipeline.settings import load_settings
from analytics_pipeline.sources import kafka
from analytics_pipeline.sources.kafka import LogReader


class StuckConsumer:
    """Closes when it is told to."""

    def __init__(self) -> None:
        self.may_close = threading.Event()

    def close(self) -> None:
        self.may_close.wait(30)


def test_a_consumer_that_does_not_close_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "CLOSE_TIMEOUT_S", 0.1)
    consumer = StuckConsumer()
    monkeypatch.setattr(kafka, "Consumer", lambda _config: consumer)
    reader = LogReader(load_settings(_env_file=None))
    reader._client()
    began_s = time.monotonic()
    reader.close()
    assert time.monotonic() - began_s < 5
    consumer.may_close.set()
