"""What every domain keeps to, whatever its data. A new file in ``domains/`` is held to it without a change here.

The example in a domain's docstring is the payload that it is tested with, so that the documentation is true. The
domains of the tests are held to it as well: they yield every kind of rows. What needs servers is in
``integration/test_every_domain.py``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast, get_args
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_pipeline.assets.measurements.transform import decode
from analytics_pipeline.assets.raw_events.transform import PAYLOAD_ERRORS, Rejection, decode_slice
from analytics_pipeline.domains import discover, registry_for
from analytics_pipeline.domains.base import BAD, QUALITIES, Domain, Event, SeriesKey
from analytics_pipeline.errors import DomainCollisionError, SettingsError
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import AssetName
from analytics_pipeline.settings import Settings, load_settings
from analytics_pipeline_tests.decoded_rows import slice_of
from analytics_pipeline_tests.domain_payloads import at, every_domain, example

DOMAINS = every_domain()
STABLE_WORD = re.compile(r"[a-z][a-z0-9_]*")
LONGEST_LOOK_BACK = timedelta(days=7)

each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
each_of_the_product = pytest.mark.parametrize("domain", discover(), ids=lambda domain: domain.name)


@pytest.fixture(scope="module")
def plain() -> Settings:
    return load_settings(_env_file=None)


def module_of(domain: Domain) -> Any:
    return sys.modules[domain.payload.__module__]


@dataclass
class Read:
    """What payloads became, by payload: times, rows of each kind, and why those were rejected that were."""

    times: dict[int, list[int]]
    rows: dict[int, list[tuple[Any, ...]]]
    rejections: dict[int, Rejection]


def read(domain: Domain, *payloads: bytes) -> Read:
    """Through the drain and normalization, without their gates."""
    drained = decode_slice(slice_of(domain, *payloads), domain, 2**20)
    origin = list(range(len(payloads))) if drained.origin is None else drained.origin.tolist()
    found = Read({}, {}, {origin[row]: one for row, one in drained.rejections.items()})
    kept = [row for row in range(len(origin)) if row not in drained.rejections]
    for row in kept:
        found.times.setdefault(origin[row], []).append(int(drained.event_time_us[row]))
    decoded = decode([cast(bytes, drained.rows.values[row]) for row in kept], domain)
    found.rejections |= {origin[kept[row]]: one for row, one in decoded.rejections.items()}
    its: list[tuple[int, tuple[Any, ...]]] = []
    if one := decoded.samples:
        keys = [one.keys[series] for series in one.series]
        quality = np.zeros(len(keys), np.int8) if one.quality is None else one.quality
        columns = (["sample"] * len(keys), keys, one.value, one.sample_key, quality)
        its += zip(one.row, zip(*columns, strict=True), strict=True)
    if other := decoded.events:
        its += zip(other.row, [("event", *event) for event in other.frame.rows()], strict=True)
    for kind, told in (("state", decoded.states), ("counter", decoded.counters)):
        if told:
            keys = [told.keys[series] for series in told.series]
            columns = ([kind] * len(keys), keys, told.values.to_series(0).to_list())
            its += zip(told.row, zip(*columns, strict=True), strict=True)
    for row, content in its:
        found.rows.setdefault(origin[kept[row]], []).append(content)
    return found


# ---------------------------------------------------------------------- names


def test_there_are_domains() -> None:
    assert "sensor" in [domain.name for domain in DOMAINS]


@each_of_the_product
def test_a_domain_is_the_file_of_its_name_and_its_topics_are_its_own(domain: Domain) -> None:
    module = module_of(domain)
    if hasattr(module, "DOMAIN"):
        assert module.DOMAIN is domain
        assert module.__name__.rsplit(".", 1)[-1] == domain.name
    else:
        assert domain in module.DOMAINS
    assert STABLE_WORD.fullmatch(domain.name)
    assert domain.topics
    assert len(set(domain.topics)) == len(domain.topics)
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic) for topic in domain.topics), "as Kafka allows"


@each_domain
def test_a_domain_may_be_enabled_alone(domain: Domain) -> None:
    chosen = registry_for(load_settings(_env_file=None, domains_enabled=[domain.name]), DOMAINS)
    assert [one.name for one in chosen] == [domain.name]
    assert chosen.topics == domain.topics
    assert all(chosen.by_topic[topic].name == domain.name for topic in domain.topics)


def test_a_domain_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(SettingsError, match=r"DOMAINS_ENABLED: got nonsense, takes any of .*sensor"):
        registry_for(load_settings(_env_file=None, domains_enabled=["nonsense"]))


@each_domain
def test_two_domains_that_claim_one_topic_are_both_named(domain: Domain, plain: Settings) -> None:
    twin = replace(domain, name="twin")
    with pytest.raises(DomainCollisionError, match=rf"'{domain.name}'.*'twin'.*{re.escape(domain.topics[0])}"):
        registry_for(plain, [domain, twin])


# ---------------------------------------------------------------------- decoding


@each_domain
def test_the_documented_payload_is_read_and_shows_every_kind_that_it_yields(domain: Domain) -> None:
    found = read(domain, json.dumps(example(domain)).encode())
    assert found.rejections == {}
    assert found.times[0]
    kinds = {"sample": domain.samples, "event": domain.events, "state": domain.states, "counter": domain.counters}
    assert {row[0] for row in found.rows[0]} >= {kind for kind, takes in kinds.items() if takes}


@each_domain
def test_the_documented_samples_pass_their_gate(domain: Domain, plain: Settings) -> None:
    samples = decode([json.dumps(element(domain)).encode()], domain).samples
    assert (samples is None) == (domain.samples is None)
    if samples is not None:
        assert run_gate(suite_for("normalized_measurements", domain, plain), samples.gate_frame()).passed


@each_domain
def test_rows_are_the_same_each_time_and_differ_in_their_identity(domain: Domain) -> None:
    payload = json.dumps(example(domain)).encode()
    found = read(domain, payload, payload)
    assert found.rows[0] == found.rows[1]
    identities = [identity(domain, row) for row in found.rows[0]]
    assert len(set(identities)) == len(identities), "one statement must never see a key twice"
    for kind, *content in found.rows[0]:
        if kind == "event":
            event = Event(*content)
            assert all((event.entity_type, event.entity_id, event.event_type))
            assert isinstance(json.loads(event.properties), dict)
            continue
        assert SeriesKey(*content[0]).metric
        if kind in ("state", "counter"):
            assert content[1] if kind == "state" else isinstance(content[1], int)
            continue
        _, value, _, quality = content
        assert quality in range(len(QUALITIES))
        assert np.isfinite(value) or (quality == BAD and np.isnan(value))


def identity(domain: Domain, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """What tells a row apart from others of its payload."""
    kind, *content = row
    if kind == "event":
        event = Event(*content)
        by_content = tuple(getattr(event, name) for name in domain.event_identity)
        return kind, event.tenant_id, *(by_content if event.event_id is None else (event.event_id,))
    return (kind, content[0], content[2]) if kind == "sample" else (kind, content[0])


@each_domain
def test_further_fields_change_nothing(domain: Domain) -> None:
    payload = example(domain)
    more = payload | {"zz_unknown": {"deep": [1, {"er": None}]}, "zz_text": "\u0000 \U0001f3ed"}
    bare, rich = (read(domain, json.dumps(one).encode()) for one in (payload, more))
    assert bare == rich


@each_domain
@pytest.mark.parametrize("zone", ["UTC", "Asia/Bangkok", "America/New_York"])
def test_a_time_without_a_zone_is_in_the_domains_zone_and_one_with_a_zone_stays(domain: Domain, zone: str) -> None:
    moved = in_zone(domain, zone)
    aware = datetime(2026, 1, 15, 12, tzinfo=ZoneInfo("Asia/Tokyo"))
    naive = aware.replace(tzinfo=None)
    found = read(moved, *(at(domain, moment.isoformat()) for moment in (naive, aware)))
    assert found.rejections == {}
    expected = [int(naive.replace(tzinfo=ZoneInfo(zone)).timestamp() * 1e6), int(aware.timestamp() * 1e6)]
    assert [set(found.times[row]) for row in (0, 1)] == [{one} for one in expected]


def in_zone(domain: Domain, zone: str) -> Domain:
    chosen = registry_for(load_settings(_env_file=None, domain_time_zones={domain.name: zone}), DOMAINS)
    return chosen.by_name[domain.name]


# ---------------------------------------------------------------------- bad input

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@each_domain
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_payload_with_any_field_broken_is_refused_or_read_but_never_raises(domain: Domain, data: Any) -> None:
    payload = example(domain)
    name = data.draw(st.sampled_from(sorted(payload)))
    change = data.draw(st.sampled_from(["drop", "retype", "cut", "garble"]))
    if change == "drop":
        del payload[name]
    elif change == "retype":
        payload[name] = data.draw(any_json)
    text = json.dumps(payload).encode()
    if change == "cut":
        text = text[: data.draw(st.integers(0, len(text) - 1))]
    elif change == "garble":
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.binary(max_size=3)) + text[at + 1 :]
    good = json.dumps(example(domain)).encode()
    found = read(domain, good, text, good)
    assert set(found.rejections) <= {1}
    for rejection in found.rejections.values():
        assert STABLE_WORD.fullmatch(rejection.reason), "people count by it"
        assert rejection.reason != "domain_error", f"the domain raised: {rejection.error}"
        assert rejection.error
    assert found.rows[0] == found.rows[2] != []


@each_domain
@pytest.mark.parametrize("name", ["envelope", "payload"])
def test_every_required_field_that_is_missing_is_named(domain: Domain, name: str) -> None:
    struct = getattr(domain, name)
    for one in msgspec.structs.fields(struct):
        if not one.required:
            continue
        payload = element(domain)
        del payload[one.encode_name]
        rejections = read(replace(domain, split=None), json.dumps(payload).encode()).rejections
        assert rejections[0].reason == "field_missing"
        assert one.encode_name in rejections[0].error


def element(domain: Domain) -> dict[str, Any]:
    """The documented payload, or the first element of it: what ``envelope`` and ``payload`` read."""
    payload = example(domain)
    if domain.split is None:
        return payload
    return cast(dict[str, Any], json.loads(domain.split(json.dumps(payload).encode())[0][1]))


@each_domain
def test_a_key_that_is_read_may_not_stand_twice(domain: Domain) -> None:
    whole, payload = replace(domain, split=None), element(domain)
    text = json.dumps(payload)
    for name, value in payload.items():
        twice = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}".encode()
        rejected = read(whole, text.encode(), twice).rejections
        known = {
            one.encode_name
            for struct in (domain.envelope, domain.payload)
            for one in msgspec.structs.fields(struct)
        }
        assert set(rejected) == ({1} if name in known else set()), name
        assert all(rejection.reason == "duplicate_key" for rejection in rejected.values())


def test_nothing_but_the_payload_makes_a_refusal() -> None:
    """A bug in a mapper must surface: it is no bad data."""
    assert not issubclass(KeyError, PAYLOAD_ERRORS)
    assert not issubclass(TypeError, PAYLOAD_ERRORS)
    assert not issubclass(ArithmeticError, PAYLOAD_ERRORS)


# ---------------------------------------------------------------------- gates and detectors


@each_domain
def test_every_asset_has_a_gate_whose_reasons_are_stable_words(domain: Domain, plain: Settings) -> None:
    for asset in get_args(AssetName):
        suite = suite_for(asset, domain, plain)
        assert suite.expectations, asset
        assert all(STABLE_WORD.fullmatch(expect.reason) for expect in suite.expectations)
    assert 0 < domain.max_failed_ratio <= 1
    assert domain.min_gate_rows >= 1


@each_domain
def test_detectors_have_names_of_their_own_and_a_bounded_look_back(domain: Domain) -> None:
    names = [detector.name for detector in domain.detectors]
    assert len(set(names)) == len(names)
    assert all(STABLE_WORD.fullmatch(name) for name in names)
    assert all(timedelta() <= detector.look_back <= LONGEST_LOOK_BACK for detector in domain.detectors)
