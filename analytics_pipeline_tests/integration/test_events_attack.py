"""Events under attack: retention beside a worker."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.storage import retention
from analytics_pipeline.storage.engine import connection
from analytics_pipeline_tests.domains import begin_anew, events
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate
from analytics_pipeline_tests.integration.test_events import ALL, send
from analytics_pipeline_tests.invariants import assert_live_equals_rebuild
from analytics_pipeline_tests.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_events: Environment) -> Environment:
    begin_anew(opened_events, partitions=2)
    return opened_events


def _expire_first_hour(env: Environment) -> None:
    with connection(env.pipeline.engine) as conn:
        retention.expire(conn, ["events", "press"], ALL[1] + timedelta(days=1), 1)


def test_an_event_that_loses_to_one_that_is_expiring_meanwhile_is_not_lost(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hour in (0, 1):
        send(env, [events.message(ALL[hour] + timedelta(minutes=5), "a", id="e")], kafka_s=5 - hour)
    env.drain()
    _normalize(env.pipeline, ALL[0])
    holding, deleting = Gate(), retention._Expiring.edge
    asked: list[Any] = []

    def edge(*arguments: Any) -> datetime:
        asked.append(arguments)
        if len(asked) == len(retention._EXPIRING) + 1:  # the first one to be deleted from
            holding.hold()
        return deleting(*arguments)

    monkeypatch.setattr(retention._Expiring, "edge", edge)
    other = Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    with ThreadPoolExecutor(2) as threads:
        expiring = threads.submit(_expire_first_hour, env)
        holding.wait_until_reached()  # it has looked whose events come back, and deleted nothing yet
        beside = threads.submit(_normalize, other, ALL[1])
        with contextlib.suppress(TimeoutError):  # it may have to wait
            beside.result(1.0)
        holding.let_go()
        expiring.result(PATIENCE_S)
        beside.result(PATIENCE_S)
    other.close()
    env.pipeline.settle()
    assert env.pipeline.query("SELECT event_time FROM normalized_events") == [(ALL[1] + timedelta(minutes=5),)]
    assert_live_equals_rebuild(env.pipeline)


def _normalize(pipeline: Pipeline, hour: datetime) -> None:
    assert not pipeline.deriver.derive_hours("normalized_measurements", [hour], "incremental", "test").errors
