"""From raw events to canonical measurements: decode, take the samples, keep one row an identity. Pure.

A measurement is (series, event time, sample key). When the same identity comes again, the later one by
(Kafka time, position) wins, whatever the order in which they are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.domains.base import Domain, SeriesKey, SeriesTuple
from analytics_pipeline.stages.payload_bytes import Keys, duplicate_keys
from analytics_pipeline.stages.raw import PAYLOAD_ERRORS, Refusal, explain

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of many payloads, column by column.

    Attributes:
        row: which payload a sample came from, ascending.
        ordinal: its place among the samples of that payload.
        series: index into ``keys``.
        keys: the distinct series, in the order in which they appear.
        refusals: payloads that could not be read, by row; they have no samples.
    """

    row: Ints
    ordinal: Ints
    sample_key: Ints
    series: Ints
    value: npt.NDArray[np.float64]
    keys: list[SeriesKey]
    refusals: dict[int, Refusal]

    def gate_frame(self) -> pl.DataFrame:
        """What the gate judges: ``value`` and the names of the series, a row a sample."""
        names = {
            field: pl.Series([key[at] for key in self.keys], dtype=pl.String).gather(self.series)
            for at, field in enumerate(SeriesKey._fields)
        }
        return pl.DataFrame({"value": self.value, **names})


def decode_samples(payloads: Sequence[bytes], domain: Domain) -> Samples:
    """The samples of raw payloads. Nothing is raised for a payload that cannot be read."""
    decode, take = msgspec.json.Decoder(domain.payload).decode, domain.samples
    index: dict[SeriesTuple, int] = {}
    rows: list[int] = []
    ordinals: list[int] = []
    sample_keys: list[int] = []
    series: list[int] = []
    values: list[float] = []
    refusals: dict[int, Refusal] = {}
    for row, payload in enumerate(payloads):
        try:
            samples = take(decode(payload))
        except PAYLOAD_ERRORS as error:
            refusals[row] = explain(payload, error)
            continue
        for ordinal, (key, value, sample_key) in enumerate(samples):
            number = index.get(key)
            if number is None:
                number = index[key] = len(index)
            rows.append(row)
            ordinals.append(ordinal)
            sample_keys.append(sample_key)
            series.append(number)
            values.append(value)
    twice = _with_duplicate_keys(payloads, domain, refusals)
    kept = ~np.isin(rows, list(twice)) if twice else slice(None)
    return Samples(
        np.array(rows, np.int64)[kept],
        np.array(ordinals, np.int64)[kept],
        np.array(sample_keys, np.int64)[kept],
        np.array(series, np.int64)[kept],
        np.array(values, np.float64)[kept],
        [SeriesKey(*series) for series in index],
        refusals | twice,
    )


def _with_duplicate_keys(
    payloads: Sequence[bytes], domain: Domain, refused: Mapping[int, Refusal]
) -> dict[int, Refusal]:
    """Payloads that could be read, but hold a key that is read more than once, be it the time's."""
    rows = [row for row in range(len(payloads)) if row not in refused] if refused else range(len(payloads))
    found = duplicate_keys([payloads[row] for row in rows] if refused else payloads, _keys(domain))
    return {
        rows[at]: Refusal("duplicate_key", f"key {key!r} is there more than once; which one counts is not defined")
        for at, key in found.items()
    }


@lru_cache(maxsize=256)
def _keys(domain: Domain) -> Keys:
    return Keys.of(domain.envelope, domain.payload)


def latest(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """One row an identity: of several, the later by (Kafka time, log, partition, offset, ordinal).

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
                "partition",
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
