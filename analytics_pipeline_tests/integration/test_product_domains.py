"""Every domain of the product on real servers: good, bad, late, doubled and shuffled messages, twice, and rebuilt.

Payloads are those of `payloads`; a new domain is held to this without a change here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.domains import discover
from analytics_pipeline.domains.base import Domain
from analytics_pipeline.records import HourOutcome, hour_of
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, open_domains, topic_of
from analytics_pipeline_tests.domains.payloads import UNREADABLE, factory_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_settled
from analytics_pipeline_tests.pipeline import DERIVED_TABLES

HOUR = timedelta(hours=1)
START = hour_of(datetime.now(UTC)) - 5 * HOUR
SPAN = 3 * HOUR
DOMAINS = discover()
MESSAGES = 60
#: What is the same when everything is sent once more: positions are those of the later messages.
POSITIONS = ("kafka_time", "log_id", '"offset"', "ordinal", "anomaly_id")

#: Kept without hours, beside the tables of the assets.
NAMES = {
    "sample_names": "domain_id, sample_key, sample_id, replicate",
    "series_attributes": "domain_id, series_id, attributes",
}


@pytest.fixture(scope="module")
def opened_domains(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, DOMAINS, partitions=2) as it:
        yield it


@pytest.fixture
def env(opened_domains: Environment) -> Environment:
    begin_anew(opened_domains, DOMAINS, partitions=2)
    return opened_domains


def some_messages(domain: Domain, rng: random.Random) -> list[tuple[bytes, bool]]:
    """Payloads out of order, some twice, some bad; and whether each is to be rejected."""
    factory = factory_of(domain.name)
    moments = [START + SPAN * rng.random() for _ in range(MESSAGES)]
    good = [factory.good(rng, moment.replace(microsecond=0)) for moment in moments]
    bad = [*UNREADABLE, *factory.broken(rng, START + SPAN / 2).values()]
    found = [(value, False) for value in [*good, *rng.sample(good, MESSAGES // 10)]] + [(value, True) for value in bad]
    rng.shuffle(found)
    return found


def send(env: Environment, domain: str, messages: Sequence[tuple[bytes, bool]], partition: int = 0) -> None:
    """In their order, each with its expected end."""
    for value, rejected in messages:
        env.send([value], partition, topic=topic_of(env, domain), rejected=rejected)


def work(env: Environment) -> None:
    """Drain, compute, and let states last up to the watermarks."""
    env.drain()
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        with_states = [domain.name for domain in env.pipeline.registry if domain.states]
        state_clock.advance(conn, DomainNumbers(env.pipeline.engine).numbers(with_states))
    env.pipeline.settle()


def stored(env: Environment) -> dict[str, list[str]]:
    names = {table: sorted(map(str, env.pipeline.query(f"SELECT {its} FROM {table}"))) for table, its in NAMES.items()}
    return env.pipeline.snapshot() | names


def content(env: Environment) -> dict[str, list[str]]:
    """What is stored but for where it came from."""
    found = {}
    for table, its in (DERIVED_TABLES | NAMES).items():
        if table not in ("raw_events", "dead_letters"):
            columns = ", ".join(name for name in its.split(", ") if name not in POSITIONS)
            found[table] = sorted(map(str, env.pipeline.query(f"SELECT {columns} FROM {table}")))
    return found


def assert_accounted_for(env: Environment) -> None:
    """Every message is raw events or dead letters; what is expected to be rejected has one, and nothing else has."""
    found = env.pipeline.query(
        'SELECT topic, partition, "offset" FROM raw_events UNION SELECT topic, partition, "offset" FROM dead_letters'
    )
    assert sorted(found) == sorted((one.topic, one.partition, one.offset) for one in env.sent)
    rejected = env.pipeline.query('SELECT DISTINCT topic, partition, "offset", payload FROM dead_letters')
    expected = {(one.topic, one.partition, one.offset): one.value for one in env.sent if one.rejected}
    assert {tuple(row[:3]): bytes(row[3]) for row in rejected} == expected


def test_every_domain_keeps_its_invariants_live_rebuilt_and_sent_twice(env: Environment, quick_gates: None) -> None:
    rng = random.Random(20_261_122)
    messages = {domain.name: some_messages(domain, rng) for domain in DOMAINS}
    for half in (0, 1):  # what is sent second is late: it lies in the same hours
        for name, its in messages.items():
            middle = len(its) // 2
            send(env, name, its[middle:] if half else its[:middle])
        work(env)
    assert_settled(env.pipeline)
    assert_accounted_for(env)
    assert_content_is_counted(env.pipeline)
    assert_every_kind_is_there(env)
    live = stored(env)
    env.pipeline.rebuild([START + HOUR * number for number in range(-2, 8)])
    env.pipeline.settle()
    assert stored(env) == live, "live equals rebuild, to the bit"
    once = content(env)
    for name, its in messages.items():
        send(env, name, its)
    work(env)
    assert_accounted_for(env)
    assert content(env) == once, "twice equals once"


def assert_every_kind_is_there(env: Environment) -> None:
    kinds = {"samples": "normalized_measurements", "events": "normalized_events", "states": "state_changes"}
    for kind, table in (kinds | {name: name for name in NAMES}).items():
        rows = env.pipeline.query(f"SELECT DISTINCT domain FROM {table} JOIN domain_number USING (domain_id)")
        assert {row[0] for row in rows} == {domain.name for domain in DOMAINS if getattr(domain, kind)}, table
    for table in ("measurement_series", "normalized_events"):
        assert env.pipeline.query(f"SELECT count(*) FROM {table} WHERE tenant_id IS NULL") == [(0,)]


# ---------------------------------------------------------------------- single domains


def put(env: Environment, domain: str, *payloads: Any) -> None:
    """Send payloads one by one, so that their order is that of Kafka; and compute."""
    send(env, domain, [(json.dumps(payload).encode(), False) for payload in payloads])
    work(env)


def at(minutes: float) -> str:
    return (START + timedelta(minutes=minutes)).isoformat()


def sweep(minutes: float, *readings: Any) -> dict[str, Any]:
    return {"time": at(minutes), "machine_id": "m", "metric": "temp", "readings": list(readings)}


def dead_letters(env: Environment) -> list[tuple[Any, ...]]:
    return env.pipeline.query("SELECT ordinal, stage, reason FROM dead_letters ORDER BY 1, 2")


def test_a_bad_reading_of_a_sweep_is_a_dead_letter_of_its_place_and_the_rest_counts(env: Environment) -> None:
    put(env, "sweep", sweep(1, {"value": 1}, {"value": "hot"}, {"value": 3}))
    rows = env.pipeline.query("SELECT sample_key, value FROM normalized_measurements ORDER BY 1")
    assert rows == [(0, 1.0), (2, 3.0)]
    [(value, properties)] = env.pipeline.query("SELECT value, properties FROM normalized_events")
    assert (value, json.loads(properties)["count"]) == (2.0, 2)
    assert dead_letters(env) == [(1, "normalized_measurements", "not_finite")]


def test_a_reading_with_a_bad_value_or_time_of_its_own_is_an_element_that_is_refused(env: Environment) -> None:
    edge = 59.99
    readings = [{"value": place, "time": at(edge + place)} for place in range(3)]
    put(env, "sweep", sweep(edge, *readings, {"value": None, "time": at(62)}, {"value": 7, "time": "noon"}))
    hours = env.pipeline.query("SELECT count(*) FROM normalized_measurements GROUP BY date_trunc('hour', event_time)")
    assert sorted(hours) == [(1,), (2,)]
    assert env.pipeline.query("SELECT properties::json ->> 'count' FROM normalized_events") == [("3",)]
    # An element's ordinal, and the sample's place in it.
    assert dead_letters(env) == [
        (4 * 1024, "normalized_measurements", "not_finite"), (5 * 1024, "normalized_measurements", "not_finite")
    ]  # fmt: skip


def test_a_sweep_in_which_a_key_stands_twice_is_rejected_as_a_whole(env: Environment) -> None:
    whole = json.dumps(sweep(1, {"value": 1, "time": at(2)}, {"value": 2, "time": at(3)}))
    send(env, "sweep", [(f'{whole[:-1]}, "metric": "speed"}}'.encode(), True)])
    work(env)
    assert dead_letters(env) == [(0, "raw_events", "duplicate_key")]
    assert env.pipeline.count("raw_events") == 0


def test_the_same_determination_replaces_and_another_time_or_replicate_is_another(env: Environment) -> None:
    result = {"time": at(1), "station_id": "l", "sample_id": "S-1", "analyte": "Moisture", "value": 1}
    put(env, "lab", result, result | {"value": "<2"}, result | {"replicate": 1}, result | {"time": at(2)})
    rows = env.pipeline.query("SELECT \"time\", sample_id, replicate, value, tenant_id FROM lab_results ORDER BY 1, 4")
    assert [(row[0].isoformat(), *row[1:]) for row in rows] == [
        (at(1), "S-1", "1", 1.0, "default"), (at(1), "S-1", None, 2.0, "default"), (at(2), "S-1", None, 1.0, "default")
    ]  # fmt: skip
    assert env.pipeline.query("SELECT count(*) FROM measurement_series") == [(1,)], "samples are not part of the series"
    assert env.pipeline.count("sample_names") == 2


def test_iot_measurements_show_what_was_said_last_of_a_series_in_any_order(env: Environment) -> None:
    message = {"mac_address": "gw", "mode": "gpio", "data_point_label": "temp", "pin": 4, "value": "1.5"}
    put(env, "iot", message | {"timestamp": at(61), "unit": "C", "original_topic": "a"})
    put(env, "iot", message | {"timestamp": at(1), "unit": "K", "original_topic": "b"})
    columns = '"timestamp", device_id, connector_mode, component_type, pin_position, value, unit, topic'
    rows = env.pipeline.query(f"SELECT {columns} FROM iot_measurements ORDER BY 1")
    assert [(row[0].isoformat(), *row[1:]) for row in rows] == [
        (at(minutes), "gw", "gpio", "temp", "4", 1.5, "K", "b") for minutes in (1, 61)
    ]
    [row] = env.pipeline.query("SELECT xmin::text, xmax::text FROM series_attributes")
    env.pipeline.rebuild([START, START + HOUR])
    assert env.pipeline.query("SELECT DISTINCT unit, topic FROM iot_measurements") == [("K", "b")]
    assert env.pipeline.query("SELECT xmin::text, xmax::text FROM series_attributes") == [row], "nobody waits for it"
    assert columns_of(env, "iot_measurements") == columns.replace('"', "").split(", ")
    assert [len(env.pipeline.query(query)) for query in SINK_QUERIES] == [2, 1], "as the sink's document writes them"


def test_two_hours_that_meet_one_new_sample_and_series_at_once_are_both_computed(env: Environment) -> None:
    result = {"station_id": "l", "analyte": "Moisture", "value": 1}
    said = {"mac_address": "gw", "value": 1}
    for number in range(6):
        hours = [START + HOUR * place for place in (0, 1)]
        for hour in hours:
            moment = (hour + timedelta(seconds=number)).isoformat()
            send(env, "lab", [(json.dumps(result | {"time": moment, "sample_id": f"S-{number}"}).encode(), False)])
            send(env, "iot", [(json.dumps(said | {"timestamp": moment, "pin": number}).encode(), False)])
        env.drain()
        derivers = [Deriver(env.settings, env.pipeline.engine, env.pipeline.registry) for _ in hours]
        with ThreadPoolExecutor(2) as both:
            done = both.map(_normalized, derivers, hours)
        assert [{one.domain for one in hour.domains} for hour in done] == [{"lab", "iot"}] * 2
    assert env.pipeline.count("normalized_measurements") == 24
    assert (env.pipeline.count("sample_names"), env.pipeline.count("series_attributes")) == (6, 6)


def _normalized(deriver: Deriver, hour: datetime) -> HourOutcome:
    return deriver.derive("normalized_measurements", hour, "incremental", "test")


SINK_QUERIES = (
    "SELECT * FROM iot_measurements WHERE timestamp > NOW() - INTERVAL '7 hours' ORDER BY timestamp DESC LIMIT 100",
    "SELECT device_id, component_type, COUNT(*) as measurement_count, AVG(value) as avg_value, "
    "MIN(timestamp) as first_measurement, MAX(timestamp) as last_measurement FROM iot_measurements "
    "GROUP BY device_id, component_type ORDER BY measurement_count DESC",
)


def columns_of(env: Environment, view: str) -> list[str]:
    return [
        row[0]
        for row in env.pipeline.query(
            "SELECT column_name::text FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = %s ORDER BY ordinal_position",
            view,
        )
    ]


def test_recent_events_are_those_of_thirty_days_before_the_watermark(env: Environment) -> None:
    old = START - timedelta(days=31)
    event = {"eventId": "e-1", "eventType": "ProductCreated", "data": {"productId": "p"}}
    put(env, "product", event | {"timestamp": old.isoformat()})
    assert env.pipeline.query('SELECT "eventId" FROM recent_events') == [("e-1",)]
    put(env, "product", event | {"timestamp": at(1), "eventId": "e-2"}, event | {"timestamp": at(2), "eventId": "e-2"})
    [(identity, kind, moment, data, ttl)] = env.pipeline.query(
        'SELECT id, "eventType", "timestamp", data, ttl FROM recent_events'
    )
    assert (len(identity), kind, moment.isoformat()) == (32, "ProductCreated", at(2))
    assert data["data"] == {"productId": "p"}
    assert data["eventId"] == "e-2"
    assert ttl == (moment + timedelta(days=30)).timestamp()
    assert columns_of(env, "recent_events") == ["id", "eventId", "eventType", "timestamp", "data", "ttl", "createdAt"]


def test_ai_analytics_events_have_their_properties_as_json_text(env: Environment) -> None:
    event = {"app_id": "a", "event_name": "search", "user_id": "u", "timestamp": at(1)}
    put(env, "app", *(event | {"properties": dict(its)} for its in ([("b", 1), ("a", "ü")], [("a", "ü"), ("b", 1)])))
    rows = env.pipeline.query("SELECT app_id, event_name, user_id, properties FROM ai_analytics_events")
    assert rows == [("a", "search", "u", '{"a":"ü","b":1}')]
    assert columns_of(env, "ai_analytics_events") == ["timestamp", "app_id", "event_name", "user_id", "properties"]


def test_health_without_health_is_a_dead_letter_of_that_reason(env: Environment) -> None:
    send(env, "device", [(json.dumps({"time": at(1), "machine_id": "m"}).encode(), True)])
    work(env)
    assert dead_letters(env) == [(0, "normalized_measurements", "no_health")]


def test_defaults_of_the_settings_own_rows_that_name_no_tenant(env: Environment) -> None:
    owned = [
        replace(domain, defaults=domain.defaults._replace(tenant_id="t9", factory_id="f9"))
        for domain in DOMAINS
        if domain.name in ("device", "app")
    ]
    begin_anew(env, owned)
    put(env, "device", {"time": at(1), "machine_id": "m", "status": "online", "health_score": 1})
    put(env, "device", {"time": at(2), "machine_id": "m", "tenant_id": "t9", "factory_id": "f9", "health_score": 0.5})
    put(env, "app", {"app_id": "a", "event_name": "search", "user_id": "u", "timestamp": at(1)})
    owners = "SELECT DISTINCT tenant_id, factory_id FROM"
    for table in ("measurement_series", "normalized_events", "event_rollups"):
        assert env.pipeline.query(f"{owners} {table}") == [("t9", "f9")], table
    series = env.pipeline.query("SELECT count(*) FROM measurement_series WHERE metric = 'health_score'")
    assert series == [(1,)], "named or not, it is the same series"


def test_a_domain_of_which_nothing_ever_came_costs_a_rebuild_nothing(env: Environment) -> None:
    put(env, "device", {"time": at(1), "machine_id": "m", "health_score": 1})
    env.pipeline.rebuild([START, START + HOUR])
    outcomes = "SELECT DISTINCT domain FROM partition_outcome JOIN domain_number USING (domain_id) WHERE mode = 'full'"
    assert env.pipeline.query(outcomes) == [("device",)]
    assert env.pipeline.query("SELECT count(DISTINCT domain_id) FROM partition_state") == [(1,)]


def test_an_hour_before_anything_came_is_still_computed_for_whoever_asks(env: Environment) -> None:
    done = env.pipeline.deriver.derive("normalized_measurements", START, "full", "test")
    assert {one.domain for one in done.domains} == {domain.name for domain in DOMAINS}
