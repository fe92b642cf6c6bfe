"""The fixed set of the smoke run, with what must come of it. Seeded and pure; time is an argument.

Of every hundred messages, two are late, one repeats an earlier one, one cannot be read; the rest are readings
of forty sensors. Each reading has a time of its own, so that counts in the database can be compared exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from analytics_pipeline.cli._demo_data import reading

Kind = Literal["warm", "live", "late", "duplicate", "bad"]

MESSAGES = 20_000
MESSAGES_PER_S = 1_000
#: Sent first, and waited for: a worker's first run is no measure of the next ones.
WARM_UP = 100
MACHINES, SENSORS = 8, 5
PER_TURN = 100
LATEST_LATENESS = timedelta(hours=3)
SEED = 7

#: What cannot be read: some of it already by the drain, some of it (a reading without a value) only later.
BAD_PAYLOADS: tuple[bytes | None, ...] = (
    b"not json",
    b"\xff\xfe\x00",
    b"",
    None,
    b"[1, 2, 3]",
    b'{"tenant_id": "demo", "value": 1.0}',
    b'{"time": "yesterday", "value": 1.0}',
    b'{"time": "0001-01-01T00:00:00Z", "value": 1.0}',
    b'{"time": "%(now)s", "tenant_id": "demo", "factory_id": "bad", "machine_id": "m", "sensor_id": "s", '
    b'"metric": "flow"}',
    b'{"time": "%(now)s", "tenant_id": "demo", "factory_id": "bad", "machine_id": "m", "sensor_id": "s", '
    b'"metric": "flow", "value": "high"}',
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One message of the set, and when it is to be sent after the start."""

    number: int
    kind: Kind
    after_s: float
    key: str

    @property
    def turn(self) -> int:
        """Which topic's turn it is: a hundred messages go to one, so that a duplicate goes where its first went."""
        return self.number // PER_TURN


def warm_up() -> Iterator[Planned]:
    """Readings that start every worker's first run."""
    for number in range(WARM_UP):
        yield Planned(number, "warm", 0.0, f"machine-{number % MACHINES}")


def plan() -> Iterator[Planned]:
    """The rest of the set, in the order in which it is sent."""
    for number in range(WARM_UP, MESSAGES):
        place = number % PER_TURN
        kind: Kind = "live"
        if place in (37, 87):
            kind = "late"
        elif place == 61:
            kind = "duplicate"
        elif place == 11:
            kind = "bad"
        after_s = (number - WARM_UP) / MESSAGES_PER_S
        yield Planned(number, kind, after_s, f"machine-{number % MACHINES}")


class Payloads:
    """Makes the payloads in order; a duplicate repeats the last reading of its key, so that both share a log."""

    def __init__(self, started: datetime) -> None:
        self._started = started
        self._random = random.Random(SEED)
        self._last: dict[str, bytes] = {}

    def sent_at(self, planned: Planned) -> datetime:
        """When the message is due. No two share a microsecond, so that no reading replaces another."""
        return self._started + timedelta(microseconds=round(planned.after_s * 1e6) + planned.number % 1000)

    def of(self, planned: Planned) -> bytes | None:
        """The payload; its event time is when it is sent, except for late ones."""
        moment = self.sent_at(planned)
        if planned.kind == "bad":
            payload = BAD_PAYLOADS[(planned.turn + planned.turn // len(BAD_PAYLOADS)) % len(BAD_PAYLOADS)]
            return payload and payload.replace(b"%(now)s", moment.isoformat().encode())
        if planned.kind == "duplicate" and planned.key in self._last:
            return self._last[planned.key]
        if planned.kind == "late":
            moment -= timedelta(seconds=self._random.uniform(60, LATEST_LATENESS.total_seconds()))
        sensor = f"{planned.key}-{planned.number // MACHINES % SENSORS}"
        made = reading(moment, planned.key, sensor, self._random.gauss(100, 1), factory=planned.kind)
        if planned.kind == "live":
            self._last[planned.key] = made
        return made
