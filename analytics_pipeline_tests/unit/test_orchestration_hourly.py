"""What Dagster is told about each hour of a run: passed, quarantined, failed; alone, in a range, among domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from dagster import AssetKey, DagsterEventType, DagsterInstance, ExecuteInProcessResult

from analytics_pipeline.definitions import build_defs
from analytics_pipeline.orchestration.assets import DERIVED_STEP
from analytics_pipeline.orchestration.partitions import HourRange, key_of
from analytics_pipeline.orchestration.resources import Pipeline
from analytics_pipeline.orchestration.tags import MODE_TAG, REQUEST_TAG
from analytics_pipeline.records import (
    HOUR,
    DerivedHours,
    DomainOutcome,
    DomainState,
    ExpectationOutcome,
    GateResult,
    HourOutcome,
    PartitionError,
)
from analytics_pipeline.settings import load_settings

FIRST = datetime(2026, 10, 1, 8, tzinfo=UTC)
KEYS = [key_of(FIRST + HOUR * step) for step in range(3)]
LIVE = {MODE_TAG: "incremental", REQUEST_TAG: "c"}
NORMALIZED, WINDOWS = "normalized_measurements", "window_aggregates"

Answer = Callable[[str, datetime], HourOutcome]


def domain(name: str, asset: str, *, quarantined: bool = False) -> DomainOutcome:
    outcome = ExpectationOutcome(
        name="expect_column_values_to_be_between", column="value", reason="not_finite", failed=7, sample_rows=(1, 5)
    )
    gate = GateResult(
        asset=asset, domain=name, rows=10, reasons={1: "not_finite"}, outcomes=(outcome,)
    ) if quarantined else GateResult(
        asset=asset, domain=name, rows=10
    )
    return DomainOutcome(
        domain=name,
        rows=10,
        written=0 if quarantined else 10,
        dead_letters=0,
        late_rows=0,
        gate=gate,
        quarantined=quarantined,
        rows_seen=10,
        rows_failed=7 if quarantined else 0,
    )


class Scripted(Pipeline):
    """Answers as a test says, without any database."""

    def __init__(self, answer: Callable[[str, datetime, str], tuple[DomainOutcome, ...]]) -> None:
        super().__init__(load_settings(_env_file=None))
        self._answer = answer
        self.asked: list[tuple[str, str]] = []

    def derive_hours(
        self, asset: str, hours: Sequence[datetime], mode: Any, run_id: str, domains: Any = None
    ) -> DerivedHours:
        done = DerivedHours()
        for hour in hours:
            self.asked.append((asset, key_of(hour)))
            try:
                done.outcomes.append(HourOutcome(
                    asset=asset, hour=hour, mode=mode, domains=self._answer(asset, hour, mode), duration_s=0.1
                ))
            except ValueError as error:
                done.outcomes.append(HourOutcome(asset=asset, hour=hour, mode=mode, domains=(), duration_s=0.1))
                done.errors.append(PartitionError(domain="sensor", hour=hour, error=error))
        return done

    def hour_states(self, asset: str, hours: Sequence[datetime]) -> dict[datetime, list[DomainState]]:
        return {}

    def connection(self) -> Any:
        raise psycopg2.OperationalError("no plot without a database")


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


def execute(instance: DagsterInstance, pipeline: Pipeline, hours: int = 1, **tags: str) -> ExecuteInProcessResult:
    defs = build_defs({"pipeline": pipeline})
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={AssetKey(NORMALIZED), AssetKey(WINDOWS)}
    )
    hour_tags = HourRange(FIRST, FIRST + HOUR * (hours - 1)).tags
    return job.execute_in_process(instance=instance, tags={**tags, **hour_tags}, raise_on_error=False)


def materialized(result: ExecuteInProcessResult, asset: str) -> list[str | None]:
    return [
        event.partition
        for event in result.all_events
        if event.event_type is DagsterEventType.ASSET_MATERIALIZATION and event.asset_key == AssetKey(asset)
    ]


def check_results(result: ExecuteInProcessResult, asset: str) -> dict[str | None, tuple[bool, str]]:
    return {
        one.partition: (one.passed, one.severity.value)
        for one in result.get_asset_check_evaluations()
        if one.asset_key == AssetKey(asset)
    }


def planned(instance: DagsterInstance, asset: str) -> list[str | None]:
    """Partitions whose check is still only planned."""
    from dagster import AssetCheckKey

    records = instance.event_log_storage.get_asset_check_execution_history(
        AssetCheckKey(AssetKey(asset), "gate"), 50
    )
    return [record.partition for record in records if record.status.value == "PLANNED"]


def plain(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
    return (domain("sensor", asset),)


def test_each_hour_of_a_live_range_is_materialized_and_checked_and_nothing_stays_planned(
    instance: DagsterInstance,
) -> None:
    result = execute(instance, Scripted(plain), hours=3, **LIVE)
    assert result.success
    for asset in (NORMALIZED, WINDOWS):
        assert materialized(result, asset) == KEYS
        assert check_results(result, asset) == dict.fromkeys(KEYS, (True, "WARN"))
        assert planned(instance, asset) == []


def test_a_quarantined_hour_is_checked_not_materialized_and_stops_the_next_assets(
    instance: DagsterInstance,
) -> None:
    result = execute(
        instance, Scripted(lambda asset, hour, mode: (domain("sensor", asset, quarantined=True),)), **LIVE
    )
    assert not result.success
    assert materialized(result, NORMALIZED) == []
    assert check_results(result, NORMALIZED) == {KEYS[0]: (False, "ERROR")}
    assert check_results(result, WINDOWS) == {}
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.metadata["failing_expectations"].value[0]["sample_rows"] == [1, 5]
    assert evaluation.metadata["quarantined"].value == "sensor"
    failure = result.failure_data_for_node(DERIVED_STEP)
    assert failure is not None
    assert "analytics-pipeline gates release" in str(failure.user_failure_data)


def test_a_live_run_takes_the_other_domains_of_a_quarantined_hour_to_the_next_assets(
    instance: DagsterInstance,
) -> None:
    def one_of_two(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
        lab = domain("lab", asset, quarantined=asset == NORMALIZED)
        return (domain("sensor", asset), lab) if asset == NORMALIZED else (domain("sensor", asset),)

    result = execute(instance, Scripted(one_of_two), **LIVE)
    assert result.success
    assert materialized(result, NORMALIZED) == KEYS[:1], "with what was committed of it"
    assert check_results(result, NORMALIZED) == {KEYS[0]: (False, "ERROR")}
    assert materialized(result, WINDOWS) == KEYS[:1]

    again = execute(instance, WithoutPlot(one_of_two))  # a person's run is red, and says why
    assert not again.success
    assert materialized(again, NORMALIZED) == []
    observed = [e for e in again.all_events if e.event_type is DagsterEventType.ASSET_OBSERVATION]
    assert len(observed) == 1, "what was committed is shown as an observation"


def test_in_a_persons_range_one_refused_hour_stops_no_other_and_the_run_fails_in_the_end(
    instance: DagsterInstance,
) -> None:
    def second_refused(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
        return (domain("sensor", asset, quarantined=key_of(hour) == KEYS[1]),)

    result = execute(instance, WithoutPlot(second_refused), hours=3)
    assert not result.success
    assert materialized(result, NORMALIZED) == [KEYS[0], KEYS[2]]
    assert check_results(result, NORMALIZED) == {
        KEYS[0]: (True, "WARN"),
        KEYS[1]: (False, "ERROR"),
        KEYS[2]: (True, "WARN"),
    }
    failure = result.failure_data_for_node(DERIVED_STEP)
    assert failure is not None
    assert "1 of 3 hours were not materialized" in str(failure.user_failure_data)


class WithoutPlot(Scripted):
    def connection(self) -> Any:
        from contextlib import nullcontext

        return nullcontext(NoRows())


class NoRows:
    """A connection to a database without rows."""

    def cursor(self) -> Any:
        from contextlib import nullcontext
        from types import SimpleNamespace

        return nullcontext(SimpleNamespace(execute=lambda *_: None, fetchall=list))


def test_an_error_in_one_hour_of_a_range_stops_no_other(instance: DagsterInstance) -> None:
    def second_fails(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
        if key_of(hour) == KEYS[1]:
            raise ValueError("a bug in a rule")
        return (domain("sensor", asset),)

    result = execute(instance, Scripted(second_fails), hours=3, **LIVE)
    assert result.success, "a live run fails only if nothing could be committed"
    assert materialized(result, NORMALIZED) == [KEYS[0], KEYS[2]]
    assert check_results(result, NORMALIZED)[KEYS[1]] == (False, "ERROR")

    by_hand = execute(instance, WithoutPlot(second_fails), hours=3)
    assert not by_hand.success
    assert materialized(by_hand, NORMALIZED) == [KEYS[0], KEYS[2]]
    assert "a bug in a rule" in str(by_hand.failure_data_for_node(DERIVED_STEP))


def test_a_database_out_of_reach_stops_a_range_at_once(instance: DagsterInstance) -> None:
    def gone(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
        raise psycopg2.OperationalError("server closed the connection")

    pipeline = Scripted(gone)
    assert not execute(instance, pipeline, hours=3, **LIVE).success
    assert pipeline.asked == [(NORMALIZED, KEYS[0])]


def test_a_live_hour_without_pending_work_is_not_reported_as_written(instance: DagsterInstance) -> None:
    result = execute(
        instance,
        Scripted(lambda asset, hour, mode: (domain("sensor", asset),) if asset == WINDOWS else ()),
        **LIVE,
    )
    assert result.success
    assert materialized(result, NORMALIZED) == []
    assert materialized(result, WINDOWS) == KEYS[:1]


def test_rows_in_the_dead_letters_are_a_warning_and_the_hour_is_materialized(instance: DagsterInstance) -> None:
    def some_failed(asset: str, hour: datetime, mode: str) -> tuple[DomainOutcome, ...]:
        gate = GateResult(asset=asset, domain="sensor", rows=10, reasons={3: "not_finite"})
        return (DomainOutcome(
            domain="sensor",
            rows=9,
            written=9,
            dead_letters=1,
            late_rows=0,
            gate=gate,
            quarantined=False,
            rows_seen=10,
            rows_failed=1,
        ),)

    result = execute(instance, Scripted(some_failed), **LIVE)
    assert result.success
    assert materialized(result, NORMALIZED) == KEYS[:1]
    assert check_results(result, NORMALIZED) == {KEYS[0]: (False, "WARN")}
    types = {event.event_type for event in result.all_events}
    assert DagsterEventType.ASSET_FAILED_TO_MATERIALIZE not in types
