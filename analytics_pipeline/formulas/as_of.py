"""The last known row of a series at a time, for many series and times at once. Pure numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def order_by(series: Ints, time_us: Ints) -> Ints:
    """The stable order by (series, time)."""
    if not len(series):
        return np.zeros(0, np.int64)
    first, oldest = int(series.min()), int(time_us.min())
    span = int(time_us.max()) - oldest + 1
    if (int(series.max()) - first + 1) * span >= 1 << 63:
        return np.lexsort((time_us, series))
    order: Ints = np.argsort((series - first) * span + (time_us - oldest), kind="stable")
    return order


def last_at(series: Ints, time_us: Ints, known_series: Ints, known_time_us: Ints) -> Ints:
    """Which known row is the last of its series at or before a time.

    Args:
        series, time_us: questions, in any order.
        known_series, known_time_us: the known rows, sorted by (series, time).

    Returns:
        row numbers of the known rows, -1 where there is none; as long as ``series``.
    """
    begin = np.searchsorted(known_series, series, side="left")
    low, high = begin.copy(), np.searchsorted(known_series, series, side="right")
    longest = int((high - low).max(initial=0))
    for _ in range(longest.bit_length()):  # bisection: the first row of the series after the time
        middle = (low + high) // 2
        inside = low < high
        earlier = inside & (known_time_us[np.where(inside, middle, 0)] <= time_us)
        low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, np.where(inside, middle, high))
    found: Ints = np.where(low > begin, low - 1, -1)
    return found
