"""window_aggregates and anomalies to kpis: always the whole hour, from its base windows."""

from __future__ import annotations

import polars as pl

from analytics_pipeline.flow.steps.base import Evaluation, Work, Written
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR, DerivedName
from analytics_pipeline.stages.kpis import machine_kpis
from analytics_pipeline.storage import aggregates, results, series


class KpiStep:
    """Sums the hour of each machine."""

    asset: DerivedName = "kpis"

    def evaluate(self, work: Work) -> Evaluation:
        name, base_s, ends = work.domain.name, work.settings.base_window_s, work.hour + HOUR
        windows = aggregates.read_judged(work.connection, name, base_s, work.hour, ends)
        known = series.by_number(work.connection, windows["series_id"].unique().sort().to_list())
        frame = machine_kpis(
            windows,
            results.series_frame(known).with_columns(domain_id=0),
            results.read_anomalies(work.connection, name, work.hour, ends),
            results.spec_limits(work.connection, known),
            base_s=base_s,
        ).with_columns(domain=pl.lit(name))
        gate = run_gate(suite_for("kpis", work.domain, work.settings), frame)

        def write() -> Written:
            results.replace_kpis(work.connection, name, work.hour, frame)
            return Written(frame.height, frame.height)

        return Evaluation(gate, frame.height, len(gate.reasons), 0, 0, write, all_or_nothing=True)
