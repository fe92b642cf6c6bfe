"""The events of payloads, column by column, and what identifies one. Pure.

An event with an id is that id, of its domain and tenant, whenever it is seen; one without is its content at its time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.measurements.taken import Ints, flattened
from analytics_pipeline.domains.base import Event, EventTuple

#: The columns of `Event`.
FIELDS: dict[str, Any] = dict.fromkeys(Event._fields, pl.String()) | {"value": pl.Float64()}
#: Bytes of a hash: two of a trillion events have the same with a probability of 1e-15.
IDENTITY_BYTES = 16
#: Between the parts of what is hashed: the gate lets no name pass that holds it, nor an empty one.
_SEPARATOR = "\0"


@dataclass(frozen=True, slots=True)
class Events:
    """The events of many payloads.

    Attributes:
        row: which payload an event came from, ascending.
        ordinal: its place in that payload, after the samples.
        frame: `FIELDS`, a row per event.
    """

    row: Ints
    ordinal: Ints
    frame: pl.DataFrame


@dataclass
class EventReader:
    """Reads the events of payloads."""

    take: Callable[[Any], Sequence[EventTuple]]
    parts: list[Events] = field(default_factory=list)

    def columns(self, taken: Sequence[Sequence[EventTuple]], first: int) -> Events:
        row, ordinal, events = flattened(taken, first)
        if not events:
            return Events(row, ordinal, pl.DataFrame(schema=FIELDS))
        columns = zip(FIELDS.items(), zip(*events, strict=True), strict=True)
        return Events(row, ordinal, pl.DataFrame([pl.Series(name, its, dtype) for (name, dtype), its in columns]))

    def check(self, taken: Sequence[EventTuple]) -> None:
        self.columns([taken], 0)

    def add(self, columns: Events) -> None:
        self.parts.append(columns)

    def result(self, without: Collection[int], before: Ints) -> Events:
        """What was read, but for some payloads; ``before``: rows of other kinds in each payload, which stand first."""
        nothing = Events(np.zeros(0, np.int64), np.zeros(0, np.int64), pl.DataFrame(schema=FIELDS))
        parts = self.parts or [nothing]
        row = np.concatenate([part.row for part in parts])
        ordinal = np.concatenate([part.ordinal for part in parts]) + before[row]
        kept = ~np.isin(row, list(without))
        frame = pl.concat([part.frame for part in parts]).filter(pl.Series(kept, dtype=pl.Boolean))
        return Events(row[kept], ordinal[kept], frame)


def identities(frame: pl.DataFrame, content: Sequence[str]) -> pl.Series:
    """What identifies each event within its domain, as 32 hexadecimal digits.

    Args:
        frame: `FIELDS` and ``event_time_us``, of rows that passed the gate.
        content: the fields that identify an event without an id, beside its time.
    """
    own = [pl.col("tenant_id"), pl.col("event_id")]
    # Minus zero is zero, and the bits of a double are the same text everywhere.
    bits = pl.Series("value", (frame["value"].fill_null(np.nan).to_numpy() + 0.0).view(np.int64))
    by_content = [pl.col(name) if name != "value" else pl.lit(bits).cast(pl.String) for name in content]
    texts = frame.select(
        pl.when(pl.col("event_id").is_not_null())
        .then(_text("id", own))
        .otherwise(_text("content", [pl.col("event_time_us").cast(pl.String), *by_content]))
    ).to_series()
    digests = [blake2b(text, digest_size=IDENTITY_BYTES).hexdigest() for text in texts.cast(pl.Binary).to_list()]
    return pl.Series("identity", digests, pl.String())


def _text(kind: str, parts: Sequence[pl.Expr]) -> pl.Expr:
    return pl.concat_str([pl.lit(kind), *(part.fill_null("") for part in parts)], separator=_SEPARATOR)
