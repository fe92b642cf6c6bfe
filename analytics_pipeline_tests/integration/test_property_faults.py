"""Any sequence of messages, ticks, runs, edits, rebuilds and retention, while servers and a domain fail, leaves what
the naive reference says, in every stored column.

`PROPERTY_EXAMPLES=300 pytest …/test_property_faults.py` plays more examples than the suite has time for. The same
examples each time, and none is shrunk: each is real servers for seconds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from analytics_pipeline.assets.raw_events import classify
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, intermittent, open_domains, traces
from analytics_pipeline_tests.domains.copies import OVEN, PRESS
from analytics_pipeline_tests.fault_points import FaultPoint, use_faulty_clients
from analytics_pipeline_tests.quick_gate import use_quick_gates
from analytics_pipeline_tests.reference import SeriesKey
from analytics_pipeline_tests.scenario import PARTITIONS, STEPS, Scenario
from analytics_pipeline_tests.scenario_messages import RETENTION_DAYS, SERIES
from analytics_pipeline_tests.scenario_stage import WINDOWS, Servers
from analytics_pipeline_tests.stored_columns import assert_exact, assert_offsets_covered, limits_of

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "16"))
SWITCH = intermittent.Switch()
DOMAINS = [PRESS, OVEN, traces.DOMAIN, intermittent.domain(SWITCH)]
UNAFFECTED = [domain.name for domain in DOMAINS if domain.name != "intermittent"]
ALL_SERIES = [SeriesKey("t1", "f1", machine, sensor, "temp") for machine, sensor in SERIES]


@pytest.fixture(scope="module")
def broker() -> Iterator[FaultPoint]:
    """Every Kafka client that the pipeline makes in this file passes it."""
    faults = FaultPoint()
    with pytest.MonkeyPatch.context() as patch:
        use_quick_gates(patch)
        use_faulty_clients(patch, faults)
        patch.setattr(classify, "log", structlog.wrap_logger(structlog.ReturnLogger(), processors=[]))
        yield faults


@pytest.fixture(scope="module")
def servers(postgres_server: DatabaseServer, kafka_broker: KafkaServer, broker: FaultPoint) -> Iterator[Servers]:
    with open_domains(
        postgres_server,
        kafka_broker.bootstrap_servers,
        DOMAINS,
        partitions=PARTITIONS,
        windows=WINDOWS,
        retention_days=RETENTION_DAYS,
        drain_batch_messages=25,
    ) as it:
        yield Servers(it, kafka_broker, SWITCH, broker)


sequences = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2**32)), min_size=20, max_size=40)


@pytest.mark.timeout(30 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(steps=sequences)
def test_in_any_order_and_whatever_fails_the_tables_equal_the_reference(
    servers: Servers, steps: list[tuple[str, int]]
) -> None:
    begin_anew(servers.env, DOMAINS, partitions=PARTITIONS)
    scenario = Scenario(servers)
    try:
        for at, (name, seed) in enumerate(steps):
            scenario.step(name, random.Random(f"{at} {seed}"))
        scenario.history.append("the end")
        finish(scenario)
    finally:
        note("\n".join(scenario.history))
        scenario.close()


def finish(scenario: Scenario) -> None:
    """The servers heal, and at last the domain does."""
    scenario.heal()
    scenario.enable_all()
    scenario.drain_all()
    scenario.settle_all(UNAFFECTED)
    scenario.finish_retention()
    for name in UNAFFECTED:
        assert_domain(scenario, name)
    scenario.mend_domain()
    assert_everything(scenario)
    before = scenario.observer.snapshot()
    for hour in scenario.kept_hours():
        scenario.rebuild_raw_hour(hour)
    assert not scenario.observer.query("SELECT * FROM pending_work"), "rebuilding what is right changes nothing"
    scenario.observer.rebuild(scenario.kept_hours())
    scenario.settle_all(scenario.env.topics.values())
    after = scenario.observer.snapshot()
    for table, rows in before.items():
        assert after[table] == rows, table
    assert_everything(scenario)


def assert_everything(scenario: Scenario) -> None:
    for name in (*UNAFFECTED, "intermittent"):
        assert_domain(scenario, name)
    assert_offsets_covered(scenario.observer, scenario.read())
    for table in ("pending_work", "partition_failure"):
        assert not scenario.observer.query(f"SELECT * FROM {table}"), table
    assert not scenario.observer.query("SELECT * FROM partition_state WHERE status <> 'open'")
    messages = scenario.observer.query("SELECT coalesce(sum(messages), 0)::int FROM ingest_batch")
    assert messages == [(len(scenario.read()),)]
    assert not scenario.observer.query("SELECT * FROM master_data_commit")
    assert not scenario.observer.query("SELECT * FROM master_data_edit WHERE version IS NULL")
    accepted = scenario.observer.query("SELECT gap_id FROM offset_gap WHERE accepted_by IS NOT NULL")
    assert scenario.accepted <= {row[0] for row in accepted}
    sizes = scenario.observer.query("SELECT DISTINCT window_s FROM window_aggregates")
    assert {row[0] for row in sizes} <= set(scenario.env.settings.window_sizes_s)


def assert_domain(scenario: Scenario, name: str) -> None:
    assert_exact(scenario.observer, scenario.expected(name), limits_of(scenario.observer, ALL_SERIES))
