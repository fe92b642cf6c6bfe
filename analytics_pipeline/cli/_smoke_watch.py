"""Watches a smoke run from outside: when each message was in the database, and when the KPIs counted it."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from analytics_pipeline.cli._smoke_data import Kind
from analytics_pipeline.storage.engine import connection

POLL_S = 0.2

_OFFSETS_SQL = "SELECT topic, partition, next_offset FROM kafka_offset WHERE topic = ANY(%(topics)s)"
_COUNTED_SQL = """
SELECT bucket_start, sum(value) FROM kpis
WHERE kpi = 'messages' AND window_s = 3600 AND factory_id = 'live' GROUP BY bucket_start
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that the broker confirmed. ``hour``: of its event time, if it is a live one."""

    kind: Kind
    hour: datetime
    topic: str
    partition: int
    offset: int
    kafka_time_s: float  # its Kafka timestamp, seconds since the epoch


class Track:
    """A count that only grows, and when each of its values was first seen."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._times_s: list[float] = []

    def note(self, value: float, time_s: float) -> None:
        if not self._values or value > self._values[-1]:
            self._values.append(value)
            self._times_s.append(time_s)

    def when_at_least(self, value: float) -> float:
        """When the count had reached the value, seconds since the epoch; infinite if it never did."""
        place = bisect_left(self._values, value)
        return self._times_s[place] if place < len(self._times_s) else math.inf


class Watcher:
    """Polls five times a second and takes the time after each answer, so that nothing is seen too early."""

    def __init__(self, engine: Engine, topics: Sequence[str]) -> None:
        self._engine = engine
        self._topics = list(topics)
        self._drained: defaultdict[tuple[str, int], Track] = defaultdict(Track)
        self._counted: defaultdict[datetime, Track] = defaultdict(Track)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="smoke-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def freshness_raw_s(self, sent: Sequence[Sent]) -> list[float]:
        """Seconds from Kafka's timestamp until the database had the message; infinite if it never did."""
        return [self._drained[m.topic, m.partition].when_at_least(m.offset + 1) - m.kafka_time_s for m in sent]

    def freshness_kpi_s(self, sent: Sequence[Sent]) -> list[float]:
        """Seconds from Kafka's timestamp until the hour's KPIs counted as many as were sent up to the message.

        Args:
            sent: the live messages in the order in which they were sent.
        """
        places: Counter[datetime] = Counter()
        fresh = []
        for message in sent:
            places[message.hour] += 1
            counted_at_s = self._counted[message.hour].when_at_least(places[message.hour])
            fresh.append(counted_at_s - message.kafka_time_s)
        return fresh

    def _watch(self) -> None:
        with connection(self._engine, autocommit=True) as conn, conn.cursor() as cursor:
            while True:
                # Looks once more after the stop: what was committed right before it counts.
                is_last = self._stopped.wait(POLL_S)
                self._poll(cursor, _OFFSETS_SQL, self._drained)
                self._poll(cursor, _COUNTED_SQL, self._counted)
                if is_last:
                    return

    def _poll(self, cursor: Any, statement: str, tracks: defaultdict[Any, Track]) -> None:
        cursor.execute(statement, {"topics": self._topics})
        rows = cursor.fetchall()
        now_s = time.time()
        for *key, value in rows:
            tracks[key[0] if len(key) == 1 else tuple(key)].note(float(value), now_s)
