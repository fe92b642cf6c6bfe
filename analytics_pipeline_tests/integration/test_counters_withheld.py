"""What was counted on from a window that its gate then withheld is computed again, from what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from analytics_pipeline.domains.base import Expect
from analytics_pipeline.records import HOUR
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import begin_anew, counters, open_domains
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_counters import ALL, at, hourly, send

#: A last reading above this fails the gate of the windows.
HIGHEST = 5000
TOO_HIGH = Expect(
    "window_aggregates",
    "expect_column_values_to_be_between",
    "last_reading",
    "counter_too_high",
    (("max_value", HIGHEST),),
    "counter_increments",
)
DOMAIN = replace(counters.DOMAIN, counter_limits=(), expectations=(TOO_HIGH,))

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def opened(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [DOMAIN], windows=[60, 3600, 7200]) as it:
        yield it


@pytest.fixture
def env(opened: Environment) -> Environment:
    begin_anew(opened)
    return opened


def settle_in_slices(env: Environment) -> None:
    """As a range run does: each asset over all hours, until nothing is left to do."""
    for _ in range(20):
        with connection(env.pipeline.engine) as conn:
            if not actionable_hours(conn):
                return
        for asset in ("normalized_measurements", "window_aggregates"):
            assert not env.pipeline.deriver.derive_hours(asset, ALL, "incremental", "test").errors  # type: ignore[arg-type]
    raise AssertionError("never settled")


@pytest.mark.parametrize("bad_hour", [0, 1])
def test_what_was_counted_on_from_a_withheld_window_is_computed_again(env: Environment, bad_hour: int) -> None:
    last = 60 * bad_hour + 58
    send(env, *(counters.message(at(minute), count) for minute, count in ((5, 100), (last, 110), (last + 90, 130))))
    settle_in_slices(env)
    assert hourly(env)[-1] == (ALL[bad_hour + 2], 20, None)
    send(env, counters.message(at(last), HIGHEST + 1), counters.message(at(last + 91), 140), kafka_s=1)
    settle_in_slices(env)
    assert env.pipeline.query("SELECT hour FROM partition_state WHERE status = 'quarantined'") == [
        (ALL[0] + HOUR * bad_hour,)
    ]
    assert hourly(env)[-1] == (ALL[bad_hour + 2], 30, None), "counted on from what is stored"
    send(env, counters.message(at(last), 120), kafka_s=2)
    settle_in_slices(env)
    assert hourly(env)[-1] == (ALL[bad_hour + 2], 20, None)
    assert env.pipeline.query("SELECT DISTINCT status FROM partition_state") == [("open",)]
