"""A domain whose code raises for some of its data.

* ``samples`` raises for messages of the metric `UNREADABLE`: dead letters ``domain_error``.
* Its detector raises for windows whose mean is `UNBEARABLE`: the domain partition of anomalies fails.
* `unevaluable` gives it an expectation that Great Expectations cannot evaluate: the asset's gate raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np

from analytics_pipeline.detectors.base import Detector, Flags, Targets
from analytics_pipeline.domains import Domain
from analytics_pipeline.domains.base import Expect, SeriesTuple
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR
from analytics_pipeline.records import AssetName

UNREADABLE = "unreadable"
UNBEARABLE = 666.0


class DetectorBrokenError(Exception):
    """A bug in a detector."""


@dataclass(frozen=True)
class Fragile(Detector):
    """Flags nothing, and raises where a window's mean is `UNBEARABLE`."""

    name: ClassVar[str] = "fragile"
    baseline_windows: int = 0
    look_back: timedelta = timedelta()

    def detect(self, targets: Targets) -> Flags:
        if (targets.avg_val == UNBEARABLE).any():
            raise DetectorBrokenError(f"mean {UNBEARABLE}: no such thing")
        nothing = np.zeros(0)
        return Flags(nothing.astype(np.int64), nothing, nothing, nothing.astype(np.bool_), [])


def _samples(reading: Any) -> Sequence[tuple[SeriesTuple, float, int]]:
    if reading.metric == UNREADABLE:
        raise KeyError("no such metric")
    return SENSOR.samples(reading)


DOMAIN = replace(
    SENSOR, name="raising", topics=("raising",), samples=_samples, detectors=(*SENSOR.detectors, Fragile())
)


def unevaluable(asset: AssetName) -> Domain:
    """The same with an expectation of one asset that cannot be evaluated: it names no column of its frame."""
    broken = Expect(asset, "expect_column_values_to_be_between", "no_such_column", "broken", (("max_value", 1),))
    return replace(DOMAIN, expectations=(broken,))
