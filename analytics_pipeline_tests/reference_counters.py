"""What the pipeline should say of counters, computed the slow and obvious way, one reading after the other.

As `reference`: plain Python, and nothing of the package but the numbers of its rules, repeated here by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MICROS = 1_000_000
LARGEST_INT = 2**63 - 1

Series = tuple[str, str]


class CounterMessage(NamedTuple):
    """One reading as Kafka brought it; ``series`` is (machine, counter)."""

    position: tuple[str, int, int, int, int]
    kafka_time_us: int
    event_time_us: int
    series: Series
    reading: int


class Limits(NamedTuple):
    """What is declared of a counter; None is nothing."""

    modulus: int | None = None
    max_rate_per_s: float | None = None


class Counted(NamedTuple):
    """One row of counter_increments, but for its key."""

    increment: int | None
    reason: str | None
    readings: int
    resets: int
    roll_overs: int
    swaps: int
    unknown_n: int
    gaps_spanned: int
    last_time_us: int
    last_reading: int


def counter_readings(messages: Iterable[CounterMessage]) -> dict[Series, list[tuple[int, CounterMessage]]]:
    """(time, message) of each series, in order: of several at one time the latest by (Kafka time, position)."""
    winner: dict[tuple[Series, int], CounterMessage] = {}
    for message in messages:
        known = winner.get((message.series, message.event_time_us))
        if known is None or (message.kafka_time_us, message.position) > (known.kafka_time_us, known.position):
            winner[message.series, message.event_time_us] = message
    found: dict[Series, list[tuple[int, CounterMessage]]] = defaultdict(list)
    for (series, time_us), message in sorted(winner.items()):
        found[series].append((time_us, message))
    return found


def counted(old: int, new: int, elapsed_us: int, limits: Limits) -> tuple[int | None, str]:
    """What was counted from one reading to the next, and what happened."""
    rate, modulus = limits.max_rate_per_s, limits.modulus
    may = None if rate is None else rate * elapsed_us / MICROS
    if new >= old:
        return (new - old, "rise") if may is None or new - old <= may else (None, "swap")
    if modulus is not None and 0 <= modulus - old <= modulus // 10:
        over = modulus - old + new
        if over <= (modulus // 10 if may is None else may):
            return over, "roll-over"
    if new * 100 <= old if may is None else new <= may:
        return new, "reset"
    return None, "swap"


def counter_increments(
    messages: Iterable[CounterMessage], size_s: int, limits: Mapping[str, Limits], gap_us: int
) -> dict[tuple[int, Series], Counted]:
    """By (start of the window, series); ``limits`` by counter."""
    size_us = size_s * MICROS
    found: dict[tuple[int, Series], list[tuple[int | None, str, bool, int, int]]] = defaultdict(list)
    for series, readings in counter_readings(messages).items():
        before: tuple[int, int] | None = None
        for time_us, message in readings:
            increment: int | None = None
            kind, spans_gap = "first", False
            if before is not None:
                elapsed_us = time_us - before[0]
                increment, kind = counted(before[1], message.reading, elapsed_us, limits.get(series[1], Limits()))
                spans_gap = elapsed_us > gap_us
            before = (time_us, message.reading)
            found[time_us - time_us % size_us, series].append((increment, kind, spans_gap, *before))
    return {key: _window(its) for key, its in found.items()}


def _window(its: list[tuple[int | None, str, bool, int, int]]) -> Counted:
    kinds = [kind for _, kind, *_ in its]
    known = [increment for increment, *_ in its if increment is not None]
    reason = None
    if not known:
        reason = "swap" if "swap" in kinds else "first_reading"
    elif sum(known) > LARGEST_INT:
        reason = "overflow"
    return Counted(
        increment=None if reason else sum(known),
        reason=reason,
        readings=len(its),
        resets=kinds.count("reset"),
        roll_overs=kinds.count("roll-over"),
        swaps=kinds.count("swap"),
        unknown_n=len(its) - len(known),
        gaps_spanned=sum(spans_gap for _, _, spans_gap, *_ in its),
        last_time_us=its[-1][3],
        last_reading=its[-1][4],
    )
