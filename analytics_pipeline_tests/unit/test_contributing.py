"""The examples of CONTRIBUTING.md, as they stand there: complete domains, one of each kind."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from analytics_pipeline.assets.measurements.transform import decode
from analytics_pipeline.assets.raw_events.transform import decode_slice
from analytics_pipeline.domains import Registry, discover
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.settings import load_settings
from analytics_pipeline_tests.decoded_rows import assert_passes_gates, rows_of, shown, slice_of

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
EXAMPLES = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.fixture(params=sorted(EXAMPLES))
def domain(request: pytest.FixtureRequest) -> Iterator[Domain]:
    """The domain of one example, as a module of its own."""
    name = f"example_{request.param}"
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(EXAMPLES[request.param], f"{PAGE.name}: {request.param}.py", "exec"), module.__dict__)
    yield module.DOMAIN
    del sys.modules[name]


def test_there_is_an_example_of_each_kind() -> None:
    assert sorted(EXAMPLES) == ["furnace", "gate", "logger", "valve"]


def test_an_example_is_named_as_its_file_and_has_a_topic_of_its_own(domain: Domain) -> None:
    assert domain.payload.__module__ == f"example_{domain.name}"
    found = Registry((*discover(), domain), domain.topics)
    assert found.by_topic[domain.topics[0]] is domain


def test_the_payload_that_an_example_shows_is_read_and_what_is_missing_is_named(domain: Domain) -> None:
    whole = replace(domain, split=None)  # where messages are split, it shows an element
    payload = shown(domain)
    text = json.dumps(payload).encode()
    assert decode_slice(slice_of(whole, text), whole, 2**20).rejections == {}
    assert_passes_gates(whole, text, load_settings(_env_file=None))
    kinds = {name for name in ("samples", "events", "states") if getattr(domain, name)}
    assert {kind for kind, rows in rows_of(decode([text], whole)).items() if rows} == kinds
    for field in msgspec.structs.fields(domain.payload):
        if field.required:
            without = {name: value for name, value in payload.items() if name != field.encode_name}
            rejection = decode([json.dumps(without).encode()], whole).rejections[0]
            assert (rejection.reason, field.encode_name in rejection.error) == ("field_missing", True)


@pytest.mark.parametrize("domain", ["furnace"], indirect=True)
def test_the_example_of_samples_rejects_a_payload_for_a_reason_of_its_own(domain: Domain) -> None:
    payload = json.dumps(shown(domain) | {"zones": []}).encode()
    assert decode([payload], domain).rejections[0].reason == "no_zones"


@pytest.mark.parametrize("domain", ["logger"], indirect=True)
def test_the_example_that_splits_keeps_a_bad_value_from_its_neighbours(domain: Domain) -> None:
    moment = datetime(2026, 1, 15, 11, 59, 59, tzinfo=UTC)
    trace = [[(moment + timedelta(seconds=place)).isoformat(), value] for place, value in enumerate([1.5, "wet", 2.5])]
    message = json.dumps({"logger": "l-1", "metric": "level", "trace": trace}).encode()
    split = decode_slice(slice_of(domain, message), domain, 2**20)
    assert split.rejections == {}
    assert split.event_time_us.tolist() == [(int(moment.timestamp()) + place) * 1_000_000 for place in range(3)]
    rows = decode([value for value in split.rows.values if value], domain)
    assert [row[2] for row in rows_of(rows)["samples"]] == [1.5, 2.5]
    assert rows.rejections.keys() == {1}
