"""Hours as Dagster partitions: keys, ranges, and the hours that a run covers. Asks no database and no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dagster import HourlyPartitionsDefinition

from analytics_pipeline.orchestration.tags import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG
from analytics_pipeline.records import HOUR, hour_of

KEY_FORMAT = "%Y-%m-%d-%H:%M"

#: The hour that has begun, and the next: at 10:57 an event of 11:03 is plausible, and one request for a
#: partition that does not exist yet fails the whole tick.
END_OFFSET_HOURS = 2

#: A recomputation by range takes at most a day at a time, so that it can be stopped and spread over workers.
MAX_RANGE_HOURS = 24


def hourly_partitions(start: datetime) -> HourlyPartitionsDefinition:
    """One partition per UTC hour of event time, from ``start`` to the hour after the current one."""
    return HourlyPartitionsDefinition(
        start_date=start.astimezone(UTC), end_offset=END_OFFSET_HOURS, fmt=KEY_FORMAT, timezone="UTC"
    )


def key_of(hour: datetime) -> str:
    """The partition key of an hour, for example ``2026-11-21-10:00``."""
    return hour.astimezone(UTC).strftime(KEY_FORMAT)


def hour_of_key(key: str) -> datetime:
    """The hour that a partition key names.

    Raises:
        ValueError: the key is no hour in the form above.
    """
    return datetime.strptime(key, KEY_FORMAT).replace(tzinfo=UTC)


def last_partition_hour(now: datetime) -> datetime:
    """The latest hour that has a partition at this moment."""
    return hour_of(now) + HOUR * (END_OFFSET_HOURS - 1)


@dataclass(frozen=True, slots=True)
class HourRange:
    """Hours from ``first`` to ``last``, both included."""

    first: datetime
    last: datetime

    def __len__(self) -> int:
        return (self.last - self.first) // HOUR + 1

    def __iter__(self) -> Iterator[datetime]:
        return (self.first + HOUR * step for step in range(len(self)))

    @property
    def tags(self) -> dict[str, str]:
        """The partition tags of a run over these hours."""
        if self.first == self.last:
            return {PARTITION_TAG: key_of(self.first)}
        return {RANGE_START_TAG: key_of(self.first), RANGE_END_TAG: key_of(self.last)}


def range_of_run(tags: Mapping[str, str]) -> HourRange | None:
    """The hours that a run covers by its partition tags; None for a run without, or of another partitioning."""
    first = tags.get(RANGE_START_TAG) or tags.get(PARTITION_TAG)
    last = tags.get(RANGE_END_TAG) or tags.get(PARTITION_TAG)
    if first is None or last is None:
        return None
    try:
        return HourRange(hour_of_key(first), hour_of_key(last))
    except ValueError:
        return None


def contiguous(hours: Iterable[datetime], max_hours: int = MAX_RANGE_HOURS) -> list[HourRange]:
    """The hours, ascending, as runs of neighbours of at most ``max_hours``."""
    ranges: list[HourRange] = []
    for hour in sorted(set(hours)):
        if ranges and hour - ranges[-1].last == HOUR and len(ranges[-1]) < max_hours:
            ranges[-1] = HourRange(ranges[-1].first, hour)
        else:
            ranges.append(HourRange(hour, hour))
    return ranges
