"""What every domain keeps to, whatever its data. A new file in ``domains/`` is held to it without a change here.

The example in a domain's docstring is the payload that it is tested with, so that the documentation is true.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timedelta
from typing import Any, cast, get_args
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_pipeline.assets.measurements.transform import decode_samples
from analytics_pipeline.assets.raw_events.transform import PAYLOAD_ERRORS, decode_slice
from analytics_pipeline.domains import discover, registry_for
from analytics_pipeline.domains.base import BAD, GOOD, QUALITIES, Domain, RatedSample, Sample, SeriesKey
from analytics_pipeline.errors import DomainCollisionError, SettingsError
from analytics_pipeline.messages import LogPartition, MessageSlice
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import AssetName
from analytics_pipeline.settings import Settings, load_settings

DOMAINS = discover()
STABLE_WORD = re.compile(r"[a-z][a-z0-9_]*")
LONGEST_LOOK_BACK = timedelta(days=7)

each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)


@pytest.fixture(scope="module")
def plain() -> Settings:
    return load_settings(_env_file=None)


def module_of(domain: Domain) -> Any:
    return sys.modules[domain.payload.__module__]


def example(domain: Domain) -> dict[str, Any]:
    """The payload that the domain's docstring shows, after ``::``."""
    shown = re.search(r"::\n\n((?: {4}.*\n)+)", module_of(domain).__doc__ or "")
    assert shown, f"{domain.payload.__module__}: its docstring shows no payload"
    return cast(dict[str, Any], json.loads(shown[1]))


def slice_of(domain: Domain, *payloads: bytes) -> MessageSlice:
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


def times_of(domain: Domain, *payloads: bytes) -> list[int]:
    decoded = decode_slice(slice_of(domain, *payloads), domain, 2**20)
    assert decoded.rejections == {}
    return cast(list[int], decoded.event_time_us.tolist())


# ---------------------------------------------------------------------- names


def test_there_are_domains() -> None:
    assert "sensor" in [domain.name for domain in DOMAINS]


@each_domain
def test_a_domain_is_the_file_of_its_name_and_its_topics_are_its_own(domain: Domain) -> None:
    assert module_of(domain).DOMAIN is domain
    assert module_of(domain).__name__.rsplit(".", 1)[-1] == domain.name
    assert STABLE_WORD.fullmatch(domain.name)
    assert domain.topics
    assert len(set(domain.topics)) == len(domain.topics)
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic) for topic in domain.topics), "as Kafka allows"


@each_domain
def test_a_domain_may_be_enabled_alone(domain: Domain) -> None:
    chosen = registry_for(load_settings(_env_file=None, domains_enabled=[domain.name]))
    assert [one.name for one in chosen] == [domain.name]
    assert chosen.topics == domain.topics
    assert all(chosen.by_topic[topic].name == domain.name for topic in domain.topics)


def test_a_domain_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(SettingsError, match=r"DOMAINS_ENABLED: got nonsense, takes any of .*sensor"):
        registry_for(load_settings(_env_file=None, domains_enabled=["nonsense"]))


@each_domain
def test_two_domains_that_claim_one_topic_are_both_named(domain: Domain, plain: Settings) -> None:
    twin = Domain("twin", domain.topics, domain.envelope, domain.event_time, domain.payload, domain.samples)
    with pytest.raises(DomainCollisionError, match=rf"'{domain.name}'.*'twin'.*{re.escape(domain.topics[0])}"):
        registry_for(plain, [domain, twin])


# ---------------------------------------------------------------------- decoding


@each_domain
def test_the_documented_payload_is_read_and_passes_its_gates(domain: Domain, plain: Settings) -> None:
    payload = json.dumps(example(domain)).encode()
    assert times_of(domain, payload)
    samples = decode_samples([payload], domain)
    assert samples.rejections == {}
    assert len(samples.row) >= 1
    assert run_gate(suite_for("normalized_measurements", domain, plain), samples.gate_frame()).passed


@each_domain
def test_samples_are_the_same_each_time_and_differ_in_their_identity(domain: Domain) -> None:
    decode = msgspec.json.Decoder(domain.payload).decode
    payload = json.dumps(example(domain)).encode()
    once, again = list(domain.samples(decode(payload))), list(domain.samples(decode(payload)))
    assert once == again
    identities = [(tuple(sample[0]), sample[2]) for sample in map(tuple, once)]
    assert len(set(identities)) == len(identities), "one statement must never see a key twice"
    for sample in once:
        key, value, sample_key, quality = RatedSample(*sample) if domain.rated else (*Sample(*sample), GOOD)
        assert SeriesKey(*key).metric
        assert quality in range(len(QUALITIES))
        assert np.isfinite(value) or (quality == BAD and np.isnan(value))
        assert isinstance(sample_key, int)


@each_domain
def test_further_fields_change_nothing(domain: Domain) -> None:
    payload = example(domain)
    more = payload | {"zz_unknown": {"deep": [1, {"er": None}]}, "zz_text": "\u0000 \U0001f3ed"}
    bare, rich = (json.dumps(one).encode() for one in (payload, more))
    assert times_of(domain, bare) == times_of(domain, rich)
    one, other = decode_samples([bare], domain), decode_samples([rich], domain)
    assert (one.keys, one.value.tolist(), one.rejections) == (other.keys, other.value.tolist(), other.rejections)


@each_domain
@pytest.mark.parametrize("zone", ["UTC", "Asia/Bangkok", "America/New_York"])
def test_a_time_without_a_zone_is_in_the_domains_zone_and_one_with_a_zone_stays(domain: Domain, zone: str) -> None:
    moved = in_zone(domain, zone)
    aware = datetime(2026, 1, 15, 12, tzinfo=ZoneInfo("Asia/Tokyo"))
    naive = aware.replace(tzinfo=None)
    payloads = [with_time(domain, moment.isoformat()) for moment in (naive, aware)]
    if None in payloads:
        pytest.skip("its time is no text")
    got = times_of(moved, *cast(list[bytes], payloads))
    assert got == [int(naive.replace(tzinfo=ZoneInfo(zone)).timestamp() * 1e6), int(aware.timestamp() * 1e6)]


def in_zone(domain: Domain, zone: str) -> Domain:
    chosen = registry_for(load_settings(_env_file=None, domain_time_zones={domain.name: zone}))
    return chosen.by_name[domain.name]


def with_time(domain: Domain, text: str) -> bytes | None:
    """The documented payload at another time: its first field, of those the envelope reads, that is a time."""
    payload = example(domain)
    for name in [one.encode_name for one in msgspec.structs.fields(domain.envelope)]:
        try:
            datetime.fromisoformat(payload.get(name))
        except (TypeError, ValueError):
            continue
        return json.dumps(payload | {name: text}).encode()
    return None


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
    decoded = decode_slice(slice_of(domain, good, text, good), domain, 2**20)
    samples = decode_samples([good, text, good], domain)
    for rejections in (decoded.rejections, samples.rejections):
        assert set(rejections) <= {1}
        for rejection in rejections.values():
            assert STABLE_WORD.fullmatch(rejection.reason), "people count by it"
            assert rejection.reason != "domain_error", f"event_time raised: {rejection.error}"
            assert rejection.error
    assert set(samples.row.tolist()) >= {0, 2}


@each_domain
@pytest.mark.parametrize("name", ["envelope", "payload"])
def test_every_required_field_that_is_missing_is_named(domain: Domain, name: str) -> None:
    struct = getattr(domain, name)
    for one in msgspec.structs.fields(struct):
        if not one.required:
            continue
        payload = example(domain)
        del payload[one.encode_name]
        text = json.dumps(payload).encode()
        rejections = (
            decode_slice(slice_of(domain, text), domain, 2**20).rejections
            if name == "envelope"
            else decode_samples([text], domain).rejections
        )
        assert rejections[0].reason == "field_missing"
        assert one.encode_name in rejections[0].error


@each_domain
def test_a_key_that_is_read_may_not_stand_twice(domain: Domain) -> None:
    text = json.dumps(example(domain))
    for name, value in example(domain).items():
        twice = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}".encode()
        rejected = decode_samples([text.encode(), twice], domain).rejections
        read = {
            one.encode_name
            for struct in (domain.envelope, domain.payload)
            for one in msgspec.structs.fields(struct)
        }
        assert set(rejected) == ({1} if name in read else set()), name
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
