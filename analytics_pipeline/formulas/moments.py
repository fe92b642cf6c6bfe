"""Count, mean and M2 of groups, from values or from parts. Pure numpy.

M2 is the sum of squared deviations from the mean: ``sum (x - mean)^2``, variance times count. Parts are
joined, never taken away: subtracting moments loses digits that no later step brings back.

Joining follows Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", COMPSTAT 1982, in the form for many parts at once, which depends on no order of pairing::

    n = sum n_i     mean = sum n_i mean_i / n     M2 = sum M2_i + sum n_i (mean_i - mean)^2

Every figure of a group depends on that group's own items in their order, and on nothing else in the array:
``np.add.reduceat`` sums each slice separately, pairwise within it. A rebuild of an hour therefore gives the
very bits that the live run gave for one minute of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


#: Up to this magnitude every figure of a window is finite: M2 is at most n times its square, 1e308 for n = 1e8.
LARGEST_VALUE = 1e150


class Moments(NamedTuple):
    """One item a group. Population variance is ``m2 / n``, sample variance ``m2 / (n - 1)``."""

    n: Ints
    mean: Floats
    m2: Floats


def from_values(values: Floats, starts: Ints, minimum: Floats, maximum: Floats) -> Moments:
    """Moments of slices of values, in two passes.

    Args:
        values: finite, the items of a group next to each other.
        starts: where each group begins, the first at 0, none empty.
        minimum, maximum: of each group; a mean rounded past them is put back, so that equal values have
            that value as mean and an M2 of exactly 0.
    """
    n = np.diff(starts, append=len(values))
    if not len(starts):
        return Moments(n, np.zeros(0), np.zeros(0))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduceat(values, starts) / n
        if not np.isfinite(mean).all():  # values near the largest double: divide before adding
            mean = np.where(np.isfinite(mean), mean, np.add.reduceat(values / np.repeat(n, n), starts))
        mean = np.clip(mean, minimum, maximum)
        apart = values - np.repeat(mean, n)
        # The second term is what rounding of the mean left over (the corrected two-pass algorithm).
        m2 = np.add.reduceat(apart * apart, starts) - np.add.reduceat(apart, starts) ** 2 / n
    return Moments(n, mean, _settled(m2))


def from_parts(parts: Moments, starts: Ints, minimum: Floats, maximum: Floats) -> Moments:
    """Moments of slices of parts (Chan). Arguments as in `from_values`."""
    if not len(starts):
        return Moments(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    size = np.diff(starts, append=len(parts.n))
    n = np.add.reduceat(parts.n, starts)
    weight = parts.n / np.repeat(n, size)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.clip(np.add.reduceat(weight * parts.mean, starts), minimum, maximum)
        apart = parts.mean - np.repeat(mean, size)
        # Weights are rounded too; one step of refinement takes that out of the mean.
        step = np.add.reduceat(weight * apart, starts)
        mean = np.clip(mean + np.where(np.isfinite(step), step, 0.0), minimum, maximum)
        apart = parts.mean - np.repeat(mean, size)
        m2 = np.add.reduceat(parts.m2 + parts.n * (apart * apart), starts)
    return Moments(n, mean, _settled(m2))


def _settled(m2: Floats) -> Floats:
    """Never below zero by rounding; too large for a double is infinite, never NaN."""
    return np.where(np.isnan(m2), np.inf, np.maximum(m2, 0.0))
