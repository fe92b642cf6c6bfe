"""What every domain keeps to on real servers, whatever kinds of rows it yields. A new file in ``domains/`` is held to
it without a change here: `domain_payloads` makes its messages. Without servers: contract/test_domains.py.

All domains flow at once, because most of the cost is the servers'.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.records import DERIVED, HOUR, hour_of
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domain_payloads import broken, every_domain, payload
from analytics_pipeline_tests.domains import begin_anew, open_domains, topic_of
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_settled
from analytics_pipeline_tests.pipeline import DERIVED_TABLES

DOMAINS = every_domain()
HOURS = 3
START = hour_of(datetime.now(UTC)).replace(hour=0) - 22 * HOUR
#: The tables that each kind of rows ends in.
TABLES = {
    "samples": ("normalized_measurements", "window_aggregates"),
    "events": ("normalized_events", "event_rollups"),
    "states": ("state_changes", "state_durations", "carried_states"),
    "counters": ("counter_readings", "counter_increments"),
}


#: Great Expectations itself evaluates the gates in the first test only: it takes 50 ms a call.
with_quick_gates = pytest.mark.usefixtures("quick_gates")


class Outgoing(NamedTuple):
    """A message: where it is sent, and when Kafka gets it, so that any order of sending lets the same one win."""

    domain: str
    value: bytes
    partition: int
    kafka_s: int
    good: bool


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    sizes = [60, 300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, DOMAINS, partitions=2, windows=sizes) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened, DOMAINS, partitions=2)
    return opened


def messages(seed: int, good: int = 40) -> list[Outgoing]:
    """For every domain: good messages of three hours, in a few places of each, and some that cannot be read."""
    found = []
    for domain in DOMAINS:
        rng = random.Random(f"{seed} {domain.name}")
        values = [(payload(domain, _moment(rng), rng), True) for _ in range(good)]
        values += [(value, False) for value in broken(domain, _moment(rng))]
        for number, (value, is_good) in enumerate(values):
            found.append(Outgoing(domain.name, value, number % 2, number, is_good))
    return found


def _moment(rng: random.Random) -> datetime:
    minute = rng.choice([0, 1, 59, 60, 61, 119, 120, rng.randrange(60 * HOURS)])
    return START + timedelta(minutes=minute, seconds=rng.choice([0, 0, 59.999999]))


def send(env: Environment, its: Sequence[Outgoing]) -> None:
    first_ms = int((START + 10 * HOUR).timestamp() * 1000)
    for one in its:
        stamp = first_ms + one.kafka_s * 1000
        env.send([one.value], one.partition, topic=topic_of(env, one.domain), timestamp=stamp)
    env.drain()


def settle(env: Environment) -> None:
    """All that is pending, and the states up to the watermark."""
    env.pipeline.tick()  # there is no more: the watermark is that of all that was sent
    env.pipeline.settle()
    with connection(env.pipeline.engine) as conn:
        state_clock.advance(conn, DomainNumbers(env.pipeline.engine).numbers(one.name for one in DOMAINS))
    env.pipeline.settle()


#: What depends on the order in which Kafka had the messages, or the database met domains and series …
_OF_THE_ORDER = {"log_id", '"offset"', "ordinal", "series_id", "domain_id", "anomaly_id"}
#: … and what names a series instead.
_NAMES = ("tenant_id", "factory_id", "machine_id", "station_id", "sensor_id", "metric", "unit")


def contents(env: Environment) -> dict[str, Counter[tuple[object, ...]]]:
    """The rows of every derived table, without the numbers that another order gives them."""
    found = {}
    for table, text in DERIVED_TABLES.items():
        if table in ("raw_events", "dead_letters"):
            continue
        names = text.replace("encode(sketch, 'hex')", "sketch").split(", ")
        columns = ["d.domain", *(f"t.{name}" for name in names if name not in _OF_THE_ORDER)]
        joined = "JOIN domain_number d USING (domain_id)"
        if "series_id" in names:
            joined += " JOIN measurement_series s USING (domain_id, series_id)"
            columns += [f"s.{name}" for name in _NAMES]
        rows = env.pipeline.query(f"SELECT ({', '.join(columns)})::text FROM {table} t {joined}")
        found[table] = Counter(rows)
    return found


def assert_same(got: dict[str, Counter[tuple[object, ...]]], want: dict[str, Counter[tuple[object, ...]]]) -> None:
    for table, rows in want.items():
        missing, strange = rows - got[table], got[table] - rows
        assert not missing | strange, f"{table}: missing {list(missing)[:3]}, strange {list(strange)[:3]}"


# ---------------------------------------------------------------------- good and bad


def test_every_good_message_counts_and_every_bad_one_is_a_dead_letter(env: Environment) -> None:
    its = messages(0)
    send(env, its)
    settle(env)
    sent = Counter((one.domain, one.good) for one in its)
    query = "SELECT domain, count(*) FROM {} JOIN domain_number USING (domain_id) GROUP BY 1"
    rejected = dict(env.pipeline.query(query.format("dead_letters")))
    held = {table: dict(env.pipeline.query(query.format(table))) for its in TABLES.values() for table in its}
    identified = dict(env.pipeline.query(query.format("event_identities")))
    own_ids = "SELECT DISTINCT domain FROM normalized_events JOIN domain_number USING (domain_id) WHERE event_id <> ''"
    assert identified.keys() == {row[0] for row in env.pipeline.query(own_ids)}
    for domain in DOMAINS:
        assert rejected[domain.name] == sent[domain.name, False], domain.name
        for kind, tables in TABLES.items():
            for table in tables:
                assert bool(held[table].get(domain.name)) == bool(getattr(domain, kind)), f"{domain.name}: {table}"
    assert_settled(env.pipeline)
    assert_content_is_counted(env.pipeline)


# ---------------------------------------------------------------------- late, doubled, shuffled


@with_quick_gates
@pytest.mark.parametrize("seed", range(2))
def test_any_order_split_and_duplication_gives_the_rows_of_the_sorted_stream(env: Environment, seed: int) -> None:
    its = messages(seed)
    send(env, its)
    settle(env)
    sorted_stream = contents(env)

    rng = random.Random(seed)
    begin_anew(env, DOMAINS, partitions=2)
    shuffled = rng.sample([*its, *rng.sample(its, len(its) // 5)], len(its) + len(its) // 5)
    for part in range(3):
        send(env, shuffled[part::3])
        if rng.random() < 0.7:
            env.pipeline.settle()
    settle(env)
    assert_same(contents(env), sorted_stream)
    assert_settled(env.pipeline)
    assert_content_is_counted(env.pipeline)


# ---------------------------------------------------------------------- twice equals once, live equals rebuild


@with_quick_gates
def test_everything_done_twice_leaves_the_tables_as_they_were(env: Environment) -> None:
    its = messages(1)
    for part in range(2):
        send(env, its[part::2])
        env.pipeline.settle()
    settle(env)
    once = env.pipeline.snapshot()
    env.pipeline.tick()
    hours = sorted(env.pipeline.hours())
    for hour in hours:
        rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, hour, "by hand")
    assert env.pipeline.count("pending_work") == 0, "rebuilding what is right changes nothing"
    for mode in ("incremental", "full", "full"):
        for asset in DERIVED:
            assert not env.pipeline.deriver.derive_hours(asset, [START - HOUR, *hours], mode, "test").errors
    env.pipeline.settle()
    again = env.pipeline.snapshot()
    for table, rows in once.items():
        assert again[table] == rows, table
    assert_content_is_counted(env.pipeline)


@with_quick_gates
def test_a_rebuild_from_empty_tables_gives_what_live_gave(env: Environment) -> None:
    """What is rebuilt finds nothing of what live had computed."""
    its = messages(2)
    for part in range(4):
        send(env, its[part::4])
        env.pipeline.settle()
    settle(env)
    live = contents(env)
    with connection(env.pipeline.engine) as conn, conn.cursor() as cursor:
        cursor.execute(f"TRUNCATE {', '.join(live)}")
        cursor.execute("DELETE FROM partition_state WHERE asset <> 'raw_events'")
        cursor.execute("DELETE FROM dead_letters WHERE stage <> 'raw_events'")
        conn.commit()
    env.pipeline.rebuild(env.pipeline.hours())
    settle(env)
    assert_same(contents(env), live)
    assert_content_is_counted(env.pipeline)
