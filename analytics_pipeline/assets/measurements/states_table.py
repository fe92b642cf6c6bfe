"""The table of changes of state: from what was decoded to rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Parts, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.normalized import Chunk, NormalizedTable, StoredChanges, position_columns
from analytics_pipeline.assets.measurements.samples import names_of
from analytics_pipeline.assets.measurements.samples_table import series_numbers, series_text
from analytics_pipeline.assets.measurements.spec import STATES
from analytics_pipeline.assets.measurements.states import States
from analytics_pipeline.assets.measurements.transform import Decoded
from analytics_pipeline.quality.suites import name_measures
from analytics_pipeline.storage.pending_work import MAX_SERIES, Scope


class StateTable(NormalizedTable[States]):
    """Changes of state: identified by series and time."""

    spec = STATES

    def part_of(self, decoded: Decoded) -> States | None:
        return decoded.states

    def gate_frame(self, chunks: Sequence[Chunk[States]]) -> pl.DataFrame:
        frames = []
        for chunk in chunks:
            names = names_of(chunk.part.keys)
            measured = pl.concat([name_measures(names), names], how="horizontal")
            frame = measured.select(pl.all().gather(chunk.part.series))
            frames.append(frame.with_columns(chunk.part.state, pl.lit(chunk.domain_id, pl.Int64).alias("domain_id")))
        return pl.concat(frames)

    def describe(self, part: States, index: int) -> str:
        return f"{series_text(part.keys[part.series[index]])}, state {part.state[index]!r}"

    def columns(self, context: Context, chunk: Chunk[States], kept: Ints) -> pl.DataFrame:
        its = chunk.part
        columns: dict[str, Any] = {
            "series_id": series_numbers(context, chunk.domain_id, its.keys, its.series[kept]),
            "state": its.state[kept],
            **position_columns(chunk, kept),
        }
        return pl.DataFrame({c.frame_name: columns[c.name] for c in STATES.columns}, schema=STATES.schema())

    def joined(self, columns: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One row per series and time: the last by (Kafka time, position)."""
        key = list(STATES.frame_key)
        return pl.concat(columns).sort(*key, *table.ORDER_US).unique(key, keep="last", maintain_order=True)

    def write(self, context: Context, works: Sequence[Work], parts: Parts, rows: pl.DataFrame) -> StoredChanges:
        return StoredChanges(table.replace_or_merge(context.connection, STATES, works, parts, rows), rows)

    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        """A state lasts until the next change, so that all of the hour may be stale, of these series."""
        series = rows["series_id"].unique().sort().to_list()
        return Scope(series=tuple(series) if len(series) <= MAX_SERIES else None, states=True)
