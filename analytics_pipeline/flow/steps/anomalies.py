"""window_aggregates to anomalies: judges the base windows of an hour from the first changed one on."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from analytics_pipeline.flow.steps.base import Evaluation, Work, Written, mark_of
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR, DerivedName
from analytics_pipeline.stages.anomalies import detect
from analytics_pipeline.storage import aggregates, results, series


class AnomalyStep:
    """Asks the domain's detectors about windows, each against its own stored past."""

    asset: DerivedName = "anomalies"

    def evaluate(self, work: Work) -> Evaluation:
        begins = work.hour + timedelta(seconds=min(work.scope) if work.scope else 0)
        frame = self._detect(work, begins)
        gate = run_gate(suite_for("anomalies", work.domain, work.settings), frame)
        return Evaluation(
            gate=gate,
            rows_seen=frame.height if work.scope is None else work.state.rows_seen + frame.height,
            rows_failed=len(gate.reasons),
            dead_letters=0,
            late_rows=0,
            write=lambda: self._write(work, begins, frame),
            all_or_nothing=True,
        )

    def _detect(self, work: Work, begins: datetime) -> pl.DataFrame:
        name, base_s = work.domain.name, work.settings.base_window_s
        targets = aggregates.read_judged(work.connection, name, base_s, begins, work.hour + HOUR)
        judged = targets["series_id"].unique().sort().to_list()
        detectors = work.domain.detectors
        history = aggregates.read_history(
            work.connection,
            judged,
            base_s,
            begins,
            max((one.look_back for one in detectors), default=timedelta()),
            max((one.baseline_windows for one in detectors), default=0),
        )
        known = series.by_number(work.connection, judged)
        windows = pl.concat(
            [targets.with_columns(is_target=True), history.with_columns(is_target=False)], how="diagonal"
        )
        return detect(windows, results.spec_limits(work.connection, known), detectors)

    def _write(self, work: Work, begins: datetime, frame: pl.DataFrame) -> Written:
        name, ends = work.domain.name, work.hour + HOUR
        differs = results.replace_anomalies(work.connection, name, begins, ends, frame)
        held = results.count_anomalies(work.connection, name, work.hour, ends)
        marks = (mark_of(work, "kpis", None, "anomalies"),) if differs else ()
        return Written(held, frame.height, marks)
