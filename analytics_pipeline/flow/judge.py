"""A slice of messages, judged: what is accepted, and a dead letter for each that is not. Pure but for the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.domains.base import Domain
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR_US, RAW_EVENTS, BatchHour, DeadLetter, from_us, to_us
from analytics_pipeline.settings import Settings
from analytics_pipeline.stages.raw import (
    DecodedSlice,
    GateBounds,
    MessageSlice,
    Refusal,
    count_reasons,
    decode_slice,
    gate_frame,
)
from analytics_pipeline.storage.raw_events import RawRows, pick
from analytics_pipeline.storage.retention import floor_hour

UNKNOWN_DOMAIN = "unknown"
#: Positions shown per (batch, hour, domain), so that a person can look one up.
SAMPLE_POSITIONS = 5


@dataclass(frozen=True)
class JudgedSlice:
    """What becomes of a slice. ``late``: of the accepted rows, those behind the allowed lateness."""

    messages: MessageSlice
    domain: str
    accepted: RawRows
    letters: list[DeadLetter]
    late: npt.NDArray[np.bool_]
    watermark_us: int | None
    last_kafka_us: int | None

    def hours(self) -> dict[int, BatchHour]:
        """This slice's share of each hour, by the hour's start in microseconds."""
        hour_us = self.accepted.event_time_us // HOUR_US * HOUR_US
        starts, counts = np.unique(hour_us, return_counts=True)
        raw = dict(zip(starts.tolist(), counts.tolist(), strict=True))
        late = Counter(hour_us[self.late].tolist())
        letters: dict[int, list[DeadLetter]] = {}
        for letter in self.letters:
            letters.setdefault(letter.hour_us, []).append(letter)
        return {
            start: BatchHour(
                hour=from_us(start),
                domain=self.domain,
                raw_rows=raw.get(start, 0),
                dead_letters=len(dead := letters.get(start, [])),
                late_rows=late.get(start, 0),
                reasons=count_reasons([Refusal(one.reason, one.error) for one in dead]),
                samples=[
                    f"{one.topic}[{one.partition}]@{one.offset} {one.reason}" for one in dead[:SAMPLE_POSITIONS]
                ],
            )
            for start in sorted(raw.keys() | letters.keys())
        }


@dataclass(frozen=True)
class Arrival:
    """A slice as it came.

    Attributes:
        domain: None where no domain claims the topic.
        arrived_at_us: when each message arrived; plausibility is judged against it.
        topic_watermark_us: the topic's watermark before this batch, for counting late rows.
    """

    messages: MessageSlice
    domain: Domain | None
    arrived_at_us: npt.NDArray[np.int64]
    topic_watermark_us: int | None = None

    @property
    def domain_name(self) -> str:
        return self.domain.name if self.domain else UNKNOWN_DOMAIN


@dataclass(frozen=True)
class Judge:
    """Judges slices by when they arrived; the same slice at the same arrival is judged alike."""

    bounds: GateBounds
    settings: Settings

    def judge(self, arrivals: Sequence[Arrival]) -> list[JudgedSlice]:
        """What becomes of each slice. The gate sees a domain's slices together: it costs by the call."""
        decoded = [decode_slice(one.messages, one.domain, self.settings.max_message_bytes) for one in arrivals]
        for domain in {one.domain.name: one.domain for one in arrivals if one.domain}.values():
            members = [at for at, one in enumerate(arrivals) if one.domain is domain]
            self._gate(domain, [arrivals[at] for at in members], [decoded[at] for at in members])
        return [self._judged(one, result) for one, result in zip(arrivals, decoded, strict=True)]

    def _gate(self, domain: Domain, arrivals: Sequence[Arrival], decoded: Sequence[DecodedSlice]) -> None:
        """Adds what the gate refuses to the refusals of each slice."""
        rows = [_readable(result) for result in decoded]
        frames = [
            gate_frame(result, index, one.arrived_at_us[index], self.bounds)
            for one, result, index in zip(arrivals, decoded, rows, strict=True)
        ]
        frame = pl.concat(frames)
        owner = np.repeat(np.arange(len(rows)), [len(index) for index in rows])
        row = np.concatenate(rows)
        for at, reason in run_gate(suite_for(RAW_EVENTS, domain, self.settings), frame).reasons.items():
            error = _gate_error(reason, frame.row(at, named=True))
            decoded[owner[at]].refusals[int(row[at])] = Refusal(reason, error)

    def _judged(self, arrival: Arrival, decoded: DecodedSlice) -> JudgedSlice:
        messages, refusals = arrival.messages, decoded.refusals
        accepted = _rows(messages, decoded, _readable(decoded) if refusals else None)
        late_before_us = (arrival.topic_watermark_us or 0) - self.settings.allowed_lateness_s * 1_000_000
        seen_us = np.minimum(accepted.event_time_us, accepted.kafka_time_us)
        return JudgedSlice(
            messages,
            arrival.domain_name,
            accepted,
            [
                _letter(messages, decoded, arrival.domain_name, row, int(arrival.arrived_at_us[row]))
                for row in sorted(refusals)
            ],
            accepted.event_time_us < late_before_us,
            int(seen_us.max()) if len(seen_us) else None,
            _last_kafka_us(arrival),
        )


def _last_kafka_us(arrival: Arrival) -> int | None:
    """The newest Kafka time, no later than it arrived: a producer's clock that is ahead would make every other
    partition of the topic look idle."""
    if not len(arrival.messages):
        return None
    return min(max(arrival.messages.kafka_times_ms) * 1000, int(arrival.arrived_at_us.max()))


def _readable(decoded: DecodedSlice) -> npt.NDArray[np.int64]:
    """Rows that are not refused."""
    readable = np.ones(len(decoded.event_time_us), np.bool_)
    readable[list(decoded.refusals)] = False
    return np.flatnonzero(readable)


def _letter(
    messages: MessageSlice, decoded: DecodedSlice, domain: str, row: int, arrived_at_us: int
) -> DeadLetter:
    refusal = decoded.refusals[row]
    return DeadLetter(
        topic=messages.topic,
        epoch=messages.epoch,
        partition=messages.partition,
        offset=messages.offsets[row],
        ordinal=0,
        stage=RAW_EVENTS,
        domain=domain,
        reason=refusal.reason,
        error=refusal.error,
        payload=messages.values[row],
        key=messages.keys[row],
        headers=messages.headers[row],
        kafka_time_us=messages.kafka_times_ms[row] * 1000,
        event_time_us=None,  # not known, or not plausible: it belongs to the hour in which it came
        arrived_at_us=arrived_at_us,
    )


def bounds_at(settings: Settings, now: datetime) -> GateBounds:
    """What is plausible now: nothing before the partitions' start, nothing that retention has passed."""
    start_us = to_us(settings.partitions_start)
    floor = floor_hour(now, settings.retention_days)
    return GateBounds(start_us, start_us if floor is None else to_us(floor))


def _gate_error(reason: str, row: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:g}" for name, value in row.items())
    return f"{reason} ({figures})"


def _rows(messages: MessageSlice, decoded: DecodedSlice, kept: npt.NDArray[np.int64] | None) -> RawRows:
    """The accepted rows; ``kept`` None keeps all of them, as nearly always, without picking one by one."""
    rows = RawRows(
        messages.topic,
        messages.epoch,
        messages.partition,
        np.asarray(messages.offsets, np.int64),
        messages.keys,
        messages.headers,
        np.asarray(messages.kafka_times_ms, np.int64) * 1000,
        decoded.event_time_us,
        messages.values,  # type: ignore[arg-type]  # what has no value was refused
    )
    return rows if kept is None else pick(rows, kept)
