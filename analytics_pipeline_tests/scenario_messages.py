"""The messages of the scenarios: how a domain sends its readings, and what should become of each message.

Read with plain ``json``, and by nothing of the package that is tested.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from analytics_pipeline.records import RAW_EVENTS, to_us
from analytics_pipeline_tests.domains import traces
from analytics_pipeline_tests.environments import Sent
from analytics_pipeline_tests.pipeline import reading
from analytics_pipeline_tests.reference import SeriesKey
from analytics_pipeline_tests.stored_columns import Element

NOT_JSON, NO_READING = b"{no json", "no reading"
RETENTION_DAYS = 1
SERIES = [("m-1", "s-1"), ("m-1", "s-2"), ("m-2", "s-1")]


def where(one: Sent) -> tuple[str, int, int, int]:
    """Topic, epoch, partition and offset of a message."""
    return one.topic, one.epoch, one.partition, one.offset


def payloads(
    rng: random.Random, domain: str, samples: Sequence[tuple[datetime, float]], series: tuple[str, str]
) -> list[bytes]:
    """As the domain sends them; here and there one that is no JSON, or no reading."""
    names = {"machine_id": series[0], "sensor_id": series[1]}
    some = [(time, NO_READING if rng.random() < 0.02 else value) for time, value in samples]
    if domain == "traces":
        found = [traces.message(some[at : at + 8], **names) for at in range(0, len(some), 8)]
    else:
        found = [reading(time, value, **names) for time, value in some]
    return [*found, NOT_JSON] if rng.random() < 0.2 else found


def elements(one: Sent, domain: str, arrived: datetime) -> list[Element]:
    """What a message should become."""
    value = one.value or b""
    if value == NOT_JSON:
        return [_element(one, arrived, 0, value, None, {RAW_EVENTS: "not_json"}, is_element=False)]
    parsed = json.loads(value)
    if domain != "traces":
        return [_reading(one, arrived, 0, value, is_element=False)]
    texts = [reading(time, it, **parsed["shared"]) for time, it in parsed["samples"]]
    return [_reading(one, arrived, ordinal, text, is_element=True) for ordinal, text in enumerate(texts)]


def _reading(one: Sent, arrived: datetime, ordinal: int, text: bytes, *, is_element: bool) -> Element:
    fields = json.loads(text)
    rejected = {}
    floor = arrived.replace(minute=0, second=0, microsecond=0) - timedelta(days=RETENTION_DAYS)
    if datetime.fromisoformat(fields["time"]) < floor:
        rejected[RAW_EVENTS] = "after_retention"
    elif fields["value"] == NO_READING:
        rejected["normalized_measurements"] = "field_invalid"
    return _element(one, arrived, ordinal, text, fields, rejected, is_element=is_element)


def _element(
    one: Sent,
    arrived: datetime,
    ordinal: int,
    payload: bytes,
    fields: dict[str, str] | None,
    rejected: dict[str, str],
    *,
    is_element: bool,
) -> Element:
    good = fields is not None and not rejected
    return Element(
        position=(*where(one), ordinal),
        kafka_us=one.kafka_time_ms * 1000,
        arrived_us=to_us(arrived),
        payload=payload,
        time_us=None if fields is None else to_us(datetime.fromisoformat(fields["time"])),
        series=SeriesKey(*(fields[name] for name in SeriesKey._fields)) if fields is not None else None,
        value=float(fields["value"]) if good and fields is not None else None,
        rejected=rejected,
        is_element=is_element,
    )
