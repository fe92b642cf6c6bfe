"""What windows should say of samples with a quality, computed the slow and obvious way, beside `reference`.

One sample after the other, plain Python. A sample's quality is a word here, so that no number is shared with what is
tested. Not compared bit for bit: averages, M2 and integrals are exact sums.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analytics_pipeline_tests.reference import percentile

MICROS = 1_000_000


class RatedMessage(NamedTuple):
    """One sample as Kafka brought it. ``quality``: good, uncertain, bad, below or above."""

    position: tuple[str, int, int, int, int]
    kafka_time_us: int
    event_time_us: int
    series: Hashable
    value: float
    quality: str = "good"


@dataclass(frozen=True)
class RatedWindow:
    """One row of window_aggregates; figures are None where no sample is in them."""

    count_n: int
    bad_n: int
    uncertain_n: int
    censored_n: int
    late_n: int
    ends_bad: bool
    avg_val: float | None
    m2: float
    min_val: float | None
    max_val: float | None
    first_val: float | None
    last_val: float | None
    first_time_us: int
    last_time_us: int
    p50: float | None
    p95: float | None
    p99: float | None
    base_n: int
    coverage: float
    tw_integral: float
    tw_covered_s: float


def samples(messages: Iterable[RatedMessage]) -> list[RatedMessage]:
    """Of each (series, event time) the message with the latest (Kafka time, position), in order of time."""
    winner: dict[tuple[Hashable, int], RatedMessage] = {}
    for message in sorted(messages, key=lambda one: (one.kafka_time_us, one.position)):
        winner[message.series, message.event_time_us] = message
    return sorted(winner.values(), key=lambda one: one.event_time_us)


def windows(
    messages: Iterable[RatedMessage], size_s: int, base_s: int, gap_us: int, lateness_us: int
) -> dict[tuple[int, Hashable], RatedWindow]:
    """Every window that holds a sample, by start and series."""
    everything = samples(messages)
    size_us = size_s * MICROS
    keys = {(one.event_time_us // size_us * size_us, one.series) for one in everything}
    return {
        (start_us, series): _window(
            start_us, size_s, base_s, [one for one in everything if one.series == series], gap_us, lateness_us
        )
        for start_us, series in keys
    }


def late_counts(
    messages: Iterable[RatedMessage], size_s: int, base_s: int, lateness_us: int
) -> Counter[tuple[int, Hashable]]:
    """How many samples of each window came late, by start and series."""
    size_us = size_s * MICROS
    late = [one for one in samples(messages) if is_late(one, base_s, lateness_us)]
    return Counter((one.event_time_us // size_us * size_us, one.series) for one in late)


def is_late(one: RatedMessage, base_s: int, lateness_us: int) -> bool:
    """Whether it came into Kafka when its base window may have been final."""
    base_us = base_s * MICROS
    ends_us = one.event_time_us - one.event_time_us % base_us + base_us
    return one.kafka_time_us >= ends_us + lateness_us


def _window(
    start_us: int, size_s: int, base_s: int, history: Sequence[RatedMessage], gap_us: int, lateness_us: int
) -> RatedWindow:
    its = [one for one in history if start_us <= one.event_time_us < start_us + size_s * MICROS]
    good = [one for one in its if one.quality != "bad"]
    values = [one.value for one in good]
    mean = math.fsum(values) / len(values) if values else None
    base_us = base_s * MICROS
    held = [
        piece
        for begin_us in range(start_us, start_us + size_s * MICROS, base_us)
        if any(begin_us <= one.event_time_us < begin_us + base_us for one in its)
        for piece in _held(begin_us, begin_us + base_us, history, gap_us)
    ]
    base_n = len({one.event_time_us // base_us for one in good})
    return RatedWindow(
        count_n=len(good),
        bad_n=len(its) - len(good),
        uncertain_n=len([one for one in its if one.quality == "uncertain"]),
        censored_n=len([one for one in its if one.quality in ("below", "above")]),
        late_n=len([one for one in its if is_late(one, base_s, lateness_us)]),
        ends_bad=its[-1].quality == "bad",
        avg_val=mean,
        m2=math.fsum((value - mean) ** 2 for value in values) if mean is not None else 0.0,
        min_val=min(values, default=None),
        max_val=max(values, default=None),
        first_val=values[0] if values else None,
        last_val=values[-1] if values else None,
        first_time_us=good[0].event_time_us if good else start_us,
        last_time_us=good[-1].event_time_us if good else start_us,
        p50=percentile(values, 0.50) if values else None,
        p95=percentile(values, 0.95) if values else None,
        p99=percentile(values, 0.99) if values else None,
        base_n=base_n,
        coverage=base_n / (size_s / base_s),
        tw_integral=math.fsum(value * us for value, us in held) / MICROS,
        tw_covered_s=sum(us for _, us in held) / MICROS,
    )


def _held(begin_us: int, end_us: int, history: Sequence[RatedMessage], gap_us: int) -> list[tuple[float, int]]:
    """(value, microseconds) of what holds in a base window: each value that is not bad until the next sample, bad or
    not, at most for the gap."""
    pieces = []
    for at, one in enumerate(history):
        next_us = history[at + 1].event_time_us if at + 1 < len(history) else end_us
        until_us, from_us = min(next_us, one.event_time_us + gap_us, end_us), max(one.event_time_us, begin_us)
        if one.quality != "bad" and until_us > from_us:
            pieces.append((one.value, until_us - from_us))
    return pieces
