"""What a counter counted between two readings: rise, reset, roll-over or swap of the meter. Pure: numpy in, numpy out.

Readings and increments are int64 and exact: no reading passes through a float. Only what a counter may count in a time,
its declared rate times that time, is a double, rounded down to a whole number before it is compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.int8]

#: What happened between two readings. The increment is unknown in the last two.
RISE, RESET, ROLL_OVER, SWAP, FIRST = range(5)

#: How near to its modulus a counter must have been for a fall to be a roll-over: within this part of the modulus, one
#: tenth. A counter that is read often enough to be of use moves by less than that between two readings, and of resets,
#: which come at any reading, nine in ten begin below it.
NEAR_MODULUS_PART = 10
#: Where no rate is declared, a fall is a reset only if the new reading is at most this part of the old one: 1 %. Less
#: than that was counted since; a meter that replaces another one rarely shows so little.
RESET_PART = 100

#: No counter moves by more.
_MOST = np.iinfo(np.int64).max
#: The largest double that is an int64.
_MOST_DOUBLE = 9_223_372_036_854_774_784.0
MICROS = 1_000_000
#: Of ``modulus``: none is declared.
NO_MODULUS = 0


def increments(
    old: Ints, new: Ints, elapsed_us: Ints, known: npt.NDArray[np.bool_], modulus: Ints, max_rate_per_s: Floats
) -> tuple[Ints, Kinds]:
    """What was counted between each reading and the one before it, and what happened.

    =============================================================================  =========  ====================
    what is read                                                                   kind       increment
    =============================================================================  =========  ====================
    nothing before it                                                              FIRST      unknown
    new ≥ old, and new − old ≤ rate · elapsed or no rate is declared               RISE       new − old
    new < old, old near the modulus, and (modulus − old) + new ≤ rate · elapsed    ROLL_OVER  (modulus − old) + new
    else new < old and new ≤ rate · elapsed; without a rate new ≤ 1 % of old       RESET      new
    else                                                                           SWAP       unknown
    =============================================================================  =========  ====================

    Without a rate nothing says what may be counted across the modulus. It must then be as little as what was missing to
    it: at most a tenth of the modulus.

    Args:
        old, new: two readings, each at least 0. ``old`` does not matter where none is known.
        elapsed_us: time between them, microseconds, above 0.
        known: whether there is a reading before.
        modulus: the reading at which a counter begins at 0 again; `NO_MODULUS` where it is not declared.
        max_rate_per_s: the most that it counts in a second; NaN where it is not declared.

    Returns:
        (increment, kind); the increment is 0 where it is unknown.
    """
    rated = np.isfinite(max_rate_per_s)
    most = _allowed(np.where(rated, max_rate_per_s, 0.0), elapsed_us)
    old = np.where(known, old, new)
    fell = new < old
    missing = np.where(modulus > 0, modulus - old, -1)
    near = fell & (missing >= 0) & (missing <= modulus // NEAR_MODULUS_PART)
    over = np.where(near, missing, 0) + np.where(near, new, 0)  # below the modulus, because new is below old
    rolls_over = near & (over <= np.where(rated, most, modulus // NEAR_MODULUS_PART))
    resets = fell & (new <= np.where(rated, most, old // RESET_PART))
    rises = ~fell & (~rated | (np.where(fell, 0, new - old) <= most))
    kind = np.select([~known, rolls_over, resets, rises], [FIRST, ROLL_OVER, RESET, RISE], SWAP).astype(np.int8)
    return np.select([kind == RISE, kind == ROLL_OVER, kind == RESET], [new - old, over, new], 0), kind


def _allowed(max_rate_per_s: Floats, elapsed_us: Ints) -> Ints:
    """The most that may be counted in a time. What is compared with it is whole, so that its fraction is nothing."""
    with np.errstate(over="ignore"):  # a rate beyond all counters allows everything
        may = max_rate_per_s * elapsed_us / MICROS
    return np.where(may > _MOST_DOUBLE, _MOST, np.floor(np.minimum(may, _MOST_DOUBLE)).astype(np.int64))
