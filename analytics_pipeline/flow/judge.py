"""A slice of messages, judged: what is accepted, and a dead letter for each that is not. Pure but for the gate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

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
class Judge:
    """Judges slices by when they arrived; the same slice at the same arrival is judged alike."""

    bounds: GateBounds
    settings: Settings

    def judge(
        self,
        messages: MessageSlice,
        domain: Domain | None,
        arrived_at_us: npt.NDArray[np.int64],
        topic_watermark_us: int | None,
    ) -> JudgedSlice:
        """What becomes of a slice.

        Args:
            domain: None where no domain claims the topic.
            arrived_at_us: when each message arrived; plausibility is judged against it.
            topic_watermark_us: the topic's watermark before this batch, for counting late rows.
        """
        decoded = decode_slice(messages, domain, self.settings.max_message_bytes)
        name = domain.name if domain else UNKNOWN_DOMAIN
        refusals = decoded.refusals | self._refused_by_gate(decoded, arrived_at_us, domain)
        keep = np.ones(len(messages), np.bool_)
        keep[list(refusals)] = False
        kept = np.flatnonzero(keep)
        accepted = _rows(messages, decoded, kept if refusals else None)
        kafka_us = accepted.kafka_time_us
        late_before_us = (topic_watermark_us or 0) - self.settings.allowed_lateness_s * 1_000_000
        return JudgedSlice(
            messages,
            name,
            accepted,
            [
                _letter(messages, decoded, name, row, refusals[row], int(arrived_at_us[row]))
                for row in sorted(refusals)
            ],
            accepted.event_time_us < late_before_us,
            int(np.minimum(accepted.event_time_us, kafka_us).max()) if len(kept) else None,
            max(messages.kafka_times_ms) * 1000 if len(messages) else None,
        )

    def _refused_by_gate(
        self, decoded: DecodedSlice, arrived_at_us: npt.NDArray[np.int64], domain: Domain | None
    ) -> dict[int, Refusal]:
        readable = np.ones(len(arrived_at_us), np.bool_)
        readable[list(decoded.refusals)] = False
        index = np.flatnonzero(readable)
        if domain is None or not len(index):
            return {}
        frame = gate_frame(decoded, index, arrived_at_us[index], self.bounds)
        result = run_gate(suite_for(RAW_EVENTS, domain, self.settings), frame)
        return {
            int(index[row]): Refusal(reason, _gate_error(reason, frame.row(row, named=True)))
            for row, reason in result.reasons.items()
        }


def _letter(
    messages: MessageSlice, decoded: DecodedSlice, domain: str, row: int, refusal: Refusal, arrived_at_us: int
) -> DeadLetter:
    plausible = refusal.reason == "after_retention"
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
        event_time_us=int(decoded.event_time_us[row]) if plausible else None,
        arrived_at_us=arrived_at_us,
    )


def bounds_at(settings: Settings, now: datetime) -> GateBounds:
    """What is plausible now: nothing before the partitions' start, nothing that retention has passed."""
    start_us = to_us(settings.partitions_start)
    if not settings.retention_days:
        return GateBounds(start_us, start_us)
    return GateBounds(start_us, to_us(now - timedelta(days=settings.retention_days)))


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
