"""Reports the drain's batches to Dagster: per hour one materialization of raw_events and one check result. No IO.

The cursor says what was reported. Batches are reported together, hour by hour; when they touch more hours than
one tick takes, the cursor also says how far into their hours the last tick came, so that nothing is left out. As long
as there is more than one tick takes, live hours are reported first and the cursor says up to which batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from analytics_pipeline.orchestration.checks import drained_check_result
from analytics_pipeline.orchestration.metadata import drained_metadata
from analytics_pipeline.orchestration.partitions import hour_of_key, key_of
from analytics_pipeline.records import HOUR, RAW_EVENTS, BatchHour, BatchReport
from analytics_pipeline.storage.row_counts import RawTotals

#: Two events an hour, a few milliseconds to make and store: a tick with a year of history in it still leaves time for
#: runs.
MAX_HOURS_PER_TICK = 300


_LIVE = "|live|"


@dataclass(frozen=True, slots=True)
class Live:
    """Every batch up to ``batch_id`` is reported, as far as hours from ``hour`` on are concerned."""

    batch_id: int
    hour: datetime


@dataclass(frozen=True, slots=True)
class Cursor:
    """Every batch up to ``batch_id`` is reported, and of the next ones up to ``until`` the hours to ``hour``; what was
    reported ahead of that is ``live``."""

    batch_id: int = 0
    until: int | None = None
    hour: datetime | None = None
    live: Live | None = None

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """From the sensor's cursor, whatever words for people follow it; anything unreadable begins anew, which
        reports twice and loses nothing."""
        main, _, ahead = (text or "").partition(" ")[0].partition(_LIVE)
        parts = main.split("|")
        try:
            live = Live(int(ahead.split("|")[0]), hour_of_key(ahead.split("|")[1])) if ahead else None
            if len(parts) == 3:
                return cls(int(parts[0]), int(parts[1]), hour_of_key(parts[2]), live)
            return cls(int(parts[0]), live=live)
        except (ValueError, IndexError):
            return cls()

    def __str__(self) -> str:
        live = f"{_LIVE}{self.live.batch_id}|{key_of(self.live.hour)}" if self.live else ""
        if self.until is None or self.hour is None:
            return f"{self.batch_id}{live}"
        return f"{self.batch_id}|{self.until}|{key_of(self.hour)}{live}"

    def possible(self, newest_batch_id: int, last_hour: datetime) -> Cursor:
        """Without what cannot be: a place beyond the newest batch or the last hour would skip reports silently."""
        if self.batch_id > newest_batch_id:
            return Cursor()
        cursor = self
        if cursor.live and (cursor.live.batch_id > newest_batch_id or cursor.live.hour > last_hour):
            cursor = replace(cursor, live=None)
        if cursor.hour is not None and cursor.hour > last_hour:
            cursor = replace(cursor, until=None, hour=None)
        return cursor


@dataclass(frozen=True, slots=True)
class Selection:
    """What one tick reports: what each batch added to each hour, and the cursor that goes with it."""

    batch_hours: dict[datetime, list[tuple[int, BatchHour]]]
    cursor: Cursor
    hours_left: int


def is_behind(cursor: Cursor, batches: Sequence[BatchReport], most_batches: int) -> bool:
    """Whether there is more to report than one tick takes, so that live hours are to go first."""
    hours = {one.hour for batch in batches for one in batch.hours}
    return (
        cursor.live is not None
        or cursor.until is not None
        or len(batches) >= most_batches
        or len(hours) > MAX_HOURS_PER_TICK
    )


def select(
    cursor: Cursor,
    batches: Sequence[BatchReport],
    first_hour: datetime,
    last_hour: datetime,
    *,
    live: Live | None = None,
    live_batches: Sequence[BatchReport] = (),
) -> Selection:
    """The hours to report of the batches after the cursor, oldest first. Hours without a partition are left out:
    Dagster has no place for them.

    Args:
        live: while reports are behind, up to which batch the live hours are reported with this selection …
        live_batches: … and what is not reported yet of them. It goes first.
    """
    batch_hours: dict[datetime, list[tuple[int, BatchHour]]] = {}
    for batch in live_batches:
        _add(batch_hours, batch, first_hour, last_hour)
    live_hours = list(batch_hours)
    until = cursor.until
    batches = [batch for batch in batches if until is None or batch.batch_id <= until]
    for batch in batches:
        its_last = live.hour - HOUR if live and batch.batch_id <= live.batch_id else last_hour
        _add(batch_hours, batch, max(first_hour, cursor.hour + HOUR) if cursor.hour else first_hour, its_last)
    hours = sorted(batch_hours.keys() - set(live_hours))
    newest = batches[-1].batch_id if batches else cursor.batch_id
    room = MAX_HOURS_PER_TICK - len(live_hours)
    chosen = hours[: max(room, 1)]
    reported = {hour: batch_hours[hour] for hour in (*live_hours, *chosen)}
    if len(chosen) == len(hours):
        is_done = live is None or newest >= live.batch_id
        return Selection(reported, Cursor(newest, live=None if is_done else live), 0)
    return Selection(reported, Cursor(cursor.batch_id, newest, chosen[-1], live), len(hours) - len(chosen))


def _add(
    batch_hours: dict[datetime, list[tuple[int, BatchHour]]], batch: BatchReport, first: datetime, last: datetime
) -> None:
    for one in batch.hours:
        if first <= one.hour <= last:
            batch_hours.setdefault(one.hour, []).append((batch.batch_id, one))


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
