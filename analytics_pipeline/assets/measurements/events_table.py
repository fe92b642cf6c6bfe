"""The table of events: from decoded events to rows, and which of several with one id is the event."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Parts, Work
from analytics_pipeline.assets.measurements import event_identities, table
from analytics_pipeline.assets.measurements.events import Events, identities
from analytics_pipeline.assets.measurements.normalized import Chunk, NormalizedTable, StoredChanges, position_columns
from analytics_pipeline.assets.measurements.samples_table import base_starts_s
from analytics_pipeline.assets.measurements.spec import EVENTS
from analytics_pipeline.assets.measurements.transform import Decoded
from analytics_pipeline.records import HOUR_US
from analytics_pipeline.storage.pending_work import Scope, merged_spans


class EventTable(NormalizedTable[Events]):
    """Events: identified by their id, whenever it is seen, or else by content and time."""

    spec = EVENTS

    def part_of(self, decoded: Decoded) -> Events | None:
        return decoded.events

    def gate_frame(self, chunks: Sequence[Chunk[Events]]) -> pl.DataFrame:
        return pl.concat(
            chunk.part.frame.with_columns(pl.lit(chunk.domain_id, pl.Int64).alias("domain_id")) for chunk in chunks
        )

    def describe(self, part: Events, index: int) -> str:
        fields = part.frame.drop("properties").row(index, named=True)
        return ", ".join(f"{name} {value!r}" for name, value in fields.items() if value is not None)

    def columns(self, context: Context, chunk: Chunk[Events], kept: Ints) -> pl.DataFrame:
        position = position_columns(chunk, kept)
        rows = chunk.part.frame[kept].with_columns(
            pl.Series(EVENTS.by_name[name].frame_name, column) for name, column in position.items()
        )
        identity = identities(rows, chunk.domain.event_identity)
        return rows.with_columns(identity, pl.col("value") + 0.0).select(list(EVENTS.schema())).cast(EVENTS.schema())  # type: ignore[arg-type]

    def joined(self, columns: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One row per identity and hour: the last by (Kafka time, position)."""
        hour = (pl.col("event_time_us") // HOUR_US).alias("hour")
        return (
            pl.concat(columns)
            .with_columns(hour)
            .sort("domain_id", "hour", "identity", *table.ORDER_US)
            .unique(["domain_id", "hour", "identity"], keep="last", maintain_order=True)
            .drop("hour")
        )

    def write(self, context: Context, works: Sequence[Work], parts: Parts, rows: pl.DataFrame) -> StoredChanges:
        decided = event_identities.decide(context, works, rows)
        counts = table.replace_or_merge(context.connection, EVENTS, works, parts, decided.rows)
        gone = table.part_of(parts, EVENTS, decided.withdrawn)
        touched = pl.concat([frame.select("domain_id", "event_time_us") for frame in (rows, decided.withdrawn)])
        return StoredChanges(counts - np.bincount(gone, minlength=len(counts)), touched, decided.stale)

    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        """Events have no series, so the scope names time only: the base windows that hold an event that is new, other
        or gone. What is computed of events reads no series, and what is computed of series reads a superset."""
        base_s = context.settings.base_window_s
        return Scope(spans=merged_spans((start, start + base_s) for start in base_starts_s(work, rows, base_s)))
