"""Several at once: drains, workers, a rebuild while live data lands. Twice equals once, and nothing is lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.raw_events.drain import Drain
from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.assets.slice_protocol import SliceProtocol
from analytics_pipeline.errors import OffsetConflictError
from analytics_pipeline.records import DERIVED, HOUR, DerivedName, DrainOutcome, hour_of
from analytics_pipeline.storage import raw_events
from analytics_pipeline_tests.conftest import DatabaseServer, KafkaServer
from analytics_pipeline_tests.crashing_processes import drain_against_others
from analytics_pipeline_tests.environments import Environment, open_environment, process_context
from analytics_pipeline_tests.invariants import assert_invariants
from analytics_pipeline_tests.pipeline import Pipeline, reading

PATIENCE_S = 30.0
START = hour_of(datetime.now(UTC)) - 3 * HOUR


@pytest.fixture
def env(postgres_server: DatabaseServer, kafka_broker: KafkaServer) -> Iterator[Environment]:
    with open_environment(postgres_server, kafka_broker.bootstrap_servers, drain_batch_messages=50) as it:
        yield it


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as it:
        yield it


def minutes(*spans: range, sensor: str = "s-001", value: float | None = None) -> list[bytes]:
    return [
        reading(START + timedelta(minutes=m), 20.0 + m % 5 if value is None else value, sensor_id=sensor)
        for span in spans
        for m in span
    ]


def another_drain(env: Environment) -> Drain:
    return Drain(env.settings, env.pipeline.engine, env.pipeline.registry)


def another_worker(env: Environment) -> Deriver:
    return Deriver(env.settings, env.pipeline.engine, env.pipeline.registry)


class Gate:
    """Holds whoever comes to a place until the test lets go."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE_S)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE_S)

    def let_go(self) -> None:
        self._open.set()


def before(target: Drain | SliceProtocol, method: str, happens: Callable[[], None]) -> None:
    """Lets something happen each time that one of its methods is called."""
    original = getattr(target, method)

    def wrapped(*arguments: Any) -> Any:
        happens()
        return original(*arguments)

    setattr(target, method, wrapped)


# ---------------------------------------------------------------------- two drains


def test_of_two_drains_that_read_the_same_one_writes_and_the_other_goes_on(
    env: Environment, threads: ThreadPoolExecutor
) -> None:
    env.send(minutes(range(40)))
    env.send([b"bad"], 1, rejected=True)
    gate, one, other = Gate(), env.pipeline.drain, another_drain(env)
    before(one, "_commit", gate.hold)
    first = threads.submit(one.tick, datetime.now(UTC))
    gate.wait_until_reached()  # one has written and not committed
    second = threads.submit(other.tick, datetime.now(UTC))
    with pytest.raises(TimeoutError):
        second.result(timeout=1.0)  # waits for the first to commit or to roll back
    gate.let_go()
    assert first.result(PATIENCE_S).messages == 41
    with pytest.raises(OffsetConflictError, match="another drain was first"):
        second.result(PATIENCE_S)

    env.send(minutes(range(40, 60)))
    ticks = [other.tick(datetime.now(UTC)).messages for _ in range(3)]
    assert sum(ticks) == 20
    other.close()
    env.pipeline.settle()
    assert_invariants(env)


def test_a_drain_takes_over_from_one_that_rolls_back(env: Environment, threads: ThreadPoolExecutor) -> None:
    env.send(minutes(range(40)))
    gate, one, other = Gate(), env.pipeline.drain, another_drain(env)

    def fail() -> None:
        gate.hold()
        raise RuntimeError("the process ends here")

    before(one, "_commit", fail)
    first = threads.submit(one.tick, datetime.now(UTC))
    gate.wait_until_reached()
    second = threads.submit(other.tick, datetime.now(UTC))
    gate.let_go()
    with pytest.raises(RuntimeError):
        first.result(PATIENCE_S)
    assert second.result(PATIENCE_S).messages == 40
    other.close()
    env.pipeline.settle()
    assert_invariants(env)


def test_two_processes_that_drain_in_step_double_nothing(env: Environment) -> None:
    for part in range(6):
        env.send(minutes(range(part * 30, part * 30 + 30)), part % 2)
    env.pipeline.close()
    context, rounds = process_context(), 5
    start, told = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=drain_against_others, args=(env.settings, env.topics, start, rounds, told))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    outcomes = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sum(lost for _, lost in outcomes) >= 1, "they never met: nothing was tested"
    env.renew()
    env.drain()
    env.pipeline.settle()
    assert_invariants(env)


# ---------------------------------------------------------------------- two workers


@pytest.mark.parametrize("mode", ["incremental", "full"])
@pytest.mark.parametrize("asset", DERIVED)
def test_two_workers_on_one_hour_work_one_after_the_other(
    env: Environment, threads: ThreadPoolExecutor, asset: DerivedName, mode: Any
) -> None:
    env.send(minutes(range(40)))
    env.drain()
    for earlier in DERIVED[: DERIVED.index(asset)]:
        env.pipeline.deriver.derive(earlier, START, "incremental", "test")
    gate, one, other = Gate(), another_worker(env), another_worker(env)
    before(one.protocol, "_commit", gate.hold)
    first = threads.submit(one.derive, asset, START, mode, "first")
    gate.wait_until_reached()
    second = threads.submit(other.derive, asset, START, mode, "second")
    with pytest.raises(TimeoutError):
        second.result(timeout=0.5)
    gate.let_go()
    done = first.result(PATIENCE_S)
    again = second.result(PATIENCE_S)
    assert done.rows > 0 or asset == "anomalies"
    # The one that waited sees what the first committed: its pending work is gone.
    assert again.domains == () if mode == "incremental" else again.rows == done.rows
    env.pipeline.settle()
    assert_invariants(env)


@pytest.mark.parametrize("method", ["_holding_rows", "_commit"])
def test_an_hour_computed_while_an_earlier_one_is_not_yet_committed_is_computed_again(
    env: Environment, threads: ThreadPoolExecutor, method: str
) -> None:
    """The baseline of the later hour is in the earlier one, whose windows nobody else can see yet."""
    env.send(minutes(range(40, 60), range(60, 65)))
    env.send(minutes(range(65, 66), value=500.0))
    env.drain()
    derive = env.pipeline.deriver.derive
    for hour in (START, START + HOUR):
        derive("normalized_measurements", hour, "incremental", "test")
    gate, slow = Gate(), another_worker(env)
    before(slow.protocol, method, gate.hold)
    earlier = threads.submit(slow.derive, "window_aggregates", START, "incremental", "slow")
    gate.wait_until_reached()

    def later_hour() -> None:
        for asset in DERIVED[1:]:
            derive(asset, START + HOUR, "incremental", "quick")

    quick: Future[None] = threads.submit(later_hour)
    # Either they go on side by side, or the quick one waits for the slow one. Both are right.
    with contextlib.suppress(TimeoutError):
        quick.result(timeout=2.0)
    gate.let_go()
    earlier.result(PATIENCE_S)
    quick.result(PATIENCE_S)
    env.pipeline.settle()
    flags = env.pipeline.query("SELECT count(*) FROM anomalies WHERE bucket_start >= %s", START + HOUR)
    assert flags == [(1,)]
    assert_invariants(env)


# ---------------------------------------------------------------------- a rebuild while live data lands


@pytest.mark.parametrize("asset", DERIVED)
def test_live_data_that_lands_while_an_asset_is_rebuilt_is_not_forgotten(env: Environment, asset: DerivedName) -> None:
    env.send(minutes(range(0, 100, 2)))
    env.drain()
    env.pipeline.settle()
    rebuilding = another_worker(env)

    def lands() -> None:
        """A batch of the same hour, drained and computed as far as it gets, before the rebuild commits."""
        del rebuilding.protocol._commit  # only once
        env.send(minutes(range(1, 100, 2), range(0, 40, 2)))
        env.drain()
        for earlier in DERIVED[: DERIVED.index(asset)]:
            env.pipeline.deriver.derive(earlier, START, "incremental", "live")

    before(rebuilding.protocol, "_commit", lands)
    rebuilding.derive(asset, START, "full", "by hand")
    env.pipeline.settle()
    assert_invariants(env)


def test_raw_events_rebuilt_while_live_data_lands_in_the_same_hour_lose_nothing(
    env: Environment, threads: ThreadPoolExecutor
) -> None:
    env.send(minutes(range(0, 100, 2)))
    env.drain()
    env.pipeline.settle()
    stop = threading.Event()

    def rebuild() -> int:
        times = 0
        while not stop.is_set() or not times:
            for hour in (START, START + HOUR):
                rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, hour, "by hand")
            times += 1
        return times

    rebuilt = threads.submit(rebuild)
    for begin in range(1, 100, 10):
        env.send(minutes(range(begin, begin + 10, 2)), begin // 10 % 2)
        env.drain()
    stop.set()
    assert rebuilt.result(PATIENCE_S) >= 1
    env.pipeline.settle()
    assert_invariants(env)


def test_a_batch_that_lands_while_raw_events_are_counted_is_counted(
    env: Environment, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.send(minutes(range(0, 40, 2)))
    env.drain()
    env.send(minutes(range(1, 40, 2)))
    landing: list[Future[DrainOutcome]] = []
    count_hour = raw_events.count_hour

    def count_and_let_a_batch_land(*arguments: Any) -> int:
        counted = count_hour(*arguments)
        landing.append(threads.submit(env.pipeline.tick))
        with contextlib.suppress(TimeoutError):
            landing[0].result(timeout=2.0)  # it may have to wait for the rebuild
        return counted

    monkeypatch.setattr(raw_events, "count_hour", count_and_let_a_batch_land)
    rebuild_raw(env.settings, env.pipeline.engine, env.pipeline.registry, START, "by hand")
    monkeypatch.undo()
    assert landing[0].result(PATIENCE_S).messages == 20
    env.pipeline.settle()
    assert_invariants(env)


def test_drain_workers_and_a_backfill_at_the_same_time_agree_in_the_end(
    env: Environment, threads: ThreadPoolExecutor
) -> None:
    stop = threading.Event()
    worker = Pipeline(env.settings, env.pipeline.engine, env.pipeline.registry)
    backfiller = another_worker(env)

    def work(run: Callable[[], object]) -> None:
        while not stop.is_set():
            run()

    def backfill() -> None:
        for asset in DERIVED:
            for hour in range(3):
                backfiller.derive(asset, START + hour * HOUR, "full", "backfill")

    running = [threads.submit(work, worker.settle), threads.submit(work, backfill)]
    for part in range(12):
        late = range(part * 3, part * 3 + 6)
        env.send(minutes(range(part * 13, part * 13 + 13), late), part % 2)
        env.drain()
    stop.set()
    for one in running:
        one.result(PATIENCE_S)
    worker.close()
    env.pipeline.settle()
    assert_invariants(env)
