"""What windows tell of their samples' quality: counts that add up, and whether the last one is bad. Pure.

A bad sample is in no figure. Uncertain and censored ones are, with the value that they give. A sample is late if it
came when its base window may have been final already: its Kafka time is not before the window's end and the allowed
lateness. Kafka time is stored with each sample, so that a rebuild counts alike, and it does not tell when this
pipeline came to read the message. Where Kafka times ascend, no other sample can change a final window: the watermark
never passes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_pipeline.domains.base import ABOVE, BAD, BELOW, UNCERTAIN

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Counts(NamedTuple):
    """Of each window, how many samples are so."""

    bad_n: Ints
    uncertain_n: Ints
    censored_n: Ints
    late_n: Ints


class Some(NamedTuple):
    """Some rows of groups that lie next to each other.

    Attributes:
        rows: their places.
        starts: where each group that holds one begins among them.
        groups: which groups those are.
    """

    rows: Ints
    starts: Ints
    groups: Ints


def count_samples(quality: npt.NDArray[np.signedinteger] | None, late: Flags | None, starts: Ints) -> Counts:
    """The counts of slices of samples; None: all are good, or none is late."""
    if quality is None:
        none = np.zeros(len(starts), np.int64)
        return Counts(none, none, none, none if late is None else sum_flags(late, starts))
    censored = (quality == BELOW) | (quality == ABOVE)
    late = np.zeros(len(quality), np.bool_) if late is None else late
    return Counts(*(sum_flags(one, starts) for one in (quality == BAD, quality == UNCERTAIN, censored, late)))


def sum_flags(flags: npt.NDArray[Any], starts: Ints, order: Ints | None = None) -> Ints:
    """The sums of slices of flags or counts, which are mostly zero, in an order of theirs."""
    if not flags.any():
        return np.zeros(len(starts), np.int64)
    found: Ints = np.add.reduceat((flags if order is None else flags[order]).astype(np.int64), starts)
    return found


def find_late(time_us: Ints, kafka_time_us: Ints, size_us: int, allowed_lateness_us: int) -> Flags | None:
    """Whether each sample came when its base window, of ``size_us``, may have been final; None: none did."""
    # No window ends before its sample: mostly that tells already that none is late.
    if not (kafka_time_us - time_us > allowed_lateness_us).any():
        return None
    ends_us = (np.floor_divide(time_us, size_us) + 1) * size_us
    late: Flags = kafka_time_us >= ends_us + allowed_lateness_us
    return late


def choose(starts: Ints, chosen: Flags) -> Some:
    """The chosen rows of groups that begin at ``starts``."""
    rows = np.flatnonzero(chosen)
    group = np.searchsorted(starts, rows, side="right") - 1
    begins = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(rows)])
    return Some(rows, begins, group[begins])
