"""A domain whose code raises now and then: while a test says so, and only in the places that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

import numpy as np

from analytics_pipeline.detectors.base import Detector, Flags, Targets
from analytics_pipeline.domains import Domain
from analytics_pipeline.domains.base import SeriesTuple
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR

PLACES = ("event_time", "samples", "detector")


class IntermittentError(Exception):
    """What the domain raises."""


@dataclass(eq=False)  # a domain must be hashable
class Switch:
    """Where the domain raises now. In ``event_time`` and ``samples``: for every other message."""

    places: frozenset[str] = field(default_factory=frozenset)

    def maybe(self, place: str, *, spared: bool = False) -> None:
        if place in self.places and not spared:
            raise IntermittentError(f"the domain raises in {place} now")


@dataclass(frozen=True)
class IntermittentDetector(Detector):
    """Flags nothing, or raises."""

    name: ClassVar[str] = "intermittent"
    switch: Switch = field(default_factory=Switch)
    baseline_windows: int = 0
    look_back: timedelta = timedelta()

    def detect(self, targets: Targets) -> Flags:
        self.switch.maybe("detector")
        nothing = np.zeros(0)
        return Flags(nothing.astype(np.int64), nothing, nothing, nothing.astype(np.bool_), [])


def domain(switch: Switch) -> Domain:
    """The sensor domain in a switch. Few rows are enough for its quarantine."""

    def event_time(envelope: Any) -> datetime:
        switch.maybe("event_time", spared=envelope.time.second % 2 == 0)
        return envelope.time  # type: ignore[no-any-return]

    def samples(reading: Any) -> Sequence[tuple[SeriesTuple, float, int]]:
        switch.maybe("samples", spared=reading.value % 2 < 1)
        return SENSOR.samples(reading)

    return replace(
        SENSOR,
        name="intermittent",
        topics=("intermittent",),
        event_time=event_time,
        samples=samples,
        detectors=(*SENSOR.detectors, IntermittentDetector(switch=switch)),
        min_gate_rows=5,
    )
