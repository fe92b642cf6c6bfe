"""From raw events to rows: decode, take samples, events, states and counters, keep one row per identity. Pure.

A measurement is (series, event time, sample key); what an event is, ``events.py`` says. When the same identity comes
again, the later one by (Kafka time, position) wins, whatever the order in which they are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.measurements.events import EventReader, Events
from analytics_pipeline.assets.measurements.said import AttributeReader, Attributes, SampleName, SampleNameReader
from analytics_pipeline.assets.measurements.samples import SampleReader, Samples
from analytics_pipeline.assets.measurements.series_rows import (
    SeriesReader,
    SeriesRows,
    reading_values,
    state_values,
)
from analytics_pipeline.assets.measurements.taken import Reader
from analytics_pipeline.assets.raw_events.payload_bytes import duplicate_keys
from analytics_pipeline.assets.raw_events.transform import (
    ERROR_CHARACTERS,
    PAYLOAD_ERRORS,
    Rejection,
    duplicate_key,
    explain,
    keys_of,
)
from analytics_pipeline.domains.base import Defaults, Domain, SeriesKey

#: Payloads decoded in one go: few enough to stay in the processor's cache, and to be gone through again one by
#: one when one of them cannot be read.
CHUNK_PAYLOADS = 5_000


@dataclass(frozen=True, slots=True)
class Decoded:
    """What many payloads hold, by kind; None: the domain has nothing of the kind.

    Attributes:
        rejections: payloads that could not be read, by row; they hold nothing.
        names: what sample keys stand for.
        attributes: what is said of series beside their identity.
    """

    samples: Samples | None
    events: Events | None
    states: SeriesRows | None
    counters: SeriesRows | None
    rejections: Mapping[int, Rejection]
    names: Sequence[SampleName] = ()
    attributes: Sequence[Attributes] = ()

    def owned(self, defaults: Defaults) -> Decoded:
        """The same, where each row has a tenant: what a payload leaves open is filled in here, for every kind of row;
        of series once per series, so that the way of every message does not pay for it."""
        samples, events, states, counters = self.samples, self.events, self.states, self.counters
        return replace(
            self,
            samples=samples and replace(samples, keys=_owned(samples.keys, defaults)),
            events=events and replace(events, frame=_owned_events(events.frame, defaults)),
            states=states and replace(states, keys=_owned(states.keys, defaults)),
            counters=counters and replace(counters, keys=_owned(counters.keys, defaults)),
            attributes=_owned_attributes(self.attributes, defaults),
        )


def decode(payloads: Sequence[bytes], domain: Domain) -> Decoded:
    """The rows of raw payloads. A payload that cannot be read, or on which the domain fails, raises nothing."""
    samples = SampleReader(domain.samples, domain.rated) if domain.samples else None
    events = EventReader(domain.events) if domain.events else None
    states = SeriesReader(domain.states, state_values) if domain.states else None
    counters = SeriesReader(domain.counters, reading_values) if domain.counters else None
    names = SampleNameReader(domain.sample_names) if domain.sample_names else None
    said = AttributeReader(domain.series_attributes) if domain.series_attributes else None
    every: tuple[Reader | None, ...] = (samples, events, states, counters, names, said)
    readers: list[Reader] = [reader for reader in every if reader is not None]
    rejections: dict[int, Rejection] = {}
    for first in range(0, len(payloads), CHUNK_PAYLOADS):
        _decode_chunk(payloads[first : first + CHUNK_PAYLOADS], first, domain, readers, rejections)
    twice = _with_duplicate_keys(payloads, domain, rejections)
    rejections |= twice
    before = np.zeros(len(payloads) if len(readers) > 1 or not samples else 0, np.int64)
    its_samples = samples.result(twice, rejections) if samples else None
    if its_samples and len(before):
        before = before + np.bincount(its_samples.row, minlength=len(before))
    its_events = events.result(twice, before) if events else None
    if its_events:
        before = before + np.bincount(its_events.row, minlength=len(before))
    its_states = states.result(twice, before) if states else None
    if its_states:
        before = before + np.bincount(its_states.row, minlength=len(before))
    decoded = Decoded(
        samples=its_samples,
        events=its_events,
        states=its_states,
        counters=counters.result(twice, before) if counters else None,
        rejections=rejections,
        names=names.result(twice) if names else (),
        attributes=said.result(twice) if said else (),
    )
    return decoded.owned(domain.defaults)


def _owned(keys: Sequence[SeriesKey], defaults: Defaults) -> list[SeriesKey]:
    tenant, factory = defaults
    return [
        key
        if key.tenant_id is not None and key.factory_id is not None
        else key._replace(
            tenant_id=tenant if key.tenant_id is None else key.tenant_id,
            factory_id=factory if key.factory_id is None else key.factory_id,
        )
        for key in keys
    ]


def _owned_attributes(attributes: Sequence[Attributes], defaults: Defaults) -> Sequence[Attributes]:
    keys = list({one.series for one in attributes})
    owned = dict(zip(keys, _owned(keys, defaults), strict=True))
    return attributes if list(owned.values()) == keys else [
        Attributes(one.row, owned[one.series], one.text) for one in attributes
    ]


def _owned_events(frame: pl.DataFrame, defaults: Defaults) -> pl.DataFrame:
    columns = {"tenant_id": defaults.tenant_id, "factory_id": defaults.factory_id}
    return frame.with_columns(
        pl.col(name).fill_null(value) for name, value in columns.items() if value is not None
    )


def decode_samples(payloads: Sequence[bytes], domain: Domain) -> Samples:
    """The samples of raw payloads: none, where the domain has none."""
    decoded = decode(payloads, domain)
    return decoded.samples or SampleReader(lambda _: ()).result((), decoded.rejections)


def _decode_chunk(
    payloads: Sequence[bytes],
    first: int,
    domain: Domain,
    readers: Sequence[Reader],
    rejections: dict[int, Rejection],
) -> None:
    """Adds the rows of a chunk to the readers, and what cannot be read to ``rejections``."""
    read = msgspec.json.Decoder(domain.payload).decode
    try:
        # In C: every message passes here. Where one kind of rows is taken, no payload outlives the next.
        objects = map(read, payloads) if len(readers) == 1 else list(map(read, payloads))
        columns = [reader.columns(list(map(reader.take, objects)), first) for reader in readers]
    except Exception:  # noqa: BLE001
        # One of them cannot be read, or the domain fails on it: one by one, so that the others are.
        taken = [_each(payload, at, read, readers, rejections) for at, payload in enumerate(payloads, first)]
        columns = [reader.columns([row[at] for row in taken], first) for at, reader in enumerate(readers)]
    for reader, its in zip(readers, columns, strict=True):
        reader.add(its)


def _each(
    payload: bytes, row: int, read: Any, readers: Sequence[Reader], rejections: dict[int, Rejection]
) -> Sequence[Sequence[Any]]:
    """What each reader takes of one payload; nothing, if one of them cannot."""
    try:
        content = read(payload)
        taken = [reader.take(content) for reader in readers]
        for reader, its in zip(readers, taken, strict=True):
            reader.check(its)
    except PAYLOAD_ERRORS as error:
        rejections[row] = explain(payload, error)
    except Exception as error:  # noqa: BLE001
        rejections[row] = Rejection("domain_error", f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS])
    else:
        return taken
    return [()] * len(readers)


def _with_duplicate_keys(
    payloads: Sequence[bytes], domain: Domain, rejected: Mapping[int, Rejection]
) -> dict[int, Rejection]:
    """Payloads that could be read, but hold a key that is read more than once, be it the time's."""
    rows = [row for row in range(len(payloads)) if row not in rejected] if rejected else range(len(payloads))
    found = duplicate_keys([payloads[row] for row in rows] if rejected else payloads, keys_of(domain))
    return {rows[at]: duplicate_key(key) for at, key in found.items()}


def latest(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """One row an identity: of several, the later by (Kafka time, log, offset, ordinal).

    Args:
        columns: ``event_time, series_id, sample_key`` (the identity), ``kafka_time, log_id, partition, offset,
            ordinal`` (the order), and whatever else belongs to a row.

    Returns:
        The same columns, sorted by identity.
    """
    order = np.lexsort(
        [
            columns[name]
            for name in (
                "ordinal",
                "offset",
                "log_id",
                "kafka_time",
                "sample_key",
                "series_id",
                "event_time",
            )
        ]
    )
    rows = {name: column[order] for name, column in columns.items()}
    time, series, key = rows["event_time"], rows["series_id"], rows["sample_key"]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (time[1:] != time[:-1]) | (series[1:] != series[:-1]) | (key[1:] != key[:-1])
    return rows if last.all() else {name: column[last] for name, column in rows.items()}
