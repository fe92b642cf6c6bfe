"""A domain with expectations of its own, about measures that other domains do not have.

* A ``temp`` above `HOTTEST` is a dead letter ``too_hot``.
* A window whose maximum is above `HOTTEST_WINDOW` fails the gate of window_aggregates: its series is withheld.
"""

from __future__ import annotations

from dataclasses import replace

from analytics_pipeline.domains.base import Expect
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR

HOTTEST = 10_000.0
HOTTEST_WINDOW = 1_000.0
_BETWEEN = "expect_column_values_to_be_between"

DOMAIN = replace(
    SENSOR,
    name="strict",
    topics=("strict",),
    expectations=(
        Expect("normalized_measurements", _BETWEEN, "value", "too_hot", (("max_value", HOTTEST),)),
        Expect("window_aggregates", _BETWEEN, "max_val", "window_too_hot", (("max_value", HOTTEST_WINDOW),)),
    ),
)
