"""normalized_measurements to window_aggregates: base windows from measurements, each larger size from a smaller.

A change goes up the sizes: the windows that hold a changed window are merged again, from stored windows and
the new ones. Which size a size is merged from is fixed by the settings, so that live and rebuild give one
figure, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import polars as pl

from analytics_pipeline.flow.steps.base import Evaluation, LaterHours, Work, Written, mark_of
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR, HOUR_S, DerivedName, from_us, to_us
from analytics_pipeline.stages.windows import WINDOW_SCHEMA, EarlierSamples, base_windows, merge_windows
from analytics_pipeline.storage import aggregates, ledger, measurements
from analytics_pipeline.storage.aggregates import Buckets
from analytics_pipeline.storage.ledger import Mark

#: In a mark's scope: the windows longer than an hour that begin in this one.
LONG_WINDOWS = -1
#: Measurements that are read at once, as far as windows can be told apart: bounds a worker's memory.
SLICE_ROWS = 1_000_000
#: Spans of event time in one statement; beyond, the whole stretch is read and sifted.
MAX_SPANS = 8


class WindowStep:
    """Computes the windows that a scope names, and those above them."""

    asset: DerivedName = "window_aggregates"

    def evaluate(self, work: Work) -> Evaluation:
        levels = self._compute(work)
        frame = pl.concat([level for level, _ in levels]) if levels else pl.DataFrame(schema=WINDOW_SCHEMA)
        gate = run_gate(suite_for("window_aggregates", work.domain, work.settings), frame)
        return Evaluation(
            gate=gate,
            rows_seen=frame.height if work.scope is None else work.state.rows_seen + frame.height,
            rows_failed=len(gate.reasons),
            dead_letters=0,
            late_rows=0,
            write=lambda: self._write(work, frame, [scope for _, scope in levels]),
            all_or_nothing=True,
        )

    # ------------------------------------------------------------------ computing

    def _compute(self, work: Work) -> list[tuple[pl.DataFrame, Buckets]]:
        sizes = [size for size in work.settings.window_sizes_s if size <= HOUR_S]
        base_s, hour_us = sizes[0], to_us(work.hour)
        scope = range(0, HOUR_S, base_s) if work.scope is None else [s for s in work.scope if s >= 0]
        starts = tuple(hour_us + start * 1_000_000 for start in scope)
        levels: list[tuple[pl.DataFrame, Buckets]] = []
        if starts:
            levels.append((self._base(work, starts, base_s), Buckets(base_s, starts)))
        for size in sizes[1:] if starts else ():
            child_s = max(one for one in sizes if one < size and size % one == 0)
            below = next(level for level in levels if level[1].window_s == child_s)
            levels.append(self._merged(work, size, below, base_s))
        levels += self._long(work, levels)
        return levels

    def _base(self, work: Work, starts_us: tuple[int, ...], base_s: int) -> pl.DataFrame:
        held = ledger.read_states(work.connection, "normalized_measurements", work.hour).get(work.domain.name)
        rows = held.rows if held else 0
        at_once = max(1, HOUR_S // base_s * SLICE_ROWS // max(rows, 1))
        return pl.concat(
            [
                self._windows_of(work, starts_us[at : at + at_once], base_s)
                for at in range(0, len(starts_us), at_once)
            ]
        )

    def _windows_of(self, work: Work, starts_us: tuple[int, ...], base_s: int) -> pl.DataFrame:
        spans = _spans(starts_us, base_s * 1_000_000)
        sift = len(spans) > MAX_SPANS
        bounds = [(spans[0][0], spans[-1][1])] if sift else spans
        rows = measurements.read(
            work.connection, work.domain.name, [(from_us(begin), from_us(end)) for begin, end in bounds]
        )
        # Nothing is carried yet: storage has to read earlier samples and to mark the windows that they reach.
        frame = base_windows(
            rows["series_id"],
            rows["event_time"],
            rows["sample_key"],
            rows["value"],
            base_s,
            longest_gap_us=0,
            earlier=EarlierSamples.none(),
        )
        return frame.filter(pl.col("bucket_start_us").is_in(starts_us)) if sift else frame

    def _merged(
        self, work: Work, size_s: int, below: tuple[pl.DataFrame, Buckets], base_s: int
    ) -> tuple[pl.DataFrame, Buckets]:
        """The windows of one size that hold those of the level below."""
        new, scope = below
        size_us = size_s * 1_000_000
        parents = Buckets(size_s, tuple(sorted({start // size_us * size_us for start in scope.starts_us})))
        known = len(parents.starts_us) * (size_s // scope.window_s) == len(scope.starts_us)
        if not known:
            stored = aggregates.read_children(
                work.connection, work.domain.name, scope.window_s, parents, scope.starts_us
            )
            new = pl.concat([stored, new])
        return merge_windows(new, size_s, finest_s=base_s), parents

    def _long(self, work: Work, levels: list[tuple[pl.DataFrame, Buckets]]) -> list[tuple[pl.DataFrame, Buckets]]:
        """Windows longer than an hour that begin in this one, from hourly windows."""
        asked = work.scope is None or LONG_WINDOWS in work.scope or bool(levels)
        hour_us = to_us(work.hour)
        hourly = [level for level, scope in levels if scope.window_s == HOUR_S]
        computed = []
        for size in work.settings.window_sizes_s:
            if size <= HOUR_S or hour_us % (size * 1_000_000) or not asked:
                continue
            window = Buckets(size, (hour_us,))
            known = (hour_us,) if hourly else ()
            stored = aggregates.read_children(work.connection, work.domain.name, HOUR_S, window, known)
            merged = merge_windows(pl.concat([stored, *hourly]), size, finest_s=work.settings.base_window_s)
            computed.append((merged, window))
        return computed

    # ------------------------------------------------------------------ writing

    def _write(self, work: Work, frame: pl.DataFrame, scope: list[Buckets]) -> Written:
        name = work.domain.name
        final_until = aggregates.final_until(work.connection, name)
        done = aggregates.replace(work.connection, name, frame, scope, final_until)
        # The whole hour is what was computed; before PostgreSQL 18, counting it reads every window ever stored.
        held = frame.height if work.scope is None else work.state.rows + done.added - done.removed
        base_s = work.settings.base_window_s
        changed = sorted((start - to_us(work.hour)) // 1_000_000 for size, start in done.changed if size == base_s)
        marks: list[Mark] = []
        if changed:
            marks.append(mark_of(work, "anomalies", (changed[0],), "windows"))
            marks.append(mark_of(work, "kpis", None, "windows"))
        if any(size == HOUR_S for size, _ in done.changed):
            marks += self._marks_of_long(work)
        reach = _reach_h(detector.look_back for detector in work.domain.detectors)
        return Written(
            held, frame.height, tuple(marks), LaterHours("anomalies", reach) if changed and reach else None
        )

    def _marks_of_long(self, work: Work) -> list[Mark]:
        """Longer windows that hold this hour and begin in another one."""
        hour_us = to_us(work.hour)
        begins = {
            hour_us // (size * 1_000_000) * (size * 1_000_000)
            for size in work.settings.window_sizes_s
            if size > HOUR_S
        }
        return [
            Mark("window_aggregates", from_us(begin), work.domain.name, (LONG_WINDOWS,), "hourly window")
            for begin in sorted(begins - {hour_us})
        ]


def _spans(starts_us: tuple[int, ...], size_us: int) -> list[tuple[int, int]]:
    """Neighbouring windows joined into half-open spans."""
    spans: list[tuple[int, int]] = []
    for start in sorted(starts_us):
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], start + size_us)
        else:
            spans.append((start, start + size_us))
    return spans


def _reach_h(look_backs: Iterable[timedelta]) -> int:
    """Whole hours that the longest look-back reaches on."""
    longest = max(look_backs, default=timedelta())
    return -(-longest // HOUR)
