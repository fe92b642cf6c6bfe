"""What the demo streams: a real water flow of 57 days, moved to end now, then a live tail made from it.

Source: ``river/datasets/water-flow.csv`` (river, BSD-3): hourly flow in l/s at a water supply, with four
described events. Pure but for reading that file; the clock is an argument.
"""

from __future__ import annotations

import csv
import importlib.util
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from analytics_pipeline.errors import PipelineError

TOPIC = "sensors.device.readings"
TENANT = "demo"
FACTORY = "waterworks"
MAIN = "main-01"
METRIC = "flow"
UNIT = "l/s"

#: Limits beside the bulk of the real series (1st percentile 24, median 101, 99th 105 l/s).
LOWER_LIMIT, UPPER_LIMIT = 80.0, 108.0

LIVE_MACHINES = ("pump-01", "pump-02", "pump-03", "valve-01", "valve-02")
SENSORS_PER_MACHINE = 2
MESSAGES_PER_S = 20
#: One hour of the real series a minute, so that each minute's window shows another stretch of it.
HOURS_PER_MINUTE = 1.0
NOISE = 0.3  # l/s
#: Of the live tail: to be seen as anomalies, as dead letters, and as late rows.
SPIKE_RATIO, BAD_RATIO, LATE_RATIO = 0.001, 0.002, 0.005
SPIKE = 25.0  # l/s
LATE_BY = timedelta(seconds=150)
SEED = 20220320


@dataclass(frozen=True, slots=True)
class Flow:
    """The real series: times as they were measured, values in l/s."""

    times: tuple[datetime, ...]
    values: tuple[float, ...]

    def at(self, hours: float) -> float:
        """Interpolated value so many hours after the start, going round at the end."""
        place = hours % (len(self.values) - 1)
        index = int(place)
        fraction = place - index
        return self.values[index] * (1 - fraction) + self.values[index + 1] * fraction


def load_flow() -> Flow:
    """Read the series from the installed package river, without importing it (that takes seconds)."""
    spec = importlib.util.find_spec("river")
    if spec is None or spec.origin is None:
        raise PipelineError("the package river is not installed; pip install 'analytics-pipeline[embedded]'")
    with (Path(spec.origin).parent / "datasets" / "water-flow.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return Flow(tuple(datetime.fromisoformat(row[0]) for row in rows), tuple(float(row[1]) for row in rows))


def history(flow: Flow, now: datetime) -> Iterator[bytes]:
    """The whole real series as messages of one sensor, the last of them at ``now``."""
    shift = now.replace(microsecond=0) - flow.times[-1]
    for moment, value in zip(flow.times, flow.values, strict=True):
        yield reading(moment + shift, MAIN, f"{METRIC}-01", value)


def reading(moment: datetime, machine: str, sensor: str, value: float, factory: str = FACTORY) -> bytes:
    """One message in the form that the sensor domain takes."""
    return msgspec.json.encode(
        {
            "time": moment.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "tenant_id": TENANT,
            "factory_id": factory,
            "machine_id": machine,
            "sensor_id": sensor,
            "metric": METRIC,
            "value": round(value, 3),
            "unit": UNIT,
        }
    )


class LiveTail:
    """An endless, seeded stream of readings: the real series sped up, with noise, spikes, late and bad ones."""

    def __init__(self, flow: Flow, started: datetime, seed: int = SEED) -> None:
        self._flow = flow
        self._started = started
        self._random = random.Random(seed)
        self._sent = 0
        self._sensors = [
            (machine, f"{machine}-{METRIC}-{number}")
            for machine in LIVE_MACHINES
            for number in range(1, SENSORS_PER_MACHINE + 1)
        ]

    def due(self, now: datetime) -> Iterator[tuple[str, bytes]]:
        """The messages (machine, payload) that fall between the call before and this one."""
        until = int((now - self._started).total_seconds() * MESSAGES_PER_S)
        while self._sent < until:
            moment = self._started + timedelta(seconds=self._sent / MESSAGES_PER_S)
            yield self._message(moment, self._sent % len(self._sensors))
            self._sent += 1

    def _message(self, moment: datetime, number: int) -> tuple[str, bytes]:
        machine, sensor = self._sensors[number]
        minutes = (moment - self._started).total_seconds() / 60
        offset = number * len(self._flow.values) / len(self._sensors)
        value = self._flow.at(offset + minutes * HOURS_PER_MINUTE) + self._random.gauss(0, NOISE)
        dice = self._random.random()
        if dice < SPIKE_RATIO:
            value += SPIKE
        elif dice < SPIKE_RATIO + BAD_RATIO:
            return machine, b'{"time": "not a time", "value": '
        elif dice < SPIKE_RATIO + BAD_RATIO + LATE_RATIO:
            moment -= LATE_BY
        return machine, reading(moment, machine, sensor, value)
