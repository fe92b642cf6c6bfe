"""raw_events to normalized_measurements: the batches that the marks name, or the whole hour."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analytics_pipeline.flow.steps.base import Evaluation, Work, Written, mark_of
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import DeadLetter, DerivedName, to_us
from analytics_pipeline.stages.normalize import Samples, decode_samples, latest
from analytics_pipeline.stages.raw import Refusal
from analytics_pipeline.storage import batches, dead_letters, measurements, raw_events
from analytics_pipeline.storage.raw_events import StoredRows

ASSET: DerivedName = "normalized_measurements"
Columns = dict[str, npt.NDArray[Any]]


class NormalizeStep:
    """Decodes payloads into measurements; what cannot be decoded, or fails the gate, is a dead letter."""

    asset: DerivedName = "normalized_measurements"

    def evaluate(self, work: Work) -> Evaluation:
        raw = self._read(work)
        samples = decode_samples(raw.payload, work.domain)
        gate = run_gate(suite_for(ASSET, work.domain, work.settings), samples.gate_frame())
        whole = work.scope is None
        failed = len(samples.refusals) + len(gate.reasons)
        seen = len(samples.refusals) + len(samples.row)
        return Evaluation(
            gate=gate,
            rows_seen=seen if whole else work.state.rows_seen + seen,
            rows_failed=failed if whole else work.state.rows_failed + failed,
            dead_letters=failed,
            late_rows=batches.late_rows(work.connection, work.hour, work.domain.name, work.scope),
            write=lambda: self._write(work, raw, samples, gate.reasons),
        )

    def _read(self, work: Work) -> StoredRows:
        if work.scope is None:
            return raw_events.read_hour(work.connection, work.domain.topics, work.hour)
        return raw_events.read_batches(work.connection, work.domain.topics, work.hour, work.scope)

    def _write(self, work: Work, raw: StoredRows, samples: Samples, failed: dict[int, str]) -> Written:
        keep = np.ones(len(samples.row), np.bool_)
        keep[list(failed)] = False
        rows = latest(self._columns(work, raw, samples, np.flatnonzero(keep)))
        letters = self._letters(work, raw, samples, failed)
        name, written = work.domain.name, len(rows["event_time"])
        if work.scope is None:
            dead_letters.forget(work.connection, ASSET, work.hour, name)
            measurements.replace_hour(work.connection, name, work.hour, rows)
            held, scope = written, None
        else:
            held = work.state.rows + measurements.merge(work.connection, rows)
            scope = self._touched(work, rows["event_time"])
        dead_letters.write(work.connection, letters)
        if scope == ():
            return Written(held, written)
        return Written(held, written, (mark_of(work, "window_aggregates", scope, "measurements"),))

    def _columns(self, work: Work, raw: StoredRows, samples: Samples, kept: npt.NDArray[np.int64]) -> Columns:
        """The table's columns of the samples that are kept; only their series get a number."""
        numbers = np.zeros(len(samples.keys), np.int32)
        used = np.unique(samples.series[kept])
        numbers[used] = work.series.numbers(work.domain.name, [samples.keys[at] for at in used.tolist()])
        row = samples.row[kept]
        return {
            "event_time": raw.event_time_us[row],
            "series_id": numbers[samples.series[kept]],
            "sample_key": samples.sample_key[kept],
            "value": samples.value[kept],
            "kafka_time": raw.kafka_time_us[row],
            "log_id": raw.log_id[row],
            "partition": raw.partition[row],
            "offset": raw.offset[row],
            "ordinal": samples.ordinal[kept],
        }

    def _touched(self, work: Work, event_time_us: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """Starts of the base windows that hold these times, seconds into the hour."""
        base_s = work.settings.base_window_s
        into_hour_s = (event_time_us - to_us(work.hour)) // 1_000_000
        return tuple(np.unique(into_hour_s // base_s * base_s).tolist())

    def _letters(self, work: Work, raw: StoredRows, samples: Samples, failed: dict[int, str]) -> list[DeadLetter]:
        refused = {(row, 0): refusal for row, refusal in samples.refusals.items()}
        for sample, reason in failed.items():
            error = f"{reason}: {samples.keys[samples.series[sample]]}, value {samples.value[sample]!r}"
            refused[int(samples.row[sample]), int(samples.ordinal[sample])] = Refusal(reason, error)
        rows = sorted({row for row, _ in refused})
        origins = raw_events.read_origins(work.connection, raw, rows)
        return [
            DeadLetter(
                origins[row].topic,
                origins[row].epoch,
                int(raw.partition[row]),
                int(raw.offset[row]),
                ordinal,
                ASSET,
                work.domain.name,
                refusal.reason,
                refusal.error,
                raw.payload[row],
                origins[row].key,
                origins[row].headers,
                int(raw.kafka_time_us[row]),
                int(raw.event_time_us[row]),
                origins[row].arrived_at_us,
                origins[row].batch_id,
            )
            for (row, ordinal), refusal in sorted(refused.items())
        ]
