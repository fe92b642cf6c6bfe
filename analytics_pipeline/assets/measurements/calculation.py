"""raw_events to the tables of normalized_measurements: what the pending batches brought, or whole hours."""

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
from analytics_pipeline.assets.measurements.events_table import EventTable
from analytics_pipeline.assets.measurements.failing_series import Evaluated, excused
from analytics_pipeline.assets.measurements.normalized import Chunk, NormalizedTable
from analytics_pipeline.assets.measurements.said_tables import Said
from analytics_pipeline.assets.measurements.samples import Samples
from analytics_pipeline.assets.measurements.samples_table import SampleTable
from analytics_pipeline.assets.measurements.spec import SPEC, TABLE
from analytics_pipeline.assets.measurements.states_table import StateTable
from analytics_pipeline.assets.measurements.transform import Decoded, decode
from analytics_pipeline.assets.raw_events.transform import Rejection
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.quality.gates import quarantines
from analytics_pipeline.records import DeadLetter, GateResult
from analytics_pipeline.storage import dead_letters, raw_events
from analytics_pipeline.storage.pending_work import Invalidation, Scope
from analytics_pipeline.storage.raw_events import StoredRows

TABLES: tuple[NormalizedTable[Any], ...] = (SampleTable(), EventTable(), StateTable())


@dataclass
class _Tally:
    """What became of the rows of one domain partition, over all tables and chunks of the slice."""

    gate: GateResult
    passed: int = 0
    unreadable: int = 0
    dead_letters: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Payloads:
    """Decoded payloads of one domain, with the domain partition of each."""

    domain: Domain
    domain_id: int
    raw: StoredRows
    raw_part: Ints
    decoded: Decoded

    def chunk(self, part: Any) -> Chunk[Any]:
        return Chunk(domain=self.domain, domain_id=self.domain_id, raw=self.raw, raw_part=self.raw_part, part=part)


@dataclass
class _Slice:
    """What a slice gathers while its raw rows are read chunk by chunk."""

    works: Sequence[Work]
    parts: Parts
    tallies: list[_Tally]
    evaluated: list[Evaluated] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    said: Said = field(default_factory=Said)

    @classmethod
    def of(cls, works: Sequence[Work]) -> _Slice:
        nothing = [GateResult(asset=SPEC.name, domain=work.domain.name, rows=0) for work in works]
        return cls(works, Parts(works), [_Tally(gate) for gate in nothing])


class MeasurementCalculation:
    """Decodes payloads into rows; what cannot be decoded, or fails the gate, is a dead letter."""

    spec = SPEC

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        gathered = _Slice.of(works)
        for raw in table.read_raw(context, works):
            _add_chunk(context, gathered, raw)
        late = table.late_rows(context.connection, works)
        added_to = [work for work in works if not work.whole and work.state.rows_failed]
        stored = table.count_dead_letters(context.connection, added_to)
        validated = {
            work.key: _validated(context, work, at, tally, late[at], stored.get(work.key, 0), gathered.evaluated)
            for at, (work, tally) in enumerate(zip(works, gathered.tallies, strict=True))
        }
        return Computed(validated=validated, write=partial(_write, context, gathered))


# ---------------------------------------------------------------------- decoding and validating


def _add_chunk(context: Context, gathered: _Slice, raw: StoredRows) -> None:
    """Decode some raw rows, validate what they hold table by table, and keep what passes."""
    log_domains = table.log_domains(context.connection, gathered.works)
    payloads = list(_decoded(gathered.works, gathered.parts, raw, log_domains))
    rejected = [_unreadable(gathered, one) for one in payloads]
    for one in payloads:
        gathered.said.add(one.domain_id, one.raw, one.decoded)
    for normalized in TABLES:
        chunks, found = [], []
        for one, rejections in zip(payloads, rejected, strict=True):
            part = normalized.part_of(one.decoded)
            if part is not None:
                chunks.append(one.chunk(part))
                found.append(rejections)
        if chunks:
            _validate(context, gathered, normalized, chunks, found)
    for one, rejections in zip(payloads, rejected, strict=True):
        for index, dead_letter in _dead_letters(context, one, rejections):
            gathered.tallies[index].dead_letters.append(dead_letter)


#: (payload, ordinal) of what was rejected, and why.
_Rejected = dict[tuple[int, int], Rejection]


def _unreadable(gathered: _Slice, payloads: _Payloads) -> _Rejected:
    for row in payloads.decoded.rejections:
        gathered.tallies[payloads.raw_part[row]].unreadable += 1
    return {(row, 0): rejection for row, rejection in payloads.decoded.rejections.items()}


def _validate(
    context: Context,
    gathered: _Slice,
    normalized: NormalizedTable[Any],
    chunks: Sequence[Chunk[Any]],
    rejected: Sequence[_Rejected],
) -> None:
    """One gate evaluation of one table; adds what fails to ``rejected``, and the rows that pass to the slice."""
    domains = [chunk.domain for chunk in chunks]
    gate = context.gate(normalized.gate_frame(chunks), domains, normalized.spec.name)
    part = np.concatenate([chunk.works for chunk in chunks])
    for tally, result in zip(gathered.tallies, split_gate(gate, part, gathered.works), strict=True):
        tally.gate = tally.gate.followed_by(result) if tally.gate.rows else result
        tally.passed += result.rows - len(result.reasons)
    failed = np.zeros(len(part), np.bool_)
    failed[list(gate.reasons)] = True
    first = 0
    for chunk, rejections in zip(chunks, rejected, strict=True):
        many = len(chunk.part.row)
        its = failed[first : first + many]
        for index in np.flatnonzero(its).tolist():
            reason = gate.reasons[first + index]
            error = f"{reason}: {normalized.describe(chunk.part, index)}"
            rejections[int(chunk.part.row[index]), int(chunk.part.ordinal[index])] = Rejection(reason, error)
        if isinstance(chunk.part, Samples):
            gathered.evaluated.append(Evaluated(chunk.part.keys, chunk.works, chunk.part.series, its))
        columns = normalized.columns(context, chunk, np.flatnonzero(~its))
        gathered.columns.setdefault(normalized.spec.name, []).append(columns)
        first += many


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
) -> Iterator[_Payloads]:
    """What each domain's payloads that belong to the slice hold."""
    logs, inverse = np.unique(raw.log_id, return_inverse=True)
    domain_id = np.array([domain_of_log.get(log, -1) for log in logs.tolist()], np.int64)[inverse]
    part = parts.of(domain_id, raw.event_time_us)
    by_id = {work.domain_id: work.domain for work in works}
    for number in sorted(set(domain_id[part >= 0].tolist())):
        mine = np.flatnonzero((domain_id == number) & (part >= 0))
        rows = raw if len(mine) == len(raw) else raw_events.pick_stored(raw, mine)
        decoded = decode(rows.payload, by_id[number])
        yield _Payloads(domain=by_id[number], domain_id=number, raw=rows, raw_part=part[mine], decoded=decoded)


def _dead_letters(context: Context, payloads: _Payloads, rejected: _Rejected) -> Iterator[tuple[int, DeadLetter]]:
    """The dead letters of some payloads, each with the index of its domain partition."""
    if not rejected:
        return
    raw = payloads.raw
    origins = raw_events.read_origins(context.connection, raw, sorted({row for row, _ in rejected}))
    for (row, ordinal), rejection in sorted(rejected.items()):
        origin = origins[row]
        yield (
            int(payloads.raw_part[row]),
            DeadLetter(
                topic=origin.topic,
                epoch=origin.epoch,
                partition=int(raw.partition[row]),
                offset=int(raw.offset[row]),
                ordinal=int(raw.ordinal[row]) * table.ELEMENT_SAMPLES + ordinal,
                stage=SPEC.name,
                domain=payloads.domain.name,
                is_element=payloads.domain.split is not None,
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


# ---------------------------------------------------------------------- writing


def _write(
    context: Context, gathered: _Slice, accepted: frozenset[Key]
) -> tuple[Mapping[Key, Written], Sequence[Invalidation]]:
    works, tallies = gathered.works, gathered.tallies
    chosen = [work for work in works if work.key in accepted]
    rejected = [one for at, work in enumerate(works) if work.key in accepted for one in tallies[at].dead_letters]
    if rebuilt := [work.key for work in chosen if work.whole]:
        dead_letters.replace_hours(context.connection, SPEC.name, rebuilt, rejected)
    else:
        dead_letters.write(context.connection, rejected)
    held = np.array([0 if work.whole else work.state.rows for work in works], np.int64)
    written = np.zeros(len(works), np.int64)
    stale = [_windows(work, Scope()) for work in chosen if work.whole]
    measured = TABLE.empty()
    for normalized in TABLES:
        rows = _rows(gathered, normalized, accepted)
        if rows.height or any(work.whole for work in chosen):
            done = normalized.write(context, chosen, gathered.parts, rows)
            held += done.rows
            written += gathered.parts.counts(table.part_of(gathered.parts, normalized.spec, rows))
            stale += [*done.stale, *_stale(context, gathered, normalized, done.touched)]
        if normalized.spec is TABLE:
            measured = rows
    gathered.said.write(context, measured)  # last: it may wait for another's commit
    may_fail = [w for at, w in enumerate(works) if w in chosen and (w.state.rows_failed or tallies[at].dead_letters)]
    failed = table.count_dead_letters(context.connection, may_fail)
    results = {
        work.key: Written(
            rows=int(held[at]),
            written=int(written[at]),
            rows_failed=failed.get(work.key, 0),
            rows_superseded=_superseded(work, tallies[at], int(held[at])),
        )
        for at, work in enumerate(works)
        if work.key in accepted
    }
    return results, stale


def _superseded(work: Work, tally: _Tally, rows: int) -> int:
    """Every row that passed the gate is stored, or lost to a later one of its identity."""
    before = 0 if work.whole else work.state.rows + work.state.rows_superseded
    return before + tally.passed - rows


def _rows(gathered: _Slice, normalized: NormalizedTable[Any], accepted: frozenset[Key]) -> pl.DataFrame:
    """The rows of one table that may be written, one per identity and hour."""
    columns = gathered.columns.pop(normalized.spec.name, None)
    if not columns:
        return normalized.spec.empty()
    rows = normalized.joined(columns)
    if len(accepted) == len(gathered.works):
        return rows
    may = np.array([work.key in accepted for work in gathered.works])
    return rows.filter(pl.Series(may[table.part_of(gathered.parts, normalized.spec, rows)], dtype=pl.Boolean))


def _stale(
    context: Context, gathered: _Slice, normalized: NormalizedTable[Any], touched: pl.DataFrame
) -> list[Invalidation]:
    """The windows that changed rows belong to, of what is not computed as a whole."""
    part = table.part_of(gathered.parts, normalized.spec, touched)
    return [
        _windows(work, normalized.scope(context, work, touched.filter(pl.Series(part == at, dtype=pl.Boolean))))
        for at, work in enumerate(gathered.works)
        if not work.whole and (part == at).any()
    ]


def _windows(work: Work, scope: Scope) -> Invalidation:
    return Invalidation(
        asset="window_aggregates", domain_id=work.domain_id, hour=work.hour, scope=scope, reason="measurements"
    )
