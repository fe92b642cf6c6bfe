"""raw_events to normalized_measurements: the batches that the marks name, or the whole hour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from analytics_pipeline.flow.steps.base import Evaluation, Work, Written, mark_of
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR, HOUR_S, DeadLetter, DerivedName, GateResult, to_us
from analytics_pipeline.stages.normalize import Samples, decode_samples, latest
from analytics_pipeline.stages.raw import Refusal
from analytics_pipeline.storage import batches, dead_letters, measurements, raw_events
from analytics_pipeline.storage.raw_events import StoredRows

ASSET: DerivedName = "normalized_measurements"
Columns = dict[str, npt.NDArray[Any]]


#: Raw rows that are decoded at once: what bounds a worker's memory, at about 1 kB a row.
SLICE_ROWS = 200_000


@dataclass(frozen=True)
class _Part:
    """What became of one slice of raw rows: columns of what passed, letters of what did not."""

    columns: Columns
    letters: list[DeadLetter]
    gate: GateResult
    unreadable: int


class NormalizeStep:
    """Decodes payloads into measurements; what cannot be decoded, or fails the gate, is a dead letter."""

    asset: DerivedName = "normalized_measurements"

    def evaluate(self, work: Work) -> Evaluation:
        parts = [self._part(work, raw) for raw in self._slices(work)]
        gate = reduce(GateResult.followed_by, (part.gate for part in parts))
        unreadable = sum(part.unreadable for part in parts)
        seen, failed = gate.rows + unreadable, len(gate.reasons) + unreadable
        whole = work.scope is None
        return Evaluation(
            gate=gate,
            rows_seen=seen if whole else work.state.rows_seen + seen,
            rows_failed=failed if whole else work.state.rows_failed + failed,
            dead_letters=failed,
            late_rows=batches.late_rows(work.connection, work.hour, work.domain.name, work.scope),
            write=lambda: self._write(work, parts),
        )

    def _slices(self, work: Work) -> Iterator[StoredRows]:
        """The raw rows to decode, never many more than `SLICE_ROWS` at once."""
        topics, name = work.domain.topics, work.domain.name
        if work.scope is not None:
            rows = batches.raw_rows(work.connection, work.hour, name, work.scope)
            for group in _groups(work.scope, rows):
                yield raw_events.read_batches(work.connection, topics, work.hour, group)
            return
        count = raw_events.count_hour(work.connection, name, work.hour)
        spans = min(HOUR_S, count // SLICE_ROWS + 1)
        edges = [work.hour + HOUR * part / spans for part in range(spans)] + [work.hour + HOUR]
        for begins, ends in pairwise(edges):
            yield raw_events.read_span(work.connection, topics, begins, ends)

    def _part(self, work: Work, raw: StoredRows) -> _Part:
        samples = decode_samples(raw.payload, work.domain)
        gate = run_gate(suite_for(ASSET, work.domain, work.settings), samples.gate_frame())
        keep = np.ones(len(samples.row), np.bool_)
        keep[list(gate.reasons)] = False
        columns = self._columns(work, raw, samples, np.flatnonzero(keep))
        letters = self._letters(work, raw, samples, gate.reasons)
        return _Part(columns, letters, gate, len(samples.refusals))

    def _write(self, work: Work, parts: Sequence[_Part]) -> Written:
        rows = latest({name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})
        letters = [letter for part in parts for letter in part.letters]
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
            "ordinal": samples.ordinal[kept].astype(np.int32),
        }

    def _touched(self, work: Work, event_time_us: npt.NDArray[np.int64]) -> tuple[int, ...]:
        """Starts of the base windows that hold these times, seconds into the hour."""
        base_s = work.settings.base_window_s
        into_hour_s = (event_time_us - to_us(work.hour)) // 1_000_000
        return tuple(np.unique(into_hour_s // base_s * base_s).tolist())

    def _letters(self, work: Work, raw: StoredRows, samples: Samples, failed: dict[int, str]) -> list[DeadLetter]:
        refused = {(row, 0): refusal for row, refusal in samples.refusals.items()}
        for sample, reason in failed.items():
            series = samples.keys[samples.series[sample]]
            names = ", ".join(f"{name} {value!r}" for name, value in series._asdict().items() if value is not None)
            error = f"{reason}: {names}, value {float(samples.value[sample])!r}"
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


def _groups(batch_ids: Sequence[int], rows: Mapping[int, int]) -> Iterator[list[int]]:
    """Batches gathered until they hold `SLICE_ROWS`; at least one group, if an empty one."""
    group: list[int] = []
    held = 0
    for batch_id in batch_ids:
        if group and held + rows.get(batch_id, 0) > SLICE_ROWS:
            yield group
            group, held = [], 0
        group.append(batch_id)
        held += rows.get(batch_id, 0)
    yield group
