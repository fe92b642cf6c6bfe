"""Which of several events with one id is the event: the last by (Kafka time, position), in whatever hour it lies.

Each hour keeps its own last one of each id in ``event_identities``; an hour holds the event if its own is the last of
all. Two hours may be computed at the same time by slices that see nothing of each other. So from here on those who
change identities of a domain commit one after another, and the others' are looked up by what is committed: whoever
commits second decides, and asks for the hour that held the event, or must hold it now, to be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Key, Parts, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.spec import EVENT_IDENTITIES, EVENTS
from analytics_pipeline.records import HOUR_US, from_us
from analytics_pipeline.storage import locks, table_io
from analytics_pipeline.storage.engine import Connection
from analytics_pipeline.storage.pending_work import Invalidation

#: Identities that one statement looks up.
LOOKED_UP_AT_ONCE = 5_000

_EVENT = ["domain_id", "identity"]
_CLAIM = ["domain_id", "hour_us", "identity"]
_PLACE = [*_CLAIM, "event_time_us", *table.ORDER_US]


@dataclass(frozen=True)
class Decided:
    """What becomes of the rows of a slice.

    Attributes:
        rows: those that are the event.
        withdrawn: ``domain_id, event_time_us`` of stored rows that were the event, and are deleted now.
        stale: other hours that hold an event that is no longer theirs, or must hold one now.
    """

    rows: pl.DataFrame
    withdrawn: pl.DataFrame
    stale: Sequence[Invalidation] = ()


def decide(context: Context, works: Sequence[Work], rows: pl.DataFrame) -> Decided:
    """Finds the rows that are the event, deletes stored ones that no longer are, and writes the identities.

    Args:
        works: those that may be written.
        rows: of these works, one per identity and hour.
    """
    own = _with_hour(rows.filter(pl.col("event_id").is_not_null()))
    # An hour whose events are all held by others has identities, and no row that its state would count.
    gone = _stored_of(context.connection, [work for work in works if work.whole])
    if own.is_empty() and gone.is_empty():
        return Decided(rows, EVENTS.empty(("domain_id", "event_time")))
    wanted = pl.concat([frame.select(_EVENT) for frame in (own, gone)]).unique()
    context.serialize_commits(wanted["domain_id"].unique().to_list(), locks.EVENT_IDENTITIES)
    with context.committed() as conn:
        before = _known(conn, wanted)
    mine = _among(before, works)
    kept = before.filter(~_among(before, [work for work in works if work.whole]))
    after = _last(pl.concat([kept.select(_PLACE), own.select(_PLACE)]), _CLAIM)
    last = _last(after, _EVENT)
    published = own.join(last, on=_PLACE, how="semi").select(rows.columns)
    withdrawn = _withdraw(context.connection, before.filter(mine), last, [work for work in works if not work.whole])
    names = list(EVENT_IDENTITIES.schema())
    wanted = after.filter(_among(after, works)).select(names)
    table_io.replace(context.connection, EVENT_IDENTITIES, before.filter(mine).select(names), wanted)
    return Decided(
        rows=pl.concat([rows.filter(pl.col("event_id").is_null()), published]),
        withdrawn=withdrawn,
        stale=_stale(works, before, own, last),
    )


# ---------------------------------------------------------------------- reading


def _stored_of(conn: Connection, works: Sequence[Work]) -> pl.DataFrame:
    """The identities that some hours hold."""
    regions = [region for work in works for region in work.regions(whole=True)]
    return table_io.read_regions(conn, EVENT_IDENTITIES, regions)


def _known(conn: Connection, wanted: pl.DataFrame) -> pl.DataFrame:
    """Everything that is stored of some identities, in all hours."""
    names = ", ".join(f'"{column.name}"' for column in EVENT_IDENTITIES.columns)
    frames = [EVENT_IDENTITIES.empty()]
    for (domain_id,), its in wanted.group_by("domain_id"):
        for part in its["identity"].sort().to_frame().iter_slices(LOOKED_UP_AT_ONCE):
            query = f"SELECT {names} FROM event_identities WHERE domain_id = %s AND identity = ANY(%s)"
            parameters = (domain_id, part["identity"].to_list())
            frames.append(table_io.read_query(conn, query, parameters, EVENT_IDENTITIES.columns))
    return _with_hour(pl.concat(frames))


def _with_hour(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns((pl.col("event_time_us") // HOUR_US * HOUR_US).alias("hour_us"))


def _last(frame: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return frame.sort(*by, *table.ORDER_US).unique(by, keep="last", maintain_order=True)


def _among(frame: pl.DataFrame, works: Sequence[Work]) -> pl.Series:
    """Which rows lie in the hours of some works."""
    if not works:
        return pl.Series(np.zeros(frame.height, np.bool_))
    found = Parts(works).of(frame["domain_id"].to_numpy(), frame["event_time_us"].to_numpy()) >= 0
    return pl.Series(found, dtype=pl.Boolean)


# ---------------------------------------------------------------------- writing


def _withdraw(conn: Connection, stored: pl.DataFrame, last: pl.DataFrame, works: Sequence[Work]) -> pl.DataFrame:
    """Deletes stored events of some works that are the event no longer, or are it at another time."""
    gone = stored.filter(_among(stored, works)).join(last, on=[*_CLAIM, "event_time_us"], how="anti")
    return table_io.delete_keys(conn, EVENTS, gone)


def _stale(
    works: Sequence[Work], before: pl.DataFrame, own: pl.DataFrame, last: pl.DataFrame
) -> list[Invalidation]:
    """Hours whose rows this slice cannot write: they held the event and do so no longer, or must hold it now."""
    winner = _last(before.select(_PLACE), _EVENT)
    lost = winner.filter(~_among(winner, works)).join(last, on=_CLAIM, how="anti")
    won = last.join(own, on=_PLACE, how="anti").join(winner, on=_PLACE, how="anti")
    hours: set[Key] = {
        (domain_id, from_us(hour_us))
        for frame in (lost, won)
        for domain_id, hour_us in frame.select("domain_id", "hour_us").unique().rows()
    }
    return [
        Invalidation(asset="normalized_measurements", domain_id=key[0], hour=key[1], reason="event id elsewhere")
        for key in sorted(hours)
    ]
