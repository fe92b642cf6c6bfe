"""A slice of messages, classified: what is accepted, and a dead letter for each that is not. Pure but for the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from analytics_pipeline.assets.raw_events.transform import (
    DecodedSlice,
    GateBounds,
    Rejection,
    count_reasons,
    decode_slice,
    gate_frame,
)
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.messages import MessageSlice
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import HOUR_US, RAW_EVENTS, BatchHour, DeadLetter, from_us, to_us
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage.domain_numbers import UNKNOWN_DOMAIN
from analytics_pipeline.storage.raw_events import RawRows, pick
from analytics_pipeline.storage.retention import floor_hour

log = structlog.get_logger(__name__)

#: Positions shown per (batch, hour, domain), so that a person can look one up.
SAMPLE_POSITIONS = 5


@dataclass(frozen=True, kw_only=True)
class ClassifiedSlice:
    """What becomes of a slice.

    Attributes:
        rows: how many raw events and dead letters there are to be: one per message, or per element of it.
        late: of the accepted rows, those behind the allowed lateness.
    """

    messages: MessageSlice
    domain: str
    rows: int
    accepted: RawRows
    dead_letters: list[DeadLetter]
    late: npt.NDArray[np.bool_]
    watermark_us: int | None
    last_kafka_us: int | None

    @property
    def covers_every_message(self) -> bool:
        """Whether each message is a row or a dead letter, or several of them."""
        if self.rows == len(self.messages):
            return len(self.accepted) + len(self.dead_letters) == self.rows
        offsets = {dead_letter.offset for dead_letter in self.dead_letters}.union(self.accepted.offsets.tolist())
        return offsets.issuperset(self.messages.offsets)

    def hours(self) -> list[BatchHour]:
        """What this slice adds to each hour, ascending."""
        hour_us = self.accepted.event_time_us // HOUR_US * HOUR_US
        starts, counts = np.unique(hour_us, return_counts=True)
        raw = dict(zip(starts.tolist(), counts.tolist(), strict=True))
        late = Counter(hour_us[self.late].tolist())
        by_hour: dict[int, list[DeadLetter]] = {}
        for dead_letter in self.dead_letters:
            by_hour.setdefault(dead_letter.hour_us, []).append(dead_letter)
        return [
            BatchHour(
                hour=from_us(start),
                domain=self.domain,
                raw_rows=raw.get(start, 0),
                dead_letters=len(dead := by_hour.get(start, [])),
                late_rows=late.get(start, 0),
                reasons=count_reasons([Rejection(one.reason, one.error) for one in dead]),
                samples=[
                    f"{one.topic}[{one.partition}]@{one.offset} {one.reason}" for one in dead[:SAMPLE_POSITIONS]
                ],
            )
            for start in sorted(raw.keys() | by_hour.keys())
        ]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A slice as it came.

    Attributes:
        domain: None where no domain claims the topic.
        domain_id: the number of the domain, or of `UNKNOWN_DOMAIN`.
        arrived_at_us: when each message arrived; plausibility is classified against it.
        topic_watermark_us: the topic's watermark before this batch, for counting late rows.
        elements: the messages are elements that were split before.
    """

    messages: MessageSlice
    domain: Domain | None
    domain_id: int
    arrived_at_us: npt.NDArray[np.int64]
    topic_watermark_us: int | None = None
    elements: bool = False

    @property
    def domain_name(self) -> str:
        return self.domain.name if self.domain else UNKNOWN_DOMAIN


@dataclass(frozen=True)
class _Decoded:
    """A slice between decoding and the gate. ``arrived_at_us`` is per row."""

    arrival: Arrival
    slice: DecodedSlice
    arrived_at_us: npt.NDArray[np.int64]

    def readable(self) -> npt.NDArray[np.int64]:
        """Rows that are not rejected."""
        readable = np.ones(len(self.slice.rows), np.bool_)
        readable[list(self.slice.rejections)] = False
        return np.flatnonzero(readable)


@dataclass(frozen=True)
class Classifier:
    """Classifies slices by when they arrived; the same slice at the same arrival is classified alike."""

    bounds: GateBounds
    settings: Settings

    def classify(self, arrivals: Sequence[Arrival]) -> tuple[list[ClassifiedSlice | None], dict[str, str]]:
        """What becomes of each slice. The gate sees a domain's slices together: it costs by the call.

        Returns:
            One per arrival, None for those of a domain that cannot be classified; and what those domains raised,
            by name. What single messages make a domain raise is a dead letter each, and not meant here.
        """
        classified: list[ClassifiedSlice | None] = [None] * len(arrivals)
        failed: dict[str, str] = {}
        for name, members in _by_domain(arrivals).items():
            try:
                for at, one in zip(members, self._classify_domain([arrivals[at] for at in members]), strict=True):
                    classified[at] = one
            except MemoryError:
                raise
            except Exception as error:
                log.exception("domain cannot be classified", domain=name)
                failed[name] = f"{type(error).__name__}: {error}"
        return classified, failed

    def _classify_domain(self, arrivals: Sequence[Arrival]) -> list[ClassifiedSlice]:
        """The slices of one domain."""
        decoded = [self._decode(one) for one in arrivals]
        if arrivals[0].domain is not None:
            self._gate(arrivals[0].domain, decoded)
        return [self._classified(one) for one in decoded]

    def _decode(self, arrival: Arrival) -> _Decoded:
        limit = self.settings.max_message_bytes
        decoded = decode_slice(arrival.messages, arrival.domain, limit, elements=arrival.elements)
        arrived = arrival.arrived_at_us
        return _Decoded(arrival, decoded, arrived if decoded.origin is None else arrived[decoded.origin])

    def _gate(self, domain: Domain, decoded: Sequence[_Decoded]) -> None:
        """Adds what the gate rejects to the rejections of each slice."""
        rows = [one.readable() for one in decoded]
        times, arrived, size = (
            np.concatenate(columns)
            for columns in zip(
                *(
                    (one.slice.event_time_us[index], one.arrived_at_us[index], one.slice.payload_bytes[index])
                    for one, index in zip(decoded, rows, strict=True)
                ),
                strict=True,
            )
        )
        frame = gate_frame(times, arrived, size, self.bounds)
        reasons = run_gate(suite_for(RAW_EVENTS, domain, self.settings), frame).reasons
        if not reasons:
            return
        owner = np.repeat(np.arange(len(rows)), [len(index) for index in rows])
        row = np.concatenate(rows)
        for at, reason in reasons.items():
            error = _gate_error(reason, frame.row(at, named=True))
            decoded[owner[at]].slice.rejections[int(row[at])] = Rejection(reason, error)

    def _classified(self, decoded: _Decoded) -> ClassifiedSlice:
        arrival, rejections = decoded.arrival, decoded.slice.rejections
        accepted = _rows(decoded)
        late_before_us = (arrival.topic_watermark_us or 0) - self.settings.allowed_lateness_s * 1_000_000
        return ClassifiedSlice(
            messages=arrival.messages,
            domain=arrival.domain_name,
            rows=len(decoded.slice.rows),
            accepted=accepted,
            dead_letters=[_dead_letter(decoded, row) for row in sorted(rejections)],
            late=accepted.event_time_us < late_before_us,
            watermark_us=_watermark_us(accepted, decoded),
            last_kafka_us=_last_kafka_us(arrival),
        )


def _by_domain(arrivals: Sequence[Arrival]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for at, one in enumerate(arrivals):
        members.setdefault(one.domain_name, []).append(at)
    return members


def _watermark_us(accepted: RawRows, decoded: _Decoded) -> int | None:
    """The highest min(event time, Kafka time), no later than it arrived: a producer's clock that is ahead would
    make punctual rows late."""
    if not len(accepted):
        return None
    arrived = decoded.arrived_at_us[decoded.readable()] if decoded.slice.rejections else decoded.arrived_at_us
    seen_us = np.minimum(accepted.event_time_us, accepted.kafka_time_us)
    return int(np.minimum(seen_us, arrived).max())


def _last_kafka_us(arrival: Arrival) -> int | None:
    """The newest Kafka time, no later than it arrived: a producer's clock that is ahead would make every other
    partition of the topic look idle."""
    if not len(arrival.messages):
        return None
    return min(max(arrival.messages.kafka_times_ms) * 1000, int(arrival.arrived_at_us.max()))


def _dead_letter(decoded: _Decoded, row: int) -> DeadLetter:
    rows, rejection = decoded.slice.rows, decoded.slice.rejections[row]
    return DeadLetter(
        topic=rows.log.topic,
        epoch=rows.log.epoch,
        partition=rows.log.partition,
        offset=rows.offsets[row],
        ordinal=rows.ordinal(row),
        stage=RAW_EVENTS,
        domain=decoded.arrival.domain_name,
        reason=rejection.reason,
        error=rejection.error,
        payload=rows.values[row],
        key=rows.keys[row],
        headers=rows.headers[row],
        kafka_time_us=rows.kafka_times_ms[row] * 1000,
        event_time_us=None,  # not known, or not plausible: it belongs to the hour in which it came
        arrived_at_us=int(decoded.arrived_at_us[row]),
        is_element=_is_element(decoded, row),
    )


def _is_element(decoded: _Decoded, row: int) -> bool:
    """Whether a row is an element of a message that was split, also where it is the only one of its message."""
    domain, has_ordinals = decoded.arrival.domain, decoded.slice.rows.ordinals is not None
    if decoded.arrival.elements:  # raw events of every domain are decoded one by one
        return has_ordinals or (domain is not None and domain.split is not None)
    return has_ordinals and row not in decoded.slice.whole


def bounds_at(settings: Settings, now: datetime) -> GateBounds:
    """What is plausible now: nothing before the partitions' start, nothing that retention has passed."""
    start_us = to_us(settings.partitions_start)
    floor = floor_hour(now, settings.retention_days)
    return GateBounds(start_us, start_us if floor is None else to_us(floor))


def _gate_error(reason: str, row: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:g}" for name, value in row.items())
    return f"{reason} ({figures})"


def _rows(decoded: _Decoded) -> RawRows:
    """The accepted rows; all of them, as nearly always, without picking one by one."""
    rows = decoded.slice.rows
    count = len(rows)
    found = RawRows(
        log=rows.log,
        domain_id=decoded.arrival.domain_id,
        offsets=np.asarray(rows.offsets, np.int64),
        ordinals=np.zeros(count, np.int32) if rows.ordinals is None else np.asarray(rows.ordinals, np.int32),
        keys=rows.keys,
        headers=rows.headers,
        kafka_time_us=np.asarray(rows.kafka_times_ms, np.int64) * 1000,
        event_time_us=decoded.slice.event_time_us,
        payloads=rows.values,  # type: ignore[arg-type]  # what has no value was rejected
    )
    return pick(found, decoded.readable()) if decoded.slice.rejections else found
