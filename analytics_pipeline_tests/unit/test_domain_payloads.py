"""What the payloads of each domain become: rows by kind, and the reasons of those that are rejected."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from analytics_pipeline.assets.measurements.transform import decode
from analytics_pipeline.assets.raw_events.transform import decode_slice
from analytics_pipeline.domains import discover, registry_for
from analytics_pipeline.domains.base import Domain, Event, PayloadError, sample_key_of
from analytics_pipeline.domains.brick import Production, counters
from analytics_pipeline.domains.event_domains import event_domain
from analytics_pipeline.domains.iot import Envelope, event_time
from analytics_pipeline.domains.lab import qualified
from analytics_pipeline.settings import load_settings
from analytics_pipeline_tests.decoded_rows import assert_passes_gates, rows_of, shown, slice_of
from analytics_pipeline_tests.domains.payloads import UNREADABLE, factory_of

DOMAINS = {domain.name: domain for domain in discover()}
TIME = "2025-08-20T03:12:00+00:00"
NOON = datetime(2025, 8, 20, 12, tzinfo=UTC)

each_domain = pytest.mark.parametrize("domain", DOMAINS.values(), ids=lambda domain: domain.name)


def rows(name: str, **fields: Any) -> dict[str, list[Any]]:
    """What one payload becomes: rows by kind, without the number of the payload."""
    decoded = decode([json.dumps({"time": TIME} | fields).encode()], DOMAINS[name])
    assert decoded.rejections == {}
    return {kind: [row[1:] for row in its] for kind, its in rows_of(decoded).items() if its}


def reason(name: str, **fields: Any) -> str:
    """Why one payload is rejected."""
    return decode([json.dumps({"time": TIME} | fields).encode()], DOMAINS[name]).rejections[0].reason


def samples(found: Mapping[str, list[Any]]) -> list[tuple[str, Any, float]]:
    return [(series.metric, series.unit, value) for series, value, _ in found["samples"]]


def elements(name: str, payload: Mapping[str, Any]) -> list[bytes]:
    """The raw events that one message is split into."""
    decoded = decode_slice(slice_of(DOMAINS[name], json.dumps(payload).encode()), DOMAINS[name], 2**20)
    assert decoded.rejections == {}
    return [value for value in decoded.rows.values if value is not None]


# ---------------------------------------------------------------------- every domain


@each_domain
def test_payloads_of_a_factory_are_read_at_their_time(domain: Domain) -> None:
    rng = random.Random(7)
    for step in range(40):
        moment = NOON + timedelta(seconds=step)
        payload = factory_of(domain.name).good(rng, moment)
        decoded = decode_slice(slice_of(domain, payload), domain, 2**20)
        assert decoded.rejections == {}
        assert abs(decoded.event_time_us[0] / 1e6 - moment.timestamp()) < 1e-6
        assert decode([value for value in decoded.rows.values if value], domain).rejections == {}


@each_domain
def test_bad_payloads_of_a_factory_are_dead_letters_of_the_reason_that_it_names(domain: Domain) -> None:
    for expected, payload in factory_of(domain.name).broken(random.Random(7), NOON).items():
        drained = decode_slice(slice_of(domain, payload), domain, 2**20).rejections
        rejected = drained or decode([payload], domain).rejections
        assert rejected[0].reason == expected
    for payload in UNREADABLE:
        assert decode_slice(slice_of(domain, payload), domain, 2**20).rejections.keys() == {0}


@each_domain
def test_every_row_of_the_documented_payload_has_a_tenant_also_where_none_is_named(domain: Domain) -> None:
    payload = {name: it for name, it in shown(domain).items() if name not in ("tenant_id", "factory_id", "tenantId")}
    text = json.dumps(payload).encode()
    chosen = registry_for(
        load_settings(_env_file=None, domain_defaults={domain.name: {"tenant_id": "t9", "factory_id": "f9"}})
    ).by_name[domain.name]
    for of, tenant, factory in ((domain, "default", None), (chosen, "t9", "f9")):
        if any(one.required and one.encode_name == "tenant_id" for one in msgspec.structs.fields(domain.payload)):
            assert decode([text], of).rejections[0].reason == "field_missing"
            continue
        rows = rows_of(decode([text], of))
        owners = {(row[1].tenant_id, row[1].factory_id) for kind in ("samples", "states") for row in rows.get(kind, [])}
        owners |= {(row[2], row[3]) for row in rows.get("events", [])}
        assert owners == {(tenant, factory)}


@each_domain
def test_every_table_takes_what_the_documented_payload_becomes(domain: Domain) -> None:
    assert_passes_gates(domain, json.dumps(shown(domain)).encode(), load_settings(_env_file=None))


def test_a_domains_own_reason_is_a_stable_word() -> None:
    with pytest.raises(ValueError, match="no_health"):
        PayloadError("No health!", "x")


# ---------------------------------------------------------------------- device


def test_health_is_an_event_and_a_state_or_a_measurement_or_all_three() -> None:
    status = rows("device", machine_id="m", status="online", level="ok")
    assert status.keys() == {"events", "states"}
    assert [(series.metric, state) for series, state in status["states"]] == [("connection", "online")]
    [event] = map(Event._make, status["events"])
    assert (event.entity_type, event.entity_id, event.event_type) == ("machine", "m", "health.online")
    assert event.properties == '{"level":"ok","status":"online"}'
    level = rows("device", machine_id="m", level="warning")
    assert level["states"][0][1] == "warning"
    assert Event._make(level["events"][0]).event_type == "health.warning"
    assert samples(rows("device", machine_id="m", health_score=0.96)) == [("health_score", None, 0.96)]
    assert rows("device", machine_id="m", health_score=0.96, status="offline").keys() == {
        "samples", "events", "states"
    }  # fmt: skip
    assert reason("device", machine_id="m") == "no_health"


# ---------------------------------------------------------------------- sweep


def sweep(*readings: Any, **more: Any) -> dict[str, Any]:
    return {"time": TIME, "machine_id": "m", "metric": "temp", "readings": list(readings)} | more


def test_a_sweep_is_its_readings_and_one_event_with_their_summary() -> None:
    found = rows("sweep", **sweep({"value": 1}, {"value": 2.5}, {"value": 1}))
    assert [(value, key) for _, value, key in found["samples"]] == [(1.0, 0), (2.5, 1), (1.0, 2)]
    [event] = map(Event._make, found["events"])
    assert (event.event_type, event.value) == ("sweep.temp", 1.5)
    assert json.loads(event.properties) == {"count": 3, "max": 2.5, "mean": 1.5, "min": 1.0}
    assert elements("sweep", sweep({"value": 1})) == [json.dumps(sweep({"value": 1})).encode()]


@pytest.mark.parametrize("bad", [{"value": None}, {"value": "hot"}, {}, 3, None, {"value": 1e200}, {"value": True}])
def test_a_bad_reading_counts_for_nothing_and_the_others_stand(bad: Any) -> None:
    found = rows("sweep", **sweep({"value": 1}, bad, {"value": 2}))
    values = [value for _, value, _ in found["samples"]]
    assert (values[0], values[2]) == (1.0, 2.0)
    assert not math.isfinite(values[1]) or abs(values[1]) > 1e150, "the gate refuses it, with its place"
    assert json.loads(Event._make(found["events"][0]).properties)["count"] == 2


def test_of_a_sweep_without_a_good_reading_the_summary_says_so() -> None:
    [event] = map(Event._make, rows("sweep", **sweep({"value": None}))["events"])
    assert event.value is None
    assert json.loads(event.properties) == {"count": 0, "max": None, "mean": None, "min": None}


def test_readings_with_times_of_their_own_are_elements_behind_the_summary() -> None:
    times = ["2025-08-20T03:11:58+00:00", "2025-08-20T02:59:59+00:00"]
    message = sweep(*({"value": place, "time": time} for place, time in enumerate(times)), {"value": 9}, unit="K")
    domain, texts = DOMAINS["sweep"], elements("sweep", message)
    assert texts[0] == json.dumps(message).encode()
    assert [msgspec.json.decode(text)["time"] for text in texts] == [TIME, *times, TIME]
    found = rows_of(decode(texts, domain))
    assert [(row, value, key) for row, _, value, key in found["samples"]] == [(1, 0.0, 0), (2, 1.0, 1), (3, 9.0, 2)]
    assert {series.unit for _, series, _, _ in found["samples"]} == {"K"}
    assert [row[0] for row in found["events"]] == [0], "the summary is element 0"
    assert json.loads(Event._make(found["events"][0][1:]).properties)["count"] == 3


def test_a_reading_whose_time_cannot_be_read_is_refused_at_the_time_of_the_message() -> None:
    message = sweep({"value": 1, "time": "2025-08-20T03:11:58Z"}, {"value": 5, "time": "noon"})
    texts = elements("sweep", message)
    assert msgspec.json.decode(texts[2])["time"] == TIME
    found = rows_of(decode(texts, DOMAINS["sweep"]))
    assert math.isnan(found["samples"][1][2])
    assert json.loads(Event._make(found["events"][0][1:]).properties)["max"] == 1.0


# ---------------------------------------------------------------------- lab


LAB = {"station_id": "l", "sample_id": "S-1", "analyte": "Moisture", "value": 1}


def test_a_sample_and_its_replicate_are_a_key_and_no_part_of_the_series() -> None:
    one, other, third = (rows("lab", **LAB | more)["samples"][0] for more in ({}, {"replicate": 1}, {"sample_id": 2}))
    assert one[0] == other[0] == third[0]
    assert (one[0].station_id, one[0].metric) == ("l", "Moisture")
    assert len({one[2], other[2], third[2]}) == 3
    decoded = decode([json.dumps(LAB | {"replicate": 1}).encode()], DOMAINS["lab"])
    assert [tuple(name) for name in decoded.names] == [(0, other[2], "S-1", "1")]


def test_the_key_of_a_sample_is_the_same_everywhere_and_never_that_of_none() -> None:
    assert sample_key_of("S-8892") == 4702121153610951491
    assert sample_key_of("S-8892", "1") == 4454789481922316104
    keys = {sample_key_of(str(number)) for number in range(2000)}
    assert len(keys) == 2000
    assert all(1 <= key < 2**63 for key in keys)
    assert sample_key_of("a", "b") != sample_key_of("a,b")


@pytest.mark.parametrize(
    ("text", "number", "side"),
    [("<0.05", 0.05, "<"), (" < 0.05 ", 0.05, "<"), ("<=.5", 0.5, "<"), (">100", 100.0, ">"), (">= 1e2", 100.0, ">"),
     ("12.4", 12.4, ""), ("-3.", -3.0, ""), (12, 12.0, ""), (12.4, 12.4, "")],
)  # fmt: skip
def test_a_qualified_result_keeps_its_number_and_its_side(text: Any, number: float, side: str) -> None:
    assert qualified(text) == (number, side)


@pytest.mark.parametrize("text", ["", "<", "traces", "0,05", "1_000", "nan", "inf", "<>1", "1 2", "٣"])
def test_text_that_is_no_number_is_a_dead_letter_of_its_own_reason(text: str) -> None:
    assert reason("lab", **LAB | {"value": text}) == "value_not_a_number"


@pytest.mark.parametrize(
    ("sample_id", "why"), [("", "name_empty"), ("S\0", "nul_character"), ("ü" * 129, "name_too_long")]
)
def test_a_sample_id_is_held_to_what_every_name_is_held_to(sample_id: str, why: str) -> None:
    assert reason("lab", **LAB | {"sample_id": sample_id}) == why


# ---------------------------------------------------------------------- brick, moisture, machine


def test_counters_of_bricks_are_whole_numbers_with_rejects_included() -> None:
    both = counters(Production(device_id="SAU-ME-01", count=2**63 - 1, errors=0))
    assert [(series[2], series[5], series[6], value) for series, value in both] == [
        ("SAU-ME-01", "count", "bricks", 2**63 - 1),
        ("SAU-ME-01", "errors", "bricks", 0),
    ]
    assert [series[5] for series, _ in counters(Production(device_id="x", count=1))] == ["count"]
    assert reason("brick", device_id="x", count=2**63) == "field_invalid"
    assert reason("brick", device_id="x", count=1.5) == "field_invalid"


def test_a_brick_message_is_a_speed_and_states_of_what_runs() -> None:
    found = rows("brick", device_id="x", count=1, speed=1250, status="running", product_id="p", order_id="o")
    assert samples(found) == [("speed", "bricks/h", 1250.0)]
    assert [(series.metric, state) for series, state in found["states"]] == [
        ("status", "running"), ("product", "p"), ("order", "o")
    ]  # fmt: skip
    assert rows("brick", device_id="x", count=1) == {}


def test_moisture_is_a_measurement_and_its_batch_a_state() -> None:
    found = rows("moisture", device_id="x", moisture=12.4, temperature=61, batch_id="B-3")
    assert samples(found) == [("moisture", "%", 12.4), ("temperature", "degC", 61.0)]
    assert [(series.metric, state) for series, state in found["states"]] == [("batch", "B-3")]


def test_a_machine_tells_its_state_or_how_it_feels_or_is_rejected() -> None:
    assert rows("machine", machine_id="x", state="stop").keys() == {"states"}
    felt = rows("machine", machine_id="x", vibration=2.8, temperature=54, current=18.6)
    assert samples(felt) == [("vibration", "mm/s", 2.8), ("temperature", "degC", 54.0), ("current", "A", 18.6)]
    assert reason("machine", machine_id="x") == "nothing_measured"


# ---------------------------------------------------------------------- iot


def iot_series(**fields: Any) -> tuple[Any, ...]:
    [(series, _, _)] = rows("iot", value=1, **fields)["samples"]
    return series.machine_id, series.station_id, series.sensor_id, series.metric


def test_both_spellings_of_a_field_are_read_and_the_alias_wins() -> None:
    plain = {"device_id": "d", "connector_mode": "c", "component_type": "t", "pin_position": 3}
    alias = {"mac_address": "m", "mode": "o", "data_point_label": "l", "pin": "7"}
    assert iot_series(**plain) == ("d", "c", "3", "t")
    assert iot_series(**alias) == iot_series(**plain, **alias) == ("m", "o", "7", "l")
    assert iot_series(**plain, **dict.fromkeys(alias)) == ("d", "c", "3", "t")
    assert iot_series(mac_address=17) == ("17", "unknown", "-1", "unknown")
    assert reason("iot", value=1) == "field_missing"


@pytest.mark.parametrize(
    "timestamp",
    ["2025-08-20T12:00:00Z", "2025-08-20T14:00:00+02:00", 1755691200, 1755691200.0, 1755691200000, 1755691200000000,
     "1755691200", "1755691200.000", "1755691200000", " 1755691200000000 "],
)  # fmt: skip
def test_a_timestamp_is_iso_or_an_epoch_told_by_its_size(timestamp: Any) -> None:
    assert event_time(Envelope(timestamp)) == NOON


@pytest.mark.parametrize("timestamp", ["noon", "", 1e300, 10**18, "1e999", "nan", "99999-01-01"])
def test_a_timestamp_that_is_neither_is_rejected(timestamp: Any) -> None:
    with pytest.raises(PayloadError) as error:
        event_time(Envelope(timestamp))
    assert error.value.reason == "field_invalid"


@pytest.mark.parametrize(
    ("value", "number"), [(23, 23.0), ("23.7", 23.7), (" 1e3 ", 1000.0), (True, 1.0), (False, 0.0), (-0.5, -0.5)]
)
def test_values_are_numbers_also_where_they_are_text(value: Any, number: float) -> None:
    assert rows("iot", mac_address="m", value=value)["samples"][0][1] == number


@pytest.mark.parametrize("value", [None, "n/a", "", "nan", "inf", "1_0", [1], {"v": 1}, 10**400])
def test_what_is_no_number_is_a_sample_without_a_value(value: Any) -> None:
    assert math.isnan(rows("iot", mac_address="m", value=value)["samples"][0][1])
    assert math.isnan(rows("iot", mac_address="m")["samples"][0][1])


def test_topic_and_unit_are_attributes_of_the_series_and_not_its_identity() -> None:
    texts = [{"unit": "C", "topic": "a"}, {"unit": "K", "topic": "a", "original_topic": "b"}, {}]
    payloads = [json.dumps({"mac_address": "m", "value": 1} | text).encode() for text in texts]
    decoded = decode(payloads, DOMAINS["iot"])
    assert decoded.samples is not None
    assert len(decoded.samples.keys) == 1
    said = [json.loads(one.text) for one in decoded.attributes]
    assert said == [{"topic": "a", "unit": "C"}, {"topic": "b", "unit": "K"}, {"topic": "", "unit": ""}]
    assert {one.series for one in decoded.attributes} == set(decoded.samples.keys)


# ---------------------------------------------------------------------- product, app, plain events


def product(**fields: Any) -> Event:
    given = {"eventId": "e-1", "eventType": "ProductUpdated", "timestamp": TIME} | fields
    [event] = map(Event._make, rows("product", **given)["events"])
    return event


def test_a_product_event_is_its_id_and_an_unknown_type_is_an_event() -> None:
    event = product(eventType="ProductPainted", data={"productId": "p-1", "stock": 4, "b": 1, "a": 2})
    assert (event.event_id, event.event_type, event.entity_type, event.entity_id, event.value) == (
        "e-1", "ProductPainted", "product", "p-1", 4.0
    )  # fmt: skip
    assert event.properties == '{"a":2,"b":1,"productId":"p-1","stock":4}'
    assert product(eventId=17, data={"id": 5}).event_id == "17"
    assert product(eventId=17, data={"id": 5}).entity_id == "5"


@pytest.mark.parametrize("stock", [None, "4", True, [4], 10**400])
def test_a_stock_that_is_no_number_and_a_product_without_a_name_are_unknown(stock: Any) -> None:
    event = product(data={"stock": stock, "productId": ""})
    assert (event.entity_id, event.value) == ("unknown", None)


def test_an_app_event_is_its_content_in_any_order_of_its_properties() -> None:
    named = {"app_id": "a", "event_name": "search", "user_id": 7, "timestamp": TIME}
    one, other = (rows("app", **named, properties=dict(its)) for its in ([("b", 1), ("a", 2)], [("a", 2), ("b", 1)]))
    assert one == other
    [event] = map(Event._make, one["events"])
    assert (event.event_id, event.entity_id, event.event_type, event.user_id) == (None, "a", "search", "7")


def test_free_fields_that_are_null_are_as_good_as_absent() -> None:
    assert product(data=None) == product()
    app = {"app_id": "a", "event_name": "search", "user_id": "u", "timestamp": TIME}
    assert rows("app", **app, properties=None) == rows("app", **app)
    plain = {"entity_id": "x", "event_type": "began"}
    assert rows("ops", **plain, properties=None) == rows("ops", **plain)


def test_a_plain_event_names_its_entity_and_refuses_to_be_another_domains() -> None:
    [event] = map(Event._make, rows("vet", domain="vet", entity_id="cow-1", event_type="treated", value=2)["events"])
    assert (event.entity_type, event.entity_id, event.event_type, event.value) == ("animal", "cow-1", "treated", 2.0)
    assert reason("vet", domain="ops", entity_id="cow-1", event_type="treated") == "other_domain"
    own = event_domain("safety", ["safety.events"])
    assert own.topics == ("safety.events",)
    assert own.name == "safety"
