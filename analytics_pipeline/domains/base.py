"""What a domain is: its topics, how its payloads are read, how they are validated. Pure; no IO, no clock.

Adding a domain is adding one file beside this one that holds ``DOMAIN = Domain(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

import msgspec

from analytics_pipeline.detectors.base import Detector
from analytics_pipeline.records import AssetName


class SeriesKey(NamedTuple):
    """What identifies a series of measurements. ``None``: the domain has no such thing."""

    tenant_id: str | None
    factory_id: str | None
    machine_id: str | None
    station_id: str | None
    sensor_id: str | None
    metric: str
    unit: str | None


#: A `SeriesKey`, or a plain tuple of the same seven.
SeriesTuple = tuple[str | None, str | None, str | None, str | None, str | None, str, str | None]


class Sample(NamedTuple):
    """One measurement of a message. Its time is the message's event time.

    On the way of every message a plain tuple of the same three does as well, at a fifth of the cost.
    """

    series: SeriesKey
    value: float
    sample_key: int = 0


class Event(NamedTuple):
    """One event of a message. Its time is the message's event time.

    Attributes:
        event_id: the event's own id, at most 200 bytes: one id is one event, whenever it is seen again. None: the
            event is identified by its content, see ``Domain.event_identity``.
        properties: JSON text as `canonical_json` writes it.
    """

    event_id: str | None
    tenant_id: str | None
    factory_id: str | None
    machine_id: str | None
    entity_type: str
    entity_id: str
    event_type: str
    user_id: str | None
    value: float | None
    properties: str = "{}"


#: An `Event`, or a plain tuple of the same ten.
EventTuple = tuple[
    str | None, str | None, str | None, str | None, str, str, str, str | None, float | None, str
]  # fmt: skip

#: What identifies an event without an id, beside its domain and its time, where the domain does not say otherwise.
EVENT_CONTENT = Event._fields[1:]


class StateChange(NamedTuple):
    """From the message's event time on, something is in a state, until the next change of the same series.

    Attributes:
        series: whose state, and as ``metric`` the kind of state.
        state: at most 256 bytes.
    """

    series: SeriesKey
    state: str


@dataclass(frozen=True, slots=True)
class CounterLimits:
    """What is declared of the counters of one metric.

    Attributes:
        modulus: the reading at which it begins at zero again, 100000 of five digits; None: it is not known to.
        max_rate_per_s: the most that it can count in a second; None: unknown.

    Raises:
        ValueError: no modulus or rate that a counter can have.
    """

    metric: str
    modulus: int | None = None
    max_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.modulus is not None and not 0 < self.modulus < 1 << 63:
            raise ValueError(f"modulus of {self.metric!r}: above 0 and below 2^63, not {self.modulus}")
        if self.max_rate_per_s is not None and not 0 < self.max_rate_per_s < float("inf"):
            raise ValueError(f"max_rate_per_s of {self.metric!r}: above 0 and finite, not {self.max_rate_per_s}")


def canonical_json(value: Any) -> str:
    """JSON text that is the same for the same content: keys sorted, no spaces."""
    return msgspec.json.encode(value, order="sorted").decode()


@dataclass(frozen=True, slots=True)
class Expect:
    """One expectation of Great Expectations about the rows of one asset, as data: nothing heavy is imported.

    Attributes:
        asset: the asset whose gate holds it.
        table: which of its tables; empty: the first.
        expectation: as Great Expectations names it, ``expect_column_values_to_be_between``; one about single
            rows, because the rows that fail become dead letters.
        column: a column of the asset's frame, or one that the asset's suite derives from it.
        reason: of the dead letters of rows that fail, a stable word to count by.
        arguments: further arguments, ``(("min_value", 0), ("max_value", 100))``.
    """

    asset: AssetName
    expectation: str
    column: str
    reason: str
    arguments: tuple[tuple[str, Any], ...] = ()
    table: str = ""


@dataclass(frozen=True)
class Domain:
    """One kind of data.

    Attributes:
        name: as in ``DOMAINS_ENABLED`` and in the column ``domain``.
        topics: Kafka topics that carry it.
        envelope: the struct that the drain decodes: just what gives the event time.
        event_time: from a decoded envelope. A result without a zone takes ``time_zone``.
        payload: the struct that normalization decodes.
        samples: the measurements of a payload, in a stable order; None: it has none.
        events: the events of a payload, in a stable order; None: it has none.
        states: the changes of state that a payload tells, in a stable order; None: it has none.
        counters: the readings of counters that a payload tells, in a stable order: (series, whole number); the
            series' metric is what is counted. None: it has none.
        counter_limits: what is declared of them, by metric.
        event_identity: which fields of an `Event` identify one without an id, beside its time.
        detectors: evaluate the base windows.
        expectations: what its gates expect beyond what every domain's expect (``quality/suites.py``).
        max_failed_ratio: above this share of failed rows, a (domain, hour) is quarantined …
        min_gate_rows: … once it holds this many rows: two bad rows of three say little.
        time_zone: of event times that carry none.
        longest_gap_s: how long a value holds when no other follows: beyond it, the time-weighted mean covers
            nothing, and what a counter counted is said to span a gap.
        split: for payloads that carry samples of many times: the elements of one payload, each with its time and
            a text that ``envelope``, ``event_time`` and ``payload`` read alone, giving the same time; what the
            elements share is repeated in each. Every element is a raw event of its own. None: a payload is one.
    """

    name: str
    topics: tuple[str, ...]
    envelope: type[msgspec.Struct]
    event_time: Callable[[Any], datetime]
    payload: type[msgspec.Struct]
    samples: Callable[[Any], Sequence[tuple[SeriesTuple, float, int]]] | None = None
    detectors: tuple[Detector, ...] = ()
    expectations: tuple[Expect, ...] = ()
    max_failed_ratio: float = 0.5
    min_gate_rows: int = 100
    time_zone: tzinfo = UTC
    longest_gap_s: int = 300
    split: Callable[[bytes], Sequence[tuple[datetime, bytes]]] | None = None
    events: Callable[[Any], Sequence[EventTuple]] | None = None
    event_identity: tuple[str, ...] = EVENT_CONTENT
    states: Callable[[Any], Sequence[tuple[SeriesTuple, str]]] | None = None
    counters: Callable[[Any], Sequence[tuple[SeriesTuple, int]]] | None = None
    counter_limits: tuple[CounterLimits, ...] = ()

    def __post_init__(self) -> None:
        if not (self.samples or self.events or self.states or self.counters):
            raise ValueError(f"domain {self.name!r} yields nothing: give it samples, events, states or counters")
        declared = [one.metric for one in self.counter_limits]
        if len(set(declared)) < len(declared):
            raise ValueError(f"domain {self.name!r}: counter_limits name a metric twice: {', '.join(declared)}")

    @property
    def history(self) -> timedelta:
        """How far back of an hour what is computed for it may look: at earlier windows, and their last samples."""
        gap = timedelta(seconds=self.longest_gap_s)
        return max([gap, *(detector.look_back for detector in self.detectors)])
