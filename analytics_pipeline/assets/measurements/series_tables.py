"""The tables of what is told of series at a time: changes of state, and readings of counters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Parts, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.normalized import Chunk, NormalizedTable, StoredChanges, position_columns
from analytics_pipeline.assets.measurements.samples import names_of
from analytics_pipeline.assets.measurements.samples_table import series_numbers, series_text, windows_scope
from analytics_pipeline.assets.measurements.series_rows import SeriesRows
from analytics_pipeline.assets.measurements.spec import READINGS, STATES
from analytics_pipeline.assets.measurements.transform import Decoded
from analytics_pipeline.quality.suites import name_measures
from analytics_pipeline.storage.pending_work import MAX_SERIES, Scope


class SeriesTable(NormalizedTable[SeriesRows]):
    """Rows identified by series and time."""

    def gate_frame(self, chunks: Sequence[Chunk[SeriesRows]]) -> pl.DataFrame:
        frames = []
        for chunk in chunks:
            names = names_of(chunk.part.keys)
            measured = pl.concat([name_measures(names), names], how="horizontal")
            frame = measured.select(pl.all().gather(chunk.part.series)).hstack(chunk.part.values)
            frames.append(frame.with_columns(pl.lit(chunk.domain_id, pl.Int64).alias("domain_id")))
        return pl.concat(frames)

    @abstractmethod
    def told(self, values: dict[str, Any]) -> str:
        """What a row tells of its series, in words."""

    def describe(self, part: SeriesRows, index: int) -> str:
        return f"{series_text(part.keys[part.series[index]])}, {self.told(part.values.row(index, named=True))}"

    def columns(self, context: Context, chunk: Chunk[SeriesRows], kept: Ints) -> pl.DataFrame:
        its = chunk.part
        values = its.values[kept]
        columns: dict[str, Any] = {
            "series_id": series_numbers(context, chunk.domain_id, its.keys, its.series[kept]),
            **position_columns(chunk, kept),
        }
        columns |= {name: values[name] for name in values.columns}
        return pl.DataFrame({c.frame_name: columns[c.name] for c in self.spec.columns}, schema=self.spec.schema())

    def joined(self, columns: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One row per series and time: the last by (Kafka time, position)."""
        key = list(self.spec.frame_key)
        return pl.concat(columns).sort(*key, *table.ORDER_US).unique(key, keep="last", maintain_order=True)

    def write(self, context: Context, works: Sequence[Work], parts: Parts, rows: pl.DataFrame) -> StoredChanges:
        return StoredChanges(table.replace_or_merge(context.connection, self.spec, works, parts, rows), rows)


class StateTable(SeriesTable):
    """Changes of state."""

    spec = STATES

    def part_of(self, decoded: Decoded) -> SeriesRows | None:
        return decoded.states

    def told(self, values: dict[str, Any]) -> str:
        return f"state {values['state']!r}"

    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        """A state lasts until the next change, so that all of the hour may be stale, of these series."""
        series = rows["series_id"].unique().sort().to_list()
        return Scope(series=tuple(series) if len(series) <= MAX_SERIES else None, states=True)


class CounterTable(SeriesTable):
    """Readings of counters."""

    spec = READINGS

    def part_of(self, decoded: Decoded) -> SeriesRows | None:
        return decoded.counters

    def told(self, values: dict[str, Any]) -> str:
        return "no reading" if values["fault"] else f"reading {values['reading']}"

    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        """As that of samples. What was counted up to the next reading is stale as well, wherever that is: who computes
        the windows finds it."""
        return windows_scope(context, work, rows)
