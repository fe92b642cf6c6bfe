"""What the state clock asks for each minute concerns states alone, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.assets.windows.sample_windows import SampleWindows
from analytics_pipeline.storage.domain_numbers import DomainNumbers
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import MAX_SERIES
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.domains import open_domains, states
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_states import ALL
from analytics_pipeline_tests.invariants import assert_content_is_counted, assert_live_equals_rebuild, assert_settled

#: The window of two hours that holds it begins in the hour before.
BEGIN = ALL[1]

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture(scope="module")
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    sizes = [60, 300, 3600, 7200]
    with open_domains(postgres_server, kafka_broker.bootstrap_servers, [states.GAUGED], windows=sizes) as it:
        yield it


def pass_minutes(env: Environment, minute: int) -> None:
    """Time passes up to a minute of the hour, and what the clock asks for is computed."""
    env.send([states.heartbeat(BEGIN + timedelta(minutes=minute))])
    env.drain()
    env.normalize()
    with connection(env.pipeline.engine) as conn:
        assert state_clock.advance(conn, DomainNumbers(env.pipeline.engine).numbers(["gauged"])) == 1
    env.pipeline.settle()


def test_the_clock_of_a_thousand_states_computes_no_sample_again(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    compute = SampleWindows.compute

    def counting(*arguments: Any) -> Any:
        found = compute(*arguments)
        computed.append(sum(rows.frame().height for rows in found))
        return found

    machines = [f"m-{number}" for number in range(MAX_SERIES + 1)]
    env.send(states.message(BEGIN, "running", machine) for machine in machines)
    env.send(
        states.message(BEGIN + timedelta(minutes=minute), "running", machine, gauge=float(minute))
        for minute in range(10)
        for machine in machines[:-1]
    )
    env.drain()
    env.pipeline.settle()
    pass_minutes(env, 20)
    monkeypatch.setattr(SampleWindows, "compute", counting)
    pass_minutes(env, 21)
    assert computed, "nothing was computed at all"
    assert sum(computed) == 0
    assert_settled(env.pipeline)
    lasted = env.pipeline.query(
        "SELECT DISTINCT window_s, sum(duration_us)::bigint FROM state_durations GROUP BY 1, series_id"
    )
    assert sorted(lasted) == [(size_s, 21 * 60_000_000) for size_s in (60, 300, 3600, 7200)]
    assert_content_is_counted(env.pipeline)
    assert_live_equals_rebuild(env.pipeline)
