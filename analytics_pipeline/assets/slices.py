"""Which domain partitions one transaction computes: composed within budgets, split when one of them fails. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from analytics_pipeline.records import HOUR, hour_of

#: (domain number, hour)
Key = tuple[int, datetime]

#: Rows read and written by one slice, about: what bounds a worker's memory, and how long live work waits for a
#: lock.
MAX_ROWS = 300_000
#: As many locks as one session may take without crowding out others.
MAX_PARTITIONS = 256


def compose(keys: Iterable[Key], rows: Callable[[Key], int], live_from: datetime) -> list[list[Key]]:
    """Slices of domain partitions, hours ascending.

    A live hour shares its slice with live hours only, whoever asked: nothing older may hold its lock for long. A
    domain partition that passes the budget is a slice of its own.
    """
    slices: list[list[Key]] = []
    held = 0
    for key in sorted(set(keys), key=lambda one: (one[1], one[0])):
        its = rows(key)
        last = slices[-1] if slices else None
        fits = (
            last is not None
            and len(last) < MAX_PARTITIONS
            and held + its <= MAX_ROWS
            and (last[0][1] >= live_from) == (key[1] >= live_from)
        )
        if last is not None and fits:
            last.append(key)
            held += its
        else:
            slices.append([key])
            held = its
    return slices


def live_from(now: datetime) -> datetime:
    """The first live hour: the previous one, in which late data still lands as a matter of course."""
    return hour_of(now) - HOUR


def halves(keys: Sequence[Key]) -> list[list[Key]]:
    """A slice that failed, split: by domain first, then by hour."""
    domains = sorted({key[0] for key in keys})
    if len(domains) > 1:
        return [[key for key in keys if key[0] == domain] for domain in domains]
    ordered = sorted(keys, key=lambda one: one[1])
    middle = len(ordered) // 2
    return [ordered[:middle], ordered[middle:]]
