"""raw_events to normalized_measurements: what the pending batches brought, or whole hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.calculation import (
    Computed,
    Context,
    Ints,
    Key,
    Parts,
    Validated,
    Work,
    Written,
    split_gate,
)
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.failing_series import Evaluated, excused
from analytics_pipeline.assets.measurements.spec import SPEC
from analytics_pipeline.assets.measurements.transform import Samples, decode_samples, latest
from analytics_pipeline.assets.raw_events.transform import Rejection
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.quality.gates import quarantines
from analytics_pipeline.quality.suites import name_measures
from analytics_pipeline.records import HOUR_US, DeadLetter, GateResult
from analytics_pipeline.storage import dead_letters, raw_events
from analytics_pipeline.storage.pending_work import MAX_SERIES, Invalidation, Scope, merged_spans
from analytics_pipeline.storage.raw_events import StoredRows

#: Above this share of a domain's series, a scope names time only.
MAX_SERIES_SHARE = 0.1


@dataclass
class _Tally:
    """What became of the rows of one domain partition, over all chunks of the slice."""

    gate: GateResult
    unreadable: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Decoded samples of one domain, with the domain partition of each."""

    domain: Domain
    domain_id: int
    raw: StoredRows
    samples: Samples
    raw_part: Ints

    @property
    def part(self) -> Ints:
        return self.raw_part[self.samples.row]


class MeasurementCalculation:
    """Decodes payloads into measurements; what cannot be decoded, or fails the gate, is a dead letter."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        parts = Parts(works)
        tallies = [_Tally(GateResult(asset=SPEC.name, domain=work.domain.name, rows=0)) for work in works]
        evaluated: list[Evaluated] = []
        columns = [
            self._chunk(context, works, parts, raw, tallies, evaluated) for raw in table.read_raw(context, works)
        ]
        late = table.late_rows(context.connection, works)
        added_to = [work for work in works if not work.whole and work.state.rows_failed]
        stored = table.count_dead_letters(context.connection, added_to)
        validated = {
            work.key: _validated(context, work, at, tally, late[at], stored.get(work.key, 0), evaluated)
            for at, (work, tally) in enumerate(zip(works, tallies, strict=True))
        }
        return Computed(
            validated=validated,
            write=partial(self._write, context, works, parts, columns, tallies),
        )

    # ------------------------------------------------------------------ decoding and validating

    def _chunk(
        self,
        context: Context,
        works: Sequence[Work],
        parts: Parts,
        raw: StoredRows,
        tallies: list[_Tally],
        evaluated: list[Evaluated],
    ) -> dict[str, Any]:
        chunks = list(_decoded(works, parts, raw, table.log_domains(context.connection, works)))
        if not chunks:
            return {}
        gate = context.gate(_gate_frame(chunks), [chunk.domain for chunk in chunks])
        part = np.concatenate([chunk.part for chunk in chunks])
        for tally, result in zip(tallies, split_gate(gate, part, works), strict=True):
            tally.gate = tally.gate.followed_by(result) if tally.gate.rows else result
        self._tally(context, works, chunks, gate, tallies)
        failed = np.zeros(len(part), np.bool_)
        failed[list(gate.reasons)] = True
        found, at = [], 0
        for chunk in chunks:
            its = failed[at : at + len(chunk.samples.row)]
            evaluated.append(Evaluated(chunk.samples.keys, chunk.part, chunk.samples.series, its))
            passed = np.flatnonzero(~its)
            at += len(chunk.samples.row)
            found.append(_columns(context, chunk, passed))
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _tally(
        self,
        context: Context,
        works: Sequence[Work],
        chunks: Sequence[_Chunk],
        gate: GateResult,
        tallies: list[_Tally],
    ) -> None:
        """Dead letters and counts of what did not pass."""
        first = 0
        for chunk in chunks:
            many = len(chunk.samples.row)
            reasons = {row - first: reason for row, reason in gate.reasons.items() if first <= row < first + many}
            first += many
            if not reasons and not chunk.samples.rejections:
                continue
            for row in chunk.samples.rejections:
                tallies[chunk.raw_part[row]].unreadable += 1
            for index, dead_letter in _dead_letters(context, chunk, reasons):
                tallies[index].dead_letters.append(dead_letter)

    # ------------------------------------------------------------------ writing

    def _write(
        self,
        context: Context,
        works: Sequence[Work],
        parts: Parts,
        chunks: Sequence[Mapping[str, Any]],
        tallies: Sequence[_Tally],
        accepted: frozenset[Key],
    ) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
        rows = _joined(chunks)
        part = parts.of(rows["domain_id"], rows["event_time"]) if rows else np.zeros(0, np.int64)
        written = np.array([work.key in accepted for work in works])
        if rows:
            kept = written[part]
            rows, part = {name: column[kept] for name, column in rows.items()}, part[kept]
        chosen = [work for work in works if work.key in accepted]
        whole = [work for work in chosen if work.whole]
        dead_letters.forget_all(context.connection, SPEC.name, [work.key for work in whole])
        rejected = [one for at, work in enumerate(works) if work.key in accepted for one in tallies[at].dead_letters]
        dead_letters.write(context.connection, rejected)
        held = table.replace_or_merge(context.connection, works, parts, rows, part, accepted)
        failing = [work for work in chosen if _may_have_dead_letters(work, tallies, works)]
        failed = table.count_dead_letters(context.connection, failing)
        counts = parts.counts(part)
        results = {
            work.key: Written(rows=held[work.key], written=counts[at], rows_failed=failed.get(work.key, 0))
            for at, work in enumerate(works)
            if work.key in accepted
        }
        return results, _stale(context, works, rows, part, accepted)


def _may_have_dead_letters(work: Work, tallies: Sequence[_Tally], works: Sequence[Work]) -> bool:
    return bool(work.state.rows_failed or tallies[works.index(work)].dead_letters)


def _validated(
    context: Context,
    work: Work,
    index: int,
    tally: _Tally,
    late_rows: int,
    stored_dead_letters: int,
    evaluated: Sequence[Evaluated],
) -> Validated:
    dead_letters_now = len(tally.gate.reasons) + tally.unreadable
    held = 0 if work.whole else work.state.rows + stored_dead_letters
    seen = held + tally.gate.rows + tally.unreadable
    failed = stored_dead_letters + dead_letters_now
    if quarantines(work.domain, seen, failed):
        of_failing_series = excused(context, work, index, evaluated)
        seen, failed = seen - of_failing_series[0], failed - of_failing_series[1]
    return Validated(
        gate=tally.gate, rows_seen=seen, rows_failed=failed, dead_letters=dead_letters_now, late_rows=late_rows
    )


def _decoded(
    works: Sequence[Work], parts: Parts, raw: StoredRows, domain_of_log: Mapping[int, int]
) -> Iterator[_Chunk]:
    """The samples of each domain's rows that belong to the slice."""
    logs, inverse = np.unique(raw.log_id, return_inverse=True)
    domain_id = np.array([domain_of_log.get(log, -1) for log in logs.tolist()], np.int64)[inverse]
    part = parts.of(domain_id, raw.event_time_us)
    by_id = {work.domain_id: work.domain for work in works}
    for number in sorted(set(domain_id[part >= 0].tolist())):
        mine = np.flatnonzero((domain_id == number) & (part >= 0))
        rows = raw if len(mine) == len(raw) else raw_events.pick_stored(raw, mine)
        samples = decode_samples(rows.payload, by_id[number])
        yield _Chunk(domain=by_id[number], domain_id=number, raw=rows, samples=samples, raw_part=part[mine])


def _gate_frame(chunks: Sequence[_Chunk]) -> pl.DataFrame:
    """What the gate validates: value, measures of the names taken per series, and what domains ask for besides."""
    frames = []
    wanted = {expect.column for chunk in chunks for expect in chunk.domain.expectations if expect.asset == SPEC.name}
    for chunk in chunks:
        names = chunk.samples.names_frame()
        measured = name_measures(names).with_columns(names[name] for name in names.columns if name in wanted)
        frame = measured.select(pl.all().gather(chunk.samples.series))
        frames.append(
            frame.with_columns(
                pl.Series("value", chunk.samples.value), pl.lit(chunk.domain_id, pl.Int64).alias("domain_id")
            )
        )
    return pl.concat(frames)


def _columns(context: Context, chunk: _Chunk, kept: Ints) -> dict[str, Any]:
    """The table's columns of the samples that are kept; only their series get a number."""
    samples, raw = chunk.samples, chunk.raw
    numbers = np.zeros(len(samples.keys), np.int64)
    used = np.unique(samples.series[kept])
    numbers[used] = context.series.numbers(chunk.domain_id, [samples.keys[at] for at in used.tolist()])
    row = samples.row[kept]
    return {
        "domain_id": np.full(len(kept), chunk.domain_id, np.int32),
        "event_time": raw.event_time_us[row],
        "series_id": numbers[samples.series[kept]],
        "sample_key": samples.sample_key[kept],
        "value": samples.value[kept],
        "kafka_time": raw.kafka_time_us[row],
        "log_id": raw.log_id[row],
        "offset": raw.offset[row],
        "ordinal": (raw.ordinal[row] * table.ELEMENT_SAMPLES + samples.ordinal[kept]).astype(np.int32),
    }


def _joined(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    filled = [chunk for chunk in chunks if chunk]
    if not filled:
        return {}
    return latest({name: np.concatenate([chunk[name] for chunk in filled]) for name in filled[0]})


def _dead_letters(context: Context, chunk: _Chunk, failed: Mapping[int, str]) -> Iterator[tuple[int, DeadLetter]]:
    """The dead letters of a chunk, each with the index of its domain partition."""
    samples, raw = chunk.samples, chunk.raw
    rejected = {(row, 0): rejection for row, rejection in samples.rejections.items()}
    for sample, reason in failed.items():
        series = samples.keys[samples.series[sample]]
        names = ", ".join(f"{name} {value!r}" for name, value in series._asdict().items() if value is not None)
        error = f"{reason}: {names}, value {float(samples.value[sample])!r}"
        rejected[int(samples.row[sample]), int(samples.ordinal[sample])] = Rejection(reason, error)
    origins = raw_events.read_origins(context.connection, raw, sorted({row for row, _ in rejected}))
    for (row, ordinal), rejection in sorted(rejected.items()):
        origin = origins[row]
        yield (
            int(chunk.raw_part[row]),
            DeadLetter(
                topic=origin.topic,
                epoch=origin.epoch,
                partition=int(raw.partition[row]),
                offset=int(raw.offset[row]),
                ordinal=int(raw.ordinal[row]) * table.ELEMENT_SAMPLES + ordinal,
                stage=SPEC.name,
                domain=chunk.domain.name,
                is_element=chunk.domain.split is not None,
                reason=rejection.reason,
                error=rejection.error,
                payload=raw.payload[row],
                key=origin.key,
                headers=origin.headers,
                kafka_time_us=int(raw.kafka_time_us[row]),
                event_time_us=int(raw.event_time_us[row]),
                arrived_at_us=origin.arrived_at_us,
                batch_id=origin.batch_id,
            ),
        )


# ---------------------------------------------------------------------- what becomes stale


def _stale(
    context: Context, works: Sequence[Work], rows: Mapping[str, Any], part: Ints, accepted: frozenset[Key]
) -> list[Invalidation]:
    """The windows that the rows written belong to: of their series, or of all where they are many."""
    base_s = context.settings.base_window_s
    found = []
    for at, work in enumerate(works):
        if work.key not in accepted:
            continue
        if work.whole:
            scope: Scope | None = Scope()
        else:
            mine = np.flatnonzero(part == at)
            scope = (
                _scope(context, work, rows["series_id"][mine], rows["event_time"][mine], base_s) if len(mine) else None
            )
        if scope is not None:
            found.append(
                Invalidation(
                    asset="window_aggregates",
                    domain_id=work.domain_id,
                    hour=work.hour,
                    scope=scope,
                    reason="measurements",
                )
            )
    return found


def _scope(context: Context, work: Work, series_id: Ints, time_us: Ints, base_s: int) -> Scope:
    starts = np.unique((time_us - work.hour_us) % HOUR_US // 1_000_000 // base_s * base_s)
    spans = merged_spans((start, start + base_s) for start in starts.tolist())
    series = np.unique(series_id)
    if len(series) > min(MAX_SERIES, MAX_SERIES_SHARE * context.series.count(work.domain_id)):
        return Scope(spans=spans)
    return Scope(series=tuple(series.tolist()), spans=spans)
