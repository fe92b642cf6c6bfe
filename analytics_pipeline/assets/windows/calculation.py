"""normalized_measurements to the tables of window_aggregates: samples, events, states and counters per window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import (
    Computed,
    Context,
    Key,
    Parts,
    Validated,
    Work,
    Written,
    split_gate,
)
from analytics_pipeline.assets.windows import table
from analytics_pipeline.assets.windows.counter_windows import CounterWindows
from analytics_pipeline.assets.windows.rollup_windows import RollupWindows
from analytics_pipeline.assets.windows.sample_windows import SampleWindows
from analytics_pipeline.assets.windows.spec import SPEC, STATE_TABLES
from analytics_pipeline.assets.windows.state_windows import StateWindows
from analytics_pipeline.assets.windows.window_table import (
    Rows,
    WindowTable,
    Write,
    WrittenRows,
    longer_windows,
    part_of,
)
from analytics_pipeline.records import HOUR_S, HOUR_US, GateResult, Region
from analytics_pipeline.storage.pending_work import Invalidation, Scope, merged_spans

TABLES: tuple[WindowTable, ...] = (SampleWindows(), RollupWindows(), StateWindows(), CounterWindows())

#: By the index of a work, the series of which nothing is written.
Withheld = dict[int, tuple[int, ...]]


class WindowCalculation:
    """Computes the windows that a scope names, and those above them."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        rows = [one for window_table in TABLES for one in window_table.compute(context, works)]
        gates = [GateResult(asset=SPEC.name, domain=work.domain.name, rows=0) for work in works]
        withheld: dict[int, set[int]] = {}
        refused: set[int] = set()
        parts = Parts(works)
        for one in rows:
            frame = one.frame()
            part = part_of(parts, frame)
            gate = context.gate(frame, [work.domain for work in works], one.spec.name)
            for at, result in enumerate(split_gate(gate, part, works)):
                gates[at] = gates[at].followed_by(result) if gates[at].rows else result
            for row in gate.reasons:
                if "series_id" in frame.columns:
                    withheld.setdefault(int(part[row]), set()).add(int(frame["series_id"][row]))
                else:
                    refused.add(int(part[row]))
        series: Withheld = {at: tuple(sorted(its)) for at, its in withheld.items()}
        validated = {
            work.key: Validated(
                gate=gates[at],
                rows_seen=gates[at].rows,
                rows_failed=len(gates[at].reasons),
                withheld_series=series.get(at, ()),
                refused=at in refused,
            )
            for at, work in enumerate(works)
        }
        return Computed(validated=validated, write=partial(_write, context, works, rows, series))


def _write(
    context: Context, works: Sequence[Work], rows: Sequence[Rows], withheld: Withheld, accepted: frozenset[Key]
) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
    parts = Parts(works)
    tables = [_write_table(context, works, parts, one, withheld, accepted) for one in rows]
    held, written = np.array([work.state.rows for work in works], np.int64), np.zeros(len(works), np.int64)
    for one in tables:
        held += _counts(parts, one.replaced.added) - _counts(parts, one.replaced.removed)
        written += _counts(parts, one.wanted)
    results = {
        work.key: Written(rows=int(held[at]), written=int(written[at]))
        for at, work in enumerate(works)
        if work.key in accepted
    }
    context.serialize_commits([work.domain_id for work in works])
    write = Write(works, accepted, withheld, tables)
    stale = [one for window_table in TABLES for one in window_table.stale(context, write)]
    written_works = [work for work in works if work.key in accepted]
    for its in rows:
        stale += _left_for_later(context, written_works, its.lagging, states=its.spec in STATE_TABLES)
    return results, [*stale, *_longer(context, works, parts, tables)]


def _write_table(
    context: Context,
    works: Sequence[Work],
    parts: Parts,
    rows: Rows,
    withheld: Withheld,
    accepted: frozenset[Key],
) -> WrittenRows:
    frame = rows.frame()
    wanted = frame.filter(_allowed(frame, parts, works, withheld, accepted))
    stored = table.read_stored(context.connection, rows.spec, works, rows.levels)
    stored = stored.filter(_allowed(stored, parts, works, withheld, accepted))
    replaced = table.replace(context.connection, rows.spec, stored, wanted, works)
    return WrittenRows(rows.spec, stored, wanted, replaced)


def _allowed(
    frame: pl.DataFrame, parts: Parts, works: Sequence[Work], withheld: Withheld, accepted: frozenset[Key]
) -> pl.Series:
    """Rows of accepted domain partitions, but for the series that are withheld."""
    part = part_of(parts, frame)
    may = np.array([work.key in accepted for work in works] + [False])
    allowed = may[part]
    if "series_id" in frame.columns:
        for index, series in withheld.items():
            allowed &= ~((part == index) & frame["series_id"].is_in(list(series)).to_numpy())
    return pl.Series(allowed, dtype=pl.Boolean)


def _counts(parts: Parts, frame: pl.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(parts.counts(part_of(parts, frame)), np.int64)


def _longer(
    context: Context, works: Sequence[Work], parts: Parts, tables: Sequence[WrittenRows]
) -> list[Invalidation]:
    """Windows longer than an hour that hold an hourly one that changed."""
    hours = {
        (at, one.spec in STATE_TABLES)
        for one in tables
        if "window_s" in one.spec.by_name
        for at in np.unique(part_of(parts, one.replaced.changed.filter(pl.col("window_s") == HOUR_S))).tolist()
    }
    return [invalid for at, states in sorted(hours) for invalid in longer_windows(context, works[at], states=states)]


def _left_for_later(
    context: Context, works: Sequence[Work], lagging: Sequence[Region], *, states: bool
) -> list[Invalidation]:
    """The windows above the base of some regions, as pending work that waits a while."""
    found = []
    for work in works:
        spans = [
            ((one.begins_us - work.hour_us) // 1_000_000, (one.ends_us - work.hour_us) // 1_000_000)
            for one in lagging
            if one.domain_id == work.domain_id and work.hour_us <= one.begins_us < work.hour_us + HOUR_US
        ]
        if spans:
            found.append(
                Invalidation(
                    asset="window_aggregates",
                    domain_id=work.domain_id,
                    hour=work.hour,
                    scope=Scope(spans=merged_spans(spans), above_base=True, states=states),
                    reason="windows",
                    not_before=context.lag_until,
                )
            )
    return found
