"""What a domain is: its topics, how its payloads are read, how they are validated. Pure; no IO, no clock.

Adding a domain is adding one file beside this one that holds ``DOMAIN = Domain(...)``, or installing a package that
names one under the entry point `ENTRY_POINTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from analytics_pipeline.detectors.base import Detector
from analytics_pipeline.records import AssetName

#: The group of entry points by which another installed package brings domains.
ENTRY_POINTS = "analytics_pipeline.domains"

_STABLE_WORD = re.compile(r"[a-z][a-z0-9_]*")
#: Sample keys that stand for names are positive int8: 63 bits, and 0 means that there is none.
_SAMPLE_KEYS = 2**63 - 1


class PayloadError(Exception):
    """A domain's own reason to reject one payload: it becomes a dead letter, its neighbours do not.

    Attributes:
        reason: a stable word, by which people count dead letters: ``no_health``.
        text: a sentence for people, with what was there and what is taken.
    """

    def __init__(self, reason: str, text: str) -> None:
        if not _STABLE_WORD.fullmatch(reason):
            raise ValueError(f"reason {reason!r}: takes a word such as 'no_health'")
        super().__init__(text)
        self.reason = reason
        self.text = text


class Timed(msgspec.Struct):
    """The envelope of payloads whose event time is the field ``time``, as ISO 8601 text."""

    time: datetime


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


#: The quality of a sample. Below and above are censored: what is known is that the true value lies below the one
#: given, as in a laboratory's "<0.05", or above it. A bad sample is stored and counted, and is in no figure; its value
#: may be NaN, where there is none. Plain numbers, because they pass with every sample.
GOOD, UNCERTAIN, BAD, BELOW, ABOVE = range(5)
#: Their names, for people.
QUALITIES = ("good", "uncertain", "bad", "below", "above")


class RatedSample(NamedTuple):
    """One measurement of a domain that is `Domain.rated`; a plain tuple of the same four does as well."""

    series: SeriesKey
    value: float
    sample_key: int = 0
    quality: int = GOOD


#: A `Sample`, or a plain tuple of the same three.
SampleTuple = tuple[SeriesTuple, float, int]
#: A `RatedSample`, or a plain tuple of the same four.
RatedTuple = tuple[SeriesTuple, float, int, int]


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


class Defaults(NamedTuple):
    """Whose data it is where a payload does not say: a stored row without a tenant does not exist."""

    tenant_id: str = "default"
    factory_id: str | None = None


DEFAULTS = Defaults()


def sample_key_of(sample_id: str, replicate: str | None = None) -> int:
    """The key of a named sample: the same everywhere and always, from 1 to 2**63 − 1.

    Two of a million samples of one series and time have the same with a probability of 1e-7.
    """
    digest = blake2b(msgspec.json.encode([sample_id, replicate]), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _SAMPLE_KEYS + 1


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
        rated: whether its samples carry their quality, as `RatedSample` does; else they all are good.
        events: the events of a payload, in a stable order; None: it has none.
        states: the changes of state that a payload tells, in a stable order; None: it has none.
        sample_names: what the sample keys of a payload stand for, as (sample key, sample id, replicate), where they
            are hashes (`sample_key_of`). They are kept once, in ``sample_names``.
        series_attributes: what is known of a series beside its identity, as (series, JSON object): what the last
            message said is kept in ``series_attributes``, without history.
        defaults: tenant and factory of payloads that name none.
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
    samples: Callable[[Any], Sequence[SampleTuple | RatedTuple]] | None = None
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
    sample_names: Callable[[Any], Sequence[tuple[int, str, str | None]]] | None = None
    series_attributes: Callable[[Any], Sequence[tuple[SeriesTuple, str]]] | None = None
    defaults: Defaults = DEFAULTS
    rated: bool = False
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
