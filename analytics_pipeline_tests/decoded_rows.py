"""What payloads of a domain become, without a server: for tests of single domains and of examples in the docs."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, cast

import numpy as np

from analytics_pipeline.assets.measurements.calculation import TABLES
from analytics_pipeline.assets.measurements.normalized import Chunk
from analytics_pipeline.assets.measurements.transform import Decoded, decode
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.settings import Settings


def shown(domain: Domain) -> dict[str, Any]:
    """The payload that the docstring of a domain's module shows, after ``::``."""
    module = sys.modules[domain.payload.__module__]
    found = re.search(r"::\n\n((?: {4}.*\n)+)", module.__doc__ or "")
    assert found, f"{module.__name__}: its docstring shows no payload"
    return cast(dict[str, Any], json.loads(found[1]))


def slice_of(domain: Domain, *payloads: bytes) -> MessageSlice:
    """Some messages on the domain's topic."""
    count = len(payloads)
    none: list[Any] = [None] * count
    return MessageSlice(
        log=LogPartition(domain.topics[0], 1, 0),
        from_offset=0,
        next_offset=count,
        offsets=list(range(count)),
        kafka_times_ms=[0] * count,
        values=list(payloads),
        keys=none,
        headers=none,
    )


def rows_of(decoded: Decoded) -> dict[str, list[Any]]:
    """What was decoded, by kind of row, each with the number of its payload first."""
    samples, events, states = decoded.samples, decoded.events, decoded.states
    found: dict[str, list[Any]] = {}
    if samples:
        series = [samples.keys[at] for at in samples.series.tolist()]
        columns = (samples.row.tolist(), series, samples.value.tolist(), samples.sample_key.tolist())
        found["samples"] = list(zip(*columns, strict=True))
    if events:
        found["events"] = [(row, *event) for row, event in zip(events.row.tolist(), events.frame.rows(), strict=True)]
    if states:
        series = [states.keys[at] for at in states.series.tolist()]
        found["states"] = list(zip(states.row.tolist(), series, states.values["state"].to_list(), strict=True))
    return found


def assert_passes_gates(domain: Domain, payload: bytes, settings: Settings) -> None:
    """Every table takes what one payload becomes."""
    decoded = decode([payload], domain)
    assert decoded.rejections == {}
    for table in TABLES:
        part = table.part_of(decoded)
        if part is None:
            continue
        chunk = Chunk(domain=domain, domain_id=0, raw=cast(Any, None), raw_part=np.zeros(1, np.int64), part=part)
        suite = suite_for("normalized_measurements", domain, settings, table.spec.name)
        assert run_gate(suite, table.gate_frame([chunk])).passed, table.spec.name
