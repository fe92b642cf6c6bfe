"""Windows with a sample outside its specification. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import numpy as np

from analytics_pipeline.detectors.base import Detector, Flags, Targets, bounded, require


@dataclass(frozen=True)
class SpecLimits(Detector):
    """``min_val < lsl`` or ``max_val > usl``, with the limits in force when the window begins.

    Plainly: at least one sample of the window lies outside what is allowed. A sample on the limit is inside.
    ``value`` is the worst sample, ``score`` how far it is outside, in the metric's unit. Critical from
    ``critical_fraction`` of the tolerance ``usl - lsl`` on; with one limit only, of that limit's magnitude. A
    single limit of zero gives no width to measure by: never more than a warning.

    Prefer `RobustZScore` where nobody has said what is allowed, and to see a change before it costs parts: a
    process may move far and stay inside its limits.

    False alarms: none in the statistical sense, what it says is so. A process that is in control passes its
    limits as often as they are narrow: a window of n samples of a centred Gaussian with capability
    ``Cp = (usl - lsl) / 6 sigma`` is flagged with probability ``1 - (1 - 2 Phi(-3 Cp))^n``; for n = 20 that
    is 5.3 % at Cp = 1 and 0.13 % at Cp = 1.33.

    Source: ISO 22514-2:2017 (capability); the limits are the customer's.

    >>> import numpy as np
    >>> one, empty = np.array([5]), np.zeros((1, 0))
    >>> low, high = np.array([19.0]), np.array([26.5])
    >>> targets = Targets(one, high, low, high, empty, lsl=np.array([15.0]), usl=np.array([25.0]))
    >>> flags = SpecLimits().detect(targets)
    >>> float(flags.score[0]), bool(flags.critical[0])
    (1.5, True)
    """

    name: ClassVar[str] = "spec_limits"
    critical_fraction: float = 0.1
    baseline_windows: int = field(default=0, init=False)
    look_back: timedelta = field(default=timedelta(0), init=False)

    def __post_init__(self) -> None:
        require(
            0 < self.critical_fraction < np.inf,
            self.name,
            "critical_fraction",
            self.critical_fraction,
            "a number above 0",
        )

    def detect(self, targets: Targets) -> Flags:
        row = np.flatnonzero((targets.min_val < targets.lsl) | (targets.max_val > targets.usl))
        lsl, usl = targets.lsl[row], targets.usl[row]
        with np.errstate(over="ignore"):
            below, above = lsl - targets.min_val[row], targets.max_val[row] - usl
            upper = ~(below >= above) & (above > 0)  # NaN, where there is no limit, is never the worse side
            tolerance, centre = usl - lsl, lsl / 2 + usl / 2
        score = bounded(np.where(upper, above, below))
        limit = np.where(upper, usl, lsl)
        width = np.where(np.isnan(tolerance), np.abs(limit), tolerance)
        critical = (width > 0) & (score >= self.critical_fraction * width)
        columns = (centre, bounded(tolerance), limit, targets.count_n[row], lsl, usl, upper)
        details = [
            {
                "centre": _known(c),
                "scale": _known(w),
                "threshold": t,
                "n": n,
                "lsl": _known(lower),
                "usl": _known(higher),
                "side": "upper" if is_upper else "lower",
            }
            for c, w, t, n, lower, higher, is_upper in zip(*(it.tolist() for it in columns), strict=True)
        ]
        value = np.where(upper, targets.max_val[row], targets.min_val[row])
        return Flags(row, value, score, critical, details)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
