"""The one contract of all detectors: what they declare, what they are given, what they answer.

A detector evaluates base windows, many at once, each against its own baseline. It keeps nothing between calls,
so that live and rebuild give one answer. It never answers NaN or infinity, and it stays silent where it cannot
know: too few windows, no spread, no limits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: What a detail holds at least: the middle and the width that the value was held against, the threshold that
#: it passed, and how many windows or samples that rests on. Numbers or None.
DETAIL_KEYS = frozenset({"centre", "scale", "threshold", "n"})
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class Targets:
    """T windows to evaluate. ``baseline`` is (T, ``baseline_windows``), each row the average values of the
    target's own earlier windows, oldest first, NaN on the left where there are fewer. Limits are those in
    force at the window's start, NaN where none is. Everything else is finite."""

    count_n: Ints
    avg_val: Floats
    min_val: Floats
    max_val: Floats
    baseline: Floats
    lsl: Floats
    usl: Floats

    def __len__(self) -> int:
        return len(self.avg_val)


@dataclass(frozen=True, slots=True)
class Flags:
    """The anomalies among the targets: their row numbers, ascending, and figures of the same length.

    ``value`` is what was evaluated, ``score`` how far out it is, in the detector's own measure; ``details``
    explain, with at least `DETAIL_KEYS`.
    """

    row: Ints
    value: Floats
    score: Floats
    critical: npt.NDArray[np.bool_]
    details: Sequence[Mapping[str, float | int | str | None]]


class Detector(ABC):
    """Extend with a frozen dataclass whose fields are the parameters, checked in ``__post_init__``.

    Attributes:
        name: stored with each anomaly, and part of its identity: never reused for another meaning.
        baseline_windows: at most how many earlier windows a result rests on; 0 for none.
        look_back: how old the oldest of them may be. A change of a window makes the hours that this reaches pending.
    """

    name: ClassVar[str]
    baseline_windows: int
    look_back: timedelta

    @abstractmethod
    def detect(self, targets: Targets) -> Flags:
        """The anomalies among the targets. Each result depends on its own row alone."""


def require(holds: bool, detector: str, parameter: str, value: object, takes: str) -> None:
    """Raises ValueError for a parameter that is out of range: which, what it got, what it takes."""
    if not holds:
        raise ValueError(f"{detector}: {parameter} takes {takes}, got {value!r}")


def bounded(values: Floats) -> Floats:
    """Overflow cut to the largest double: scores go into JSON, which has no infinity."""
    return np.clip(values, -LARGEST, LARGEST)
