"""Reports the drain's batches to Dagster: per hour one materialization of raw_events and one check result. No IO.

The cursor says what was reported. Batches are reported together, hour by hour; when they touch more hours than
one tick takes, the cursor also says how far into their hours the last tick came, so that nothing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from analytics_pipeline.orchestration.checks import drained_check_result
from analytics_pipeline.orchestration.metadata import drained_metadata
from analytics_pipeline.orchestration.partitions import hour_of_key, key_of
from analytics_pipeline.records import RAW_EVENTS, BatchHour, BatchReport
from analytics_pipeline.storage.row_counts import RawTotals

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
        """From the sensor's cursor, whatever words for people follow it; anything unreadable begins anew, which
        reports twice and loses nothing."""
        parts = (text or "").partition(" ")[0].split("|")
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
class Selection:
    """What one tick reports: what each batch added to each hour, and the cursor that goes with it."""

    batch_hours: dict[datetime, list[tuple[int, BatchHour]]]
    cursor: Cursor
    hours_left: int


def select(cursor: Cursor, batches: Sequence[BatchReport], first_hour: datetime, last_hour: datetime) -> Selection:
    """The hours to report of the batches after the cursor, oldest first. Hours without a partition are left out:
    Dagster has no place for them."""
    if cursor.until is not None:
        batches = [batch for batch in batches if batch.batch_id <= cursor.until]
    if not batches:
        return Selection({}, Cursor(cursor.batch_id), 0)
    batch_hours: dict[datetime, list[tuple[int, BatchHour]]] = {}
    for batch in batches:
        for one in batch.hours:
            if first_hour <= one.hour <= last_hour and (cursor.hour is None or one.hour > cursor.hour):
                batch_hours.setdefault(one.hour, []).append((batch.batch_id, one))
    hours = sorted(batch_hours)
    newest = batches[-1].batch_id
    if len(hours) <= MAX_HOURS_PER_TICK:
        return Selection({hour: batch_hours[hour] for hour in hours}, Cursor(newest), 0)
    chosen = hours[:MAX_HOURS_PER_TICK]
    return Selection(
        {hour: batch_hours[hour] for hour in chosen},
        Cursor(cursor.batch_id, newest, chosen[-1]),
        len(hours) - len(chosen),
    )


def events(
    selection: Selection, totals: Mapping[datetime, RawTotals]
) -> list[AssetMaterialization | AssetCheckEvaluation]:
    """A materialization and a check result for each hour. ``totals``: what each hour holds in all."""
    made: list[AssetMaterialization | AssetCheckEvaluation] = []
    for hour, owned in selection.batch_hours.items():
        batch_ids = sorted({batch_id for batch_id, _ in owned})
        of_hour = [one for _, one in owned]
        total = totals.get(hour, RawTotals())
        metadata = drained_metadata(of_hour, batch_ids, total)
        made.append(AssetMaterialization(AssetKey(RAW_EVENTS), partition=key_of(hour), metadata=metadata))
        made.append(drained_check_result(key_of(hour), of_hour, total))
    return made
