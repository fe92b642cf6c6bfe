"""An hour of raw events, rebuilt by hand: read again what Kafka still has, and decode again what is stored.

Adds what is in neither raw events nor dead letters; moves rows whose event time reads differently now (a fixed
time zone, a fixed domain); lets dead letters in that can be read now. Classified by the arrival that is stored and by
the retention floor that is written down, so that a replay classifies as live did. Topics that no enabled domain
claims stay as they are, and so does what Kafka has no more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from analytics_pipeline.assets.raw_events.classify import Arrival, ClassifiedSlice, Classifier
from analytics_pipeline.assets.raw_events.read_again import read_missing
from analytics_pipeline.assets.raw_events.transform import GateBounds
from analytics_pipeline.domains import Registry
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.gc_pause import cycle_collection_paused
from analytics_pipeline.records import (
    RAW_EVENTS,
    DeadLetter,
    DomainOutcome,
    GateResult,
    HourOutcome,
    PartitionError,
    from_us,
    hour_of,
    to_us,
)
from analytics_pipeline.settings import Settings
from analytics_pipeline.storage import dead_letters, partition_state, pending_work, raw_events, replay, retention
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import Connection, connection
from analytics_pipeline.storage.locks import hour_lock, lock_raw_commits
from analytics_pipeline.storage.partition_state import PartitionState
from analytics_pipeline.storage.pending_work import Invalidation
from analytics_pipeline.storage.raw_events import pick
from analytics_pipeline.storage.replay import Known, KnownSlice, keys_of

AFTER_RETENTION = "after_retention"


@dataclass(frozen=True)
class _Change:
    """What classifying again changes about one slice.

    Attributes:
        stale: rows of ``known`` that are taken out of where they are kept.
        classified: what is written: rows and dead letters that are new or others now.
    """

    known: KnownSlice
    stale: npt.NDArray[np.int64]
    classified: ClassifiedSlice


@dataclass(frozen=True, slots=True)
class RebuiltHour:
    """What a rebuild did, and the logs that could not be read again: of those, what was read is stored."""

    outcome: HourOutcome
    unread: Sequence[PartitionError] = ()


def rebuild_raw(settings: Settings, engine: Engine, domains: Registry, hour: datetime, run_id: str) -> RebuiltHour:
    """Rebuild one hour of raw events. A domain that cannot be classified keeps its hour and is named as quarantined.

    Raises:
        BrokerUnreachableError: Kafka cannot be read again; nothing was changed.
        BelowRetentionError: retention has taken the hour; nothing was changed.
    """
    started = time.monotonic()
    numbers = DomainNumbers(engine).numbers(domains.by_name)
    with (
        cycle_collection_paused(),
        connection(engine) as conn,
        hour_lock(conn, RAW_EVENTS, hour),
    ):
        keys = retention.kept_keys(conn, RAW_EVENTS, [(name, hour) for name in domains.by_name])
        kept = [name for name in domains.by_name if (name, hour) in keys]
        if not kept:
            retention.refuse_below_floor(conn, RAW_EVENTS, hour)
        floors = replay.floors(conn)
        touched, failed = {hour}, set[str]()
        known, unread = _known(settings, conn, [domains.by_name[name] for name in kept], hour)
        for name, slices in known.items():
            classifier = Classifier(_bounds(settings, floors.get(name)), settings)
            changes = _classify(classifier, domains.by_name[name], numbers[name], slices)
            if changes is None:
                failed.add(name)
                continue
            for change in changes:
                touched |= _apply(conn, change, numbers[name])
        lock_raw_commits(conn)  # only now: the drain continues while Kafka is read again
        outcomes = [_recount(conn, numbers[name], name, hour, touched, run_id) for name in sorted(kept)]
        conn.commit()
    outcomes = [replace(one, quarantined=one.domain in failed) for one in outcomes]
    duration_s = time.monotonic() - started
    done = HourOutcome(asset=RAW_EVENTS, hour=hour, mode="full", domains=tuple(outcomes), duration_s=duration_s)
    return RebuiltHour(done, unread)


def _bounds(settings: Settings, floor: datetime | None) -> GateBounds:
    start_us = to_us(settings.partitions_start)
    return GateBounds(start_us, start_us if floor is None else to_us(floor))


def _known(
    settings: Settings, conn: Connection, domains: Sequence[Domain], hour: datetime
) -> tuple[dict[str, list[KnownSlice]], list[PartitionError]]:
    """What there is of an hour, by domain: stored, or missing and still in Kafka; and what could not be read."""
    by_topic = {topic: domain for domain in domains for topic in domain.topics}
    topics = sorted(by_topic)
    missing, unread = read_missing(settings, conn, replay.batch_ranges(conn, hour, topics), by_topic)
    known: dict[str, list[KnownSlice]] = {domain.name: [] for domain in domains}
    for one in [*replay.read_known(conn, hour, topics), *missing]:
        known[by_topic[one.messages.topic].name].append(one)
    return known, [
        PartitionError(domain=by_topic[log.topic].name, hour=hour, error=error) for log, error in unread.items()
    ]


# ---------------------------------------------------------------------- classifying and writing again


def _classify(
    classifier: Classifier, domain: Domain, domain_id: int, slices: Sequence[KnownSlice]
) -> list[_Change] | None:
    """What changes about a domain's slices; None where it cannot be classified."""
    arrivals = [
        Arrival(
            messages=one.messages,
            domain=domain,
            domain_id=domain_id,
            arrived_at_us=one.arrived_at_us,
            elements=one.elements,
        )
        for one in slices
    ]
    classified, failed = classifier.classify(arrivals)
    if failed:
        return None
    results = zip(slices, classified, strict=True)
    return [_change(known, result) for known, result in results if result is not None]


def _change(known: KnownSlice, classified: ClassifiedSlice) -> _Change:
    if known.where is Known.NOWHERE:
        return _Change(known, np.zeros(0, np.int64), _without_present(known, classified))
    differs = _moved(known, classified) if known.where is Known.RAW else _said_otherwise(known, classified)
    stale = np.flatnonzero(differs)
    keys = set(_row_of(known, stale.tolist()))
    return _Change(known, stale, _only(classified, keys, known.elements))


def _row_of(known: KnownSlice, rows: Iterable[int]) -> dict[Any, int]:
    """Rows by what tells them apart, as `replay.keys_of` has it."""
    part = known.messages
    if known.elements:
        return {(part.offsets[row], part.ordinal(row)): row for row in rows}
    return {part.offsets[row]: row for row in rows}


def _key(dead_letter: DeadLetter, elements: bool) -> Any:
    return (dead_letter.offset, dead_letter.ordinal) if elements else dead_letter.offset


def _moved(known: KnownSlice, classified: ClassifiedSlice) -> npt.NDArray[np.bool_]:
    """Raw events that are rejected now, or read another time."""
    differs = np.zeros(len(known.messages), np.bool_)
    if classified.dead_letters:
        row_of = _row_of(known, range(len(known.messages)))
        differs[[row_of[_key(dead_letter, known.elements)] for dead_letter in classified.dead_letters]] = True
    kept = ~differs
    differs[kept] = classified.accepted.event_time_us != known.event_time_us[kept]
    return differs


def _said_otherwise(known: KnownSlice, classified: ClassifiedSlice) -> npt.NDArray[np.bool_]:
    """Dead letters that are none any more, or have another reason now."""
    differs = np.ones(len(known.messages), np.bool_)
    row_of = _row_of(known, range(len(known.messages)))
    for dead_letter in classified.dead_letters:
        row = row_of[_key(dead_letter, known.elements)]
        same = known.said[row] == (dead_letter.reason, dead_letters.stored_error(dead_letter.error))
        differs[row] = not (same and dead_letter.is_element == known.elements)
    return differs


def _only(classified: ClassifiedSlice, keys: set[Any], elements: bool) -> ClassifiedSlice:
    """Rows and dead letters of some messages."""
    chosen = [at for at, key in enumerate(keys_of(classified.accepted, elements)) if key in keys] if keys else []
    return replace(
        classified,
        accepted=pick(classified.accepted, np.array(chosen, np.int64)),
        dead_letters=[dead_letter for dead_letter in classified.dead_letters if _key(dead_letter, elements) in keys],
    )


def _without_present(known: KnownSlice, classified: ClassifiedSlice) -> ClassifiedSlice:
    """What is kept already stays, and what retention has taken stays away."""
    keys = keys_of(classified.accepted, elements=True)
    chosen = [at for at, key in enumerate(keys) if key not in known.present]
    return replace(
        classified,
        accepted=pick(classified.accepted, np.array(chosen, np.int64)),
        dead_letters=[
            dead_letter
            for dead_letter in classified.dead_letters
            if dead_letter.reason != AFTER_RETENTION and (dead_letter.offset, dead_letter.ordinal) not in known.present
        ],
    )


def _apply(conn: Connection, change: _Change, domain_id: int) -> set[datetime]:
    """Write one slice's changes; returns the hours whose raw events or dead letters are others now."""
    known, classified = change.known, change.classified
    if not len(change.stale) and not len(classified.accepted) and not classified.dead_letters:
        return set()
    replay.remove(conn, known, change.stale)
    row_of = _row_of(known, range(len(known.messages)))
    dead_letters.write(
        conn,
        [
            replace(one, batch_id=int(known.batch_id[row_of[_key(one, known.elements)]]) or None)
            for one in classified.dead_letters
        ],
    )
    replay.insert(conn, classified.accepted, known, row_of)
    times = classified.accepted.event_time_us.tolist()
    if known.where is Known.RAW:
        times += known.event_time_us[change.stale].tolist()
    hours = {hour_of(from_us(one)) for one in times}
    pending_work.add(
        conn,
        [
            Invalidation(
                asset="normalized_measurements", domain_id=domain_id, hour=hour, reason="raw events rebuilt"
            )
            for hour in sorted(hours)
        ],
    )
    return hours | {hour_of(from_us(one.hour_us)) for one in classified.dead_letters}


def _recount(
    conn: Connection,
    domain_id: int,
    domain: str,
    hour: datetime,
    touched: Iterable[datetime],
    run_id: str,
) -> DomainOutcome:
    outcome = DomainOutcome(
        domain=domain,
        rows=0,
        written=0,
        dead_letters=0,
        late_rows=0,
        gate=GateResult(asset=RAW_EVENTS, domain=domain, rows=0),
    )
    known = partition_state.read_states(conn, RAW_EVENTS, sorted(touched))  # also of what holds nothing any more
    for one in sorted(touched):
        raw, dead = raw_events.count_hour(conn, domain, one), dead_letters.count(conn, RAW_EVENTS, one, domain)
        if raw or dead or (domain_id, one) in known:
            state = PartitionState(rows=raw, rows_failed=dead)
            partition_state.write_states(conn, RAW_EVENTS, {(domain_id, one): state}, run_id)
        if one == hour:
            outcome = replace(
                outcome, rows=raw, written=raw, dead_letters=dead, rows_seen=raw + dead, rows_failed=dead
            )
    return outcome
