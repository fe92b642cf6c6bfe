"""Robust z-score of a window's average against the median and MAD of earlier windows. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import numpy as np

from analytics_pipeline.detectors.base import Detector, Flags, Floats, Targets, bounded, require

#: The upper quartile of the standard normal distribution: MAD / 0.6745 estimates its standard deviation.
MAD_FACTOR = 0.6745
#: sqrt(pi / 2): the mean absolute deviation times this estimates it too.
MEAN_AD_FACTOR = 1.253314
#: A spread below this share of the centre is rounding of averages (some 45 units in the last place), not
#: spread. Without it a constant signal would alarm at its own last bit.
ROUNDING_RATIO = 1e-14


@dataclass(frozen=True)
class RobustZScore(Detector):
    """``M = 0.6745 (x - median) / MAD``; an anomaly where ``|M| > threshold``.

    ``x`` is the window's average; median and MAD (median of ``|x_i - median|``) are those of the last
    ``baseline_windows`` stored windows of the same series, strictly before it and at most ``look_back`` old.
    Where MAD is zero (more than half of the baseline is one value), ``M = (x - median) / (1.253314 MeanAD)``
    with the mean of ``|x_i - median|``; where that is zero too, there is no scale and no anomaly.

    Plainly: how many standard deviations the window lies from what is usual, where up to half of the
    baseline may itself be anomalous without hiding the next anomaly. ``score`` is M with its sign.

    Prefer `SpecLimits` where it is known what is allowed, for a signal that hardly ever changes (its first
    change after a constant baseline is no anomaly here), and for one that trends or has a daily shape: this
    detector takes the slope for spread and sees only what leaves the band of the last windows. One peak
    within a window moves its average little: `SpecLimits` sees each sample.

    False alarms on independent Gaussian averages, measured: 12 in 10,000 windows with the full baseline of
    120 (were the spread known exactly, 5), 55 with one of 30, 240 with the least of 12. Averages that follow
    each other (autocorrelation) alarm more.

    Source: Iglewicz, Hoaglin, "How to Detect and Handle Outliers", ASQC Basic References in Quality Control
    16, 1993: both forms, and 3.5.

    >>> import numpy as np
    >>> baseline = np.array([[9.0, 10.0, 11.0, 10.0]])
    >>> one, none = np.array([1]), np.array([np.nan])
    >>> x = np.array([16.0])
    >>> flags = RobustZScore(baseline_windows=4, min_windows=4).detect(Targets(one, x, x, x, baseline, none, none))
    >>> round(float(flags.score[0]), 3), bool(flags.critical[0])
    (8.094, True)
    """

    name: ClassVar[str] = "robust_zscore"

    threshold: float = 3.5
    critical_threshold: float = 7.0
    baseline_windows: int = 120
    min_windows: int = 12
    look_back: timedelta = timedelta(hours=24)

    def __post_init__(self) -> None:
        require(0 < self.threshold < np.inf, self.name, "threshold", self.threshold, "a number above 0")
        require(
            self.threshold <= self.critical_threshold < np.inf,
            self.name,
            "critical_threshold",
            self.critical_threshold,
            f"a number not below threshold ({self.threshold})",
        )
        require(self.min_windows >= 3, self.name, "min_windows", self.min_windows, "3 or more")
        require(
            self.baseline_windows >= self.min_windows,
            self.name,
            "baseline_windows",
            self.baseline_windows,
            f"min_windows ({self.min_windows}) or more",
        )
        require(self.look_back > timedelta(0), self.name, "look_back", self.look_back, "more than no time")

    def detect(self, targets: Targets) -> Flags:
        ordered = np.sort(targets.baseline, axis=1)  # NaN goes last
        n = self.baseline_windows - np.isnan(ordered).sum(axis=1)
        rows = np.flatnonzero(n >= self.min_windows)
        ordered, n, x = ordered[rows], n[rows], targets.avg_val[rows]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            centre = _median_of_sorted(ordered, n)
            apart = np.abs(ordered - centre[:, None])
            apart.sort(axis=1)
            scale = _scale(apart, n, centre)
            score = bounded((x - centre) / scale)
        found = np.flatnonzero((scale > 0) & (np.abs(score) > self.threshold))
        details = [
            {"centre": c, "scale": s, "threshold": self.threshold, "n": k}
            for c, s, k in zip(
                centre[found].tolist(), bounded(scale[found]).tolist(), n[found].tolist(), strict=True
            )
        ]
        critical = np.abs(score[found]) > self.critical_threshold
        return Flags(rows[found], x[found], score[found], critical, details)


def _median_of_sorted(ordered: Floats, n: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """The median of the first ``n[i]`` of row ``i``."""
    rows = np.arange(len(ordered))
    median: Floats = ordered[rows, (n - 1) // 2] / 2 + ordered[rows, n // 2] / 2
    return median


def _scale(apart: Floats, n: np.ndarray[tuple[int], np.dtype[np.int64]], centre: Floats) -> Floats:
    """The standard deviation as the deviations, sorted, tell it; 0 where they tell none."""
    least = np.abs(centre) * ROUNDING_RATIO
    mad = _median_of_sorted(apart, n)
    none = np.flatnonzero(~(mad > least))
    scale = mad / MAD_FACTOR
    mean = np.nansum(apart[none] / n[none, None], axis=1)
    scale[none] = np.where(mean > least[none], mean * MEAN_AD_FACTOR, 0.0)
    return scale
