"""A log that always has more, on a broker that never says that nothing is left: what was read is committed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError

from analytics_pipeline.records import HOUR, hour_of
from analytics_pipeline.sources.kafka import LogReader
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.environments import Environment, open_environment
from analytics_pipeline_tests.pipeline import reading

START = hour_of(datetime.now(UTC)) - 2 * HOUR
TICKS, LONGEST_TICK_S = 3, 1.5
MESSAGE_EVERY_S = 0.01
PATIENCE_S = 20.0


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, unknown_topics=1) as it:
        yield it


@pytest.fixture
def growing(env: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    take_error = LogReader._take_error

    def no_end_of_the_first(self: LogReader, message: Any, error: KafkaError, slices: Any) -> None:
        grows = (message.topic(), message.partition()) == (env.topic, 0)
        if not grows or error.code() != KafkaError._PARTITION_EOF:
            take_error(self, message, error, slices)

    monkeypatch.setattr(LogReader, "_take_error", no_end_of_the_first)
    stop = threading.Event()

    def grow() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            env.send([reading(START + timedelta(milliseconds=100 * number))])
            time.sleep(MESSAGE_EVERY_S)

    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(grow)
        try:
            began = time.monotonic()
            while not env.pipeline.tick().messages:
                assert time.monotonic() - began < PATIENCE_S
            yield env
        finally:
            stop.set()
            sending.result()


def test_a_tick_ends_where_the_last_fetch_saw_the_end(growing: Environment) -> None:
    began = time.monotonic()
    outcomes = [growing.pipeline.tick() for _ in range(TICKS)]
    assert time.monotonic() - began < TICKS * LONGEST_TICK_S
    assert all(one.messages for one in outcomes)


def test_what_keeps_coming_is_committed_though_no_end_is_seen(
    growing: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogReader, "_see_ends", lambda *_: None)
    brief = growing.settings.model_copy(update={"drain_max_seconds": 3.0})
    monkeypatch.setattr(growing.pipeline.drain, "_settings", brief)
    assert growing.pipeline.tick().batches >= 4
