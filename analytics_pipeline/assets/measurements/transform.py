"""From raw events to canonical measurements: decode, take the samples, keep one row an identity. Pure.

A measurement is (series, event time, sample key). When the same identity comes again, the later one by
(Kafka time, position) wins, whatever the order in which they are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.assets.raw_events.payload_bytes import Keys, duplicate_keys
from analytics_pipeline.assets.raw_events.transform import ERROR_CHARACTERS, PAYLOAD_ERRORS, Rejection, explain
from analytics_pipeline.domains.base import Domain, SeriesKey, SeriesTuple

Ints = npt.NDArray[np.int64]
#: Payloads decoded in one go: few enough to stay in the processor's cache, and to be gone through again one by
#: one when one of them cannot be read.
CHUNK_PAYLOADS = 5_000


#: Row, ordinal, sample key, series, value.
_Columns = tuple[Ints, Ints, Ints, Ints, npt.NDArray[np.float64]]
_NONE = np.zeros(0, np.int64)
_NO_SAMPLES: _Columns = (_NONE, _NONE, _NONE, _NONE, np.zeros(0, np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of many payloads, column by column.

    Attributes:
        row: which payload a sample came from, ascending.
        ordinal: its place among the samples of that payload.
        series: index into ``keys``.
        keys: the distinct series, in the order in which they appear.
        rejections: payloads that could not be read, by row; they have no samples.
    """

    row: Ints
    ordinal: Ints
    sample_key: Ints
    series: Ints
    value: npt.NDArray[np.float64]
    keys: list[SeriesKey]
    rejections: dict[int, Rejection]

    def names_frame(self) -> pl.DataFrame:
        """The names of the series, a row per series."""
        return pl.DataFrame(self.keys, schema=dict.fromkeys(SeriesKey._fields, pl.String()), orient="row")

    def gate_frame(self) -> pl.DataFrame:
        """What the gate validates: ``value`` and the names of the series, a row per sample."""
        names = self.names_frame()
        return pl.DataFrame(
            {"value": self.value, **{name: names[name].gather(self.series) for name in names.columns}}
        )


def decode_samples(payloads: Sequence[bytes], domain: Domain) -> Samples:
    """The samples of raw payloads. A payload that cannot be read, or on which the domain fails, raises nothing."""
    index: dict[SeriesTuple, int] = {}
    rejections: dict[int, Rejection] = {}
    parts = [
        _decode_chunk(payloads[first : first + CHUNK_PAYLOADS], first, domain, index, rejections)
        for first in range(0, len(payloads), CHUNK_PAYLOADS)
    ]
    columns = [np.concatenate(column) for column in zip(*(parts or [_NO_SAMPLES]), strict=True)]
    twice = _with_duplicate_keys(payloads, domain, rejections)
    if twice:
        kept = ~np.isin(columns[0], list(twice))
        columns = [column[kept] for column in columns]
    row, ordinal, sample_key, series, value = columns
    return Samples(
        row=row,
        ordinal=ordinal,
        sample_key=sample_key,
        series=series,
        value=value,
        keys=[SeriesKey(*key) for key in index],
        rejections=rejections | twice,
    )


def _decode_chunk(
    payloads: Sequence[bytes],
    first: int,
    domain: Domain,
    index: dict[SeriesTuple, int],
    rejections: dict[int, Rejection],
) -> _Columns:
    """Row, ordinal, sample key, series and value of a chunk's samples; adds to ``index`` and ``rejections``."""
    decode, take = msgspec.json.Decoder(domain.payload).decode, domain.samples
    try:
        return _columns(list(map(take, map(decode, payloads))), first, index)  # in C: every message passes here
    except Exception:  # noqa: BLE001
        # One of them cannot be read, or the domain fails on it: each by itself, so that the others are.
        taken = [
            _samples_or_none(payload, at, decode, take, rejections) for at, payload in enumerate(payloads, first)
        ]
        return _columns(taken, first, index)


def _columns(
    taken: Sequence[Sequence[tuple[SeriesTuple, float, int]]], first: int, index: dict[SeriesTuple, int]
) -> _Columns:
    counts = np.fromiter(map(len, taken), np.int64, len(taken))
    samples = list(chain.from_iterable(taken))
    if not samples:
        return _NO_SAMPLES
    keys, values, sample_keys = zip(*samples, strict=True)
    value, sample_key = np.array(values, np.float64), np.array(sample_keys, np.int64)
    for key in dict.fromkeys(keys):
        index.setdefault(key, len(index))
    return (
        first + np.repeat(np.arange(len(taken)), counts),
        np.arange(len(samples)) - np.repeat(np.cumsum(counts) - counts, counts),
        sample_key,
        np.fromiter(map(index.__getitem__, keys), np.int64, len(keys)),
        value,
    )


def _samples_or_none(
    payload: bytes,
    row: int,
    decode: Callable[[bytes], Any],
    take: Callable[[Any], Sequence[tuple[SeriesTuple, float, int]]],
    rejections: dict[int, Rejection],
) -> Sequence[tuple[SeriesTuple, float, int]]:
    try:
        samples = take(decode(payload))
        _columns([samples], 0, {})
    except PAYLOAD_ERRORS as error:
        rejections[row] = explain(payload, error)
    except Exception as error:  # noqa: BLE001
        rejections[row] = Rejection("domain_error", f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS])
    else:
        return samples
    return ()


def _with_duplicate_keys(
    payloads: Sequence[bytes], domain: Domain, rejected: Mapping[int, Rejection]
) -> dict[int, Rejection]:
    """Payloads that could be read, but hold a key that is read more than once, be it the time's."""
    rows = [row for row in range(len(payloads)) if row not in rejected] if rejected else range(len(payloads))
    found = duplicate_keys([payloads[row] for row in rows] if rejected else payloads, _keys(domain))
    return {
        rows[at]: Rejection("duplicate_key", f"key {key!r} is there more than once; which one counts is not defined")
        for at, key in found.items()
    }


@lru_cache(maxsize=256)
def _keys(domain: Domain) -> Keys:
    return Keys.of(domain.envelope, domain.payload)


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
