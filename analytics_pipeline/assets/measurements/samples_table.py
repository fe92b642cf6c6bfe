"""The table of measurements: from decoded samples to rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import Context, Ints, Parts, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.normalized import Chunk, NormalizedTable, StoredChanges, position_columns
from analytics_pipeline.assets.measurements.samples import Samples
from analytics_pipeline.assets.measurements.spec import SPEC, TABLE
from analytics_pipeline.assets.measurements.transform import Decoded, latest
from analytics_pipeline.quality.suites import name_measures
from analytics_pipeline.records import HOUR_US
from analytics_pipeline.storage.pending_work import MAX_SERIES, Scope, merged_spans

#: Above this share of a domain's series, a scope names time only.
MAX_SERIES_SHARE = 0.1


class SampleTable(NormalizedTable[Samples]):
    """Measurements: identified by series, time and sample key."""

    spec = TABLE

    def part_of(self, decoded: Decoded) -> Samples | None:
        return decoded.samples

    def gate_frame(self, chunks: Sequence[Chunk[Samples]]) -> pl.DataFrame:
        """What the gate validates: value, measures of the names taken per series, and what domains ask for besides."""
        frames = []
        wanted = {
            expect.column for chunk in chunks for expect in chunk.domain.expectations if expect.asset == SPEC.name
        }
        for chunk in chunks:
            names = chunk.part.names_frame()
            measured = name_measures(names).with_columns(names[name] for name in names.columns if name in wanted)
            frame = measured.select(pl.all().gather(chunk.part.series))
            frames.append(
                frame.with_columns(
                    pl.Series("value", chunk.part.value),
                    pl.Series("without_value", chunk.part.without_value()),
                    pl.lit(chunk.domain_id, pl.Int64).alias("domain_id"),
                )
            )
        return pl.concat(frames)

    def describe(self, part: Samples, index: int) -> str:
        return f"{series_text(part.keys[part.series[index]])}, value {float(part.value[index])!r}"

    def columns(self, context: Context, chunk: Chunk[Samples], kept: Ints) -> dict[str, Any]:
        """The table's columns of the samples that are kept; only their series get a number."""
        samples = chunk.part
        quality = samples.quality
        return {
            "series_id": series_numbers(context, chunk.domain_id, samples.keys, samples.series[kept]),
            "sample_key": samples.sample_key[kept],
            "value": samples.value[kept],
            "quality": np.zeros(len(kept), np.int16) if quality is None else quality[kept],
            **position_columns(chunk, kept),
        }

    def joined(self, columns: Sequence[dict[str, Any]]) -> pl.DataFrame:
        # Of an hour of millions, no column stands in memory twice for longer than it is put together.
        rows = latest({name: np.concatenate([one.pop(name) for one in columns]) for name in list(columns[0])})
        return pl.DataFrame({c.frame_name: rows[c.name] for c in TABLE.columns}, schema=TABLE.schema())

    def write(
        self, context: Context, works: Sequence[Work], parts: Parts, rows: pl.DataFrame
    ) -> StoredChanges:
        return StoredChanges(table.replace_or_merge(context.connection, TABLE, works, parts, rows), rows)

    def scope(self, context: Context, work: Work, rows: pl.DataFrame) -> Scope:
        return windows_scope(context, work, rows)


def windows_scope(context: Context, work: Work, rows: pl.DataFrame) -> Scope:
    """The base windows that hold the rows: of their series, or of all where they are many."""
    base_s = context.settings.base_window_s
    series = rows["series_id"].unique().sort()
    spans = merged_spans((start, start + base_s) for start in base_starts_s(work, rows, base_s))
    if len(series) > min(MAX_SERIES, MAX_SERIES_SHARE * context.series.count(work.domain_id)):
        return Scope(spans=spans)
    return Scope(series=tuple(series.to_list()), spans=spans)


def base_starts_s(work: Work, rows: pl.DataFrame, base_s: int) -> list[int]:
    """Where the base windows of some rows begin, in seconds of the work's hour."""
    time_us = rows["event_time_us"].to_numpy()
    starts: list[int] = np.unique((time_us - work.hour_us) % HOUR_US // 1_000_000 // base_s * base_s).tolist()
    return starts


def series_numbers(context: Context, domain_id: int, keys: Sequence[Any], index: Ints) -> Ints:
    """The number of the series of each row; only series that have a row get one."""
    numbers = np.zeros(len(keys), np.int64)
    used = np.unique(index)
    numbers[used] = context.series.numbers(domain_id, [keys[at] for at in used.tolist()])
    found: Ints = numbers[index]
    return found


def series_text(series: Any) -> str:
    """The names of a series that it has, for people."""
    return ", ".join(f"{name} {value!r}" for name, value in series._asdict().items() if value is not None)
