"""Seeded sensor readings, as many as asked for, always the same ones. No Kafka, no clock.

100 sensors (or as many as asked for), ten of them on each machine, one reading after another at an even rate in
event time, so that a stream of ``count`` readings covers exactly ``count / rate_per_s`` seconds and no two readings
of a sensor share a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np

TOPIC = "sensors.device.readings"
TENANT, FACTORY, METRIC, UNIT = "t1", "f1", "temp", "C"
SENSORS = 100
SENSORS_PER_MACHINE = 10
MICROS = 1_000_000
#: Values repeat after this many readings; times do not.
VALUE_CYCLE = 1 << 16
MEAN_CELSIUS = 60.0
NOISE_CELSIUS = 1.5


@dataclass(frozen=True)
class Stream:
    """Readings in event time order.

    Attributes:
        start: event time of the first reading, aware.
        rate_per_s: readings a second of event time, over all sensors.
        count: how many.
        seed: chooses the values.
        factory: of every reading.
        sensors: how many take turns.
    """

    start: datetime
    rate_per_s: float
    count: int
    seed: int = 20261121
    factory: str = FACTORY
    sensors: int = SENSORS

    @property
    def duration_s(self) -> float:
        """Event time that the stream covers."""
        return self.count / self.rate_per_s

    def messages(self, first: int = 0, last: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of the readings ``[first, last)``. The key is the sensor."""
        heads, keys = _sensor_heads(self.factory, self.sensors)
        values = _values(self.seed)
        step_us = MICROS / self.rate_per_s
        start_us = round(self.start.timestamp() * MICROS)
        minute, minute_text = -1, ""
        for number in range(first, self.count if last is None else min(last, self.count)):
            minute_now, rest_us = divmod(start_us + int(number * step_us), 60 * MICROS)
            if minute_now != minute:
                minute = minute_now
                minute_text = datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M:")
            second, micro = divmod(rest_us, MICROS)
            sensor = number % self.sensors
            value = values[number % VALUE_CYCLE]
            yield (
                keys[sensor],
                f'{{"time":"{minute_text}{second:02d}.{micro:06d}Z",{heads[sensor]}{value:.3f}}}'.encode(),
            )


@lru_cache(maxsize=4)
def _values(seed: int) -> list[float]:
    noise = np.random.default_rng(seed).normal(0.0, NOISE_CELSIUS, VALUE_CYCLE)
    daily = 5.0 * np.sin(np.linspace(0.0, 2.0 * np.pi, VALUE_CYCLE))
    values: list[float] = (MEAN_CELSIUS + daily + noise).tolist()
    return values


def machine_id(sensor: int, sensors: int = SENSORS) -> str:
    """The machine that a sensor is on."""
    return f"mc-{sensor % max(1, sensors // SENSORS_PER_MACHINE):02d}"


def sensor_id(sensor: int) -> str:
    """The name of a sensor; its key in Kafka as well."""
    return f"s-{sensor:03d}"


@lru_cache(maxsize=4)
def _sensor_heads(factory: str, sensors: int) -> tuple[list[str], list[bytes]]:
    """The part of each sensor's payload that never changes, and its key."""
    heads, keys = [], []
    for sensor in range(sensors):
        heads.append(
            f'"tenant_id":"{TENANT}","factory_id":"{factory}","machine_id":"{machine_id(sensor, sensors)}",'
            f'"sensor_id":"{sensor_id(sensor)}","metric":"{METRIC}","unit":"{UNIT}","value":'
        )
        keys.append(sensor_id(sensor).encode())
    return heads, keys
