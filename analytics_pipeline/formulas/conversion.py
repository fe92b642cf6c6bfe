"""From what a sensor sent to what figures are made of: calibration in the raw unit, then the metric's canonical unit.

Pure numpy. The order of the operations is part of the meaning: live and rebuild give the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def calibrated(raw: Floats, gain: Floats, offset: Floats) -> Floats:
    """``gain · raw + offset``, in the unit in which the value was sent."""
    return gain * raw + offset


def in_canonical_unit(value: Floats, factor: Floats, shift: Floats) -> Floats:
    """``factor · value + shift``.

    >>> [round(float(one), 9) for one in in_canonical_unit(np.array([212.0]), np.array([5 / 9]), np.array([-160 / 9]))]
    [100.0]
    """
    return factor * value + shift
