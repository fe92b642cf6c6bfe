"""States under attack: the clock advances, or changes are committed, while several hours are computed as one slice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from analytics_pipeline.assets.windows import state_clock
from analytics_pipeline.records import Mode
from analytics_pipeline_tests.domains import begin_anew, states
from analytics_pipeline_tests.environments import Environment
from analytics_pipeline_tests.integration.test_concurrency import PATIENCE_S, Gate, before
from analytics_pipeline_tests.integration.test_states import ALL, advance, assert_right, at, send
from analytics_pipeline_tests.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("quick_gates")


@pytest.fixture
def env(opened_states: Environment) -> Environment:
    begin_anew(opened_states)
    return opened_states


def _while_windows_are_held(env: Environment, mode: Mode, happens: Callable[[], Any]) -> None:
    """Computes the first three hours as one slice, and something else between its snapshot and what it reads."""
    holding, one = Gate(), Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    before(one.deriver.protocol, "_gate", holding.hold)  # what it computes from is read
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(one.deriver.derive_hours, "window_aggregates", ALL[:3], mode, "test")
        holding.wait_until_reached()
        happens()
        holding.let_go()
        assert not running.result(PATIENCE_S).errors
    one.close()


@pytest.mark.parametrize("mode", ["incremental", "full"])
def test_a_clock_that_passes_hours_of_a_slice_loses_no_new_series_in_them(env: Environment, mode: Mode) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(70)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(20), "off", "m-2"), states.message(at(65), "idle"), states.heartbeat(at(290)))
    env.pipeline.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
    _while_windows_are_held(env, mode, lambda: advance(env))
    env.pipeline.settle()
    assert_right(env)


def test_a_change_committed_while_the_clock_advances_is_not_passed_over(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(env, states.message(at(10), "running"), states.heartbeat(at(50)))
    advance(env)
    env.pipeline.settle()
    send(env, states.message(at(20), "off", "m-2"), states.heartbeat(at(290)))
    holding, first_hours = Gate(), state_clock._first_hours

    def hours(*arguments: Any) -> Any:
        found = first_hours(*arguments)
        holding.hold()
        return found

    monkeypatch.setattr(state_clock, "_first_hours", hours)
    other = Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    with ThreadPoolExecutor(2) as threads:
        advancing = threads.submit(advance, env)
        holding.wait_until_reached()  # it has seen which series are in some state, and not committed
        other.deriver.derive_hours("normalized_measurements", ALL, "incremental", "test")
        computing = threads.submit(other.deriver.derive_hours, "window_aggregates", ALL, "incremental", "test")
        with contextlib.suppress(TimeoutError):  # it waits for the clock before it commits
            computing.result(1.0)
        holding.let_go()
        advancing.result(PATIENCE_S)
        assert not computing.result(PATIENCE_S).errors
    other.close()
    env.pipeline.settle()
    assert_right(env)
