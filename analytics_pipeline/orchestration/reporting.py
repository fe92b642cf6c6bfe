"""Reports the drain's batches to Dagster: per hour one materialization of raw_events and one verdict. No IO.

The cursor says what was reported. Batches are reported together, hour by hour; when they touch more hours than
one tick takes, the cursor also says how far into their hours the last tick came, so that nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from analytics_pipeline.orchestration.checks import drained_verdict
from analytics_pipeline.orchestration.metadata import drained_metadata
from analytics_pipeline.orchestration.partitions import hour_of_key, key_of
from analytics_pipeline.records import RAW_EVENTS, BatchHour, BatchReport

#: Two events an hour, about 10 ms each to store: a tick with a year of history in it still leaves time for runs.
MAX_HOURS_PER_TICK = 60


@dataclass(frozen=True, slots=True)
class Cursor:
    """Every batch up to ``batch_id`` is reported, and of the next ones up to ``until`` the hours to ``hour``."""

    batch_id: int = 0
    until: int | None = None
    hour: datetime | None = None

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """From the sensor's cursor; anything unreadable begins anew, which reports twice and loses nothing."""
        parts = (text or "").split("|")
        try:
            if len(parts) == 3:
                return cls(int(parts[0]), int(parts[1]), hour_of_key(parts[2]))
            return cls(int(parts[0]))
        except ValueError:
            return cls()

    def __str__(self) -> str:
        if self.until is None or self.hour is None:
            return str(self.batch_id)
        return f"{self.batch_id}|{self.until}|{key_of(self.hour)}"


@dataclass(frozen=True, slots=True)
class Report:
    """Events to hand to Dagster, and the cursor that goes with them."""

    events: list[AssetMaterialization | AssetCheckEvaluation]
    cursor: Cursor
    hours_left: int


def report(cursor: Cursor, batches: Sequence[BatchReport], first_hour: datetime, last_hour: datetime) -> Report:
    """The events of the batches after the cursor. Hours without a partition are counted nowhere in Dagster."""
    if cursor.until is not None:
        batches = [batch for batch in batches if batch.batch_id <= cursor.until]
    if not batches:
        return Report([], Cursor(cursor.batch_id), 0)
    shares: dict[datetime, list[tuple[int, BatchHour]]] = {}
    for batch in batches:
        for share in batch.hours:
            if first_hour <= share.hour <= last_hour and (cursor.hour is None or share.hour > cursor.hour):
                shares.setdefault(share.hour, []).append((batch.batch_id, share))
    hours = sorted(shares)
    events = [event for hour in hours[:MAX_HOURS_PER_TICK] for event in _events(hour, shares[hour])]
    newest = batches[-1].batch_id
    if len(hours) <= MAX_HOURS_PER_TICK:
        return Report(events, Cursor(newest), 0)
    stopped_at = hours[MAX_HOURS_PER_TICK - 1]
    return Report(events, Cursor(cursor.batch_id, newest, stopped_at), len(hours) - MAX_HOURS_PER_TICK)


def _events(
    hour: datetime, shares: Sequence[tuple[int, BatchHour]]
) -> list[AssetMaterialization | AssetCheckEvaluation]:
    batch_ids = sorted({batch_id for batch_id, _ in shares})
    parts = [share for _, share in shares]
    return [
        AssetMaterialization(
            AssetKey(RAW_EVENTS), partition=key_of(hour), metadata=drained_metadata(parts, batch_ids)
        ),
        drained_verdict(key_of(hour), parts),
    ]
