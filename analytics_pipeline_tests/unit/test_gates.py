"""Gates: a frame goes in, the rows that fail come out by number. Each expectation is broken once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import polars as pl
import pytest

from analytics_pipeline.domains.base import Domain, Expect
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR
from analytics_pipeline.quality import gates
from analytics_pipeline.quality.gates import RANGE, GateError, GateSuite, quarantines, run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import AssetName
from analytics_pipeline.settings import Settings, load_settings

GOOD: dict[AssetName, dict[str, Any]] = {
    "raw_events": {"ahead_s": -1.5, "since_start_s": 9e6, "since_floor_s": 0.0, "payload_bytes": 140},
    "normalized_measurements": {
        "value": 23.7,
        "tenant_id": "t1",
        "machine_id": "mc-01",
        "station_id": None,
        "metric": "temp",
        "unit": None,
    },
    "window_aggregates": {
        "count_n": 3,
        "avg_val": 2.0,
        "m2": 2.0,
        "min_val": 1.0,
        "max_val": 3.0,
        "p50": 2.0,
        "p95": 3.0,
        "p99": 3.0,
        "coverage": 1.0,
        "bad_n": 1,
        "uncertain_n": 2,
        "censored_n": 1,
        "late_n": 4,
    },
    "anomalies": {"severity": "critical", "value": 9.0, "score": 4.2},
    "kpis": {"kpi": "coverage", "value": 0.5, "reason": None, "numerator": 30.0, "denominator": 60.0},
}

NO_PARTS = {"uncertain_n": 0, "censored_n": 0, "late_n": 0}

#: One bad row for each expectation: asset, what is wrong with the row, the reason that it must get.
BAD: list[tuple[AssetName, dict[str, Any], str]] = [
    ("raw_events", {"since_start_s": -0.000001}, "before_partitions_start"),
    ("raw_events", {"ahead_s": 600.5}, "too_far_ahead"),
    ("raw_events", {"since_floor_s": -3600.0}, "after_retention"),
    ("raw_events", {"payload_bytes": 0}, "payload_size"),
    ("raw_events", {"payload_bytes": 1024**2 + 1}, "payload_size"),
    ("normalized_measurements", {"value": math.nan}, "not_finite"),
    ("normalized_measurements", {"value": math.inf}, "not_finite"),
    ("normalized_measurements", {"value": -math.inf}, "not_finite"),
    ("normalized_measurements", {"value": None}, "not_finite"),
    ("normalized_measurements", {"value": 1.797e308}, "value_out_of_range"),
    ("normalized_measurements", {"value": -1.1e150}, "value_out_of_range"),
    ("normalized_measurements", {"metric": None}, "metric_missing"),
    ("normalized_measurements", {"metric": ""}, "metric_missing"),
    ("normalized_measurements", {"machine_id": ""}, "name_empty"),
    ("normalized_measurements", {"tenant_id": "x" * 257}, "name_too_long"),
    ("normalized_measurements", {"unit": "a\0b"}, "nul_character"),
    ("window_aggregates", {"count_n": 0, "bad_n": 0, "coverage": 0.0, **NO_PARTS}, "window_empty"),
    ("window_aggregates", {"count_n": None}, "window_empty"),
    ("window_aggregates", {"bad_n": None, "late_n": 0}, "window_empty"),
    ("window_aggregates", {"late_n": -1}, "count_negative"),
    ("window_aggregates", {"uncertain_n": -1}, "count_negative"),
    ("window_aggregates", {"uncertain_n": 3}, "parts_exceed_count"),
    ("window_aggregates", {"censored_n": None}, "parts_exceed_count"),
    ("window_aggregates", {"late_n": 5}, "parts_exceed_count"),
    ("window_aggregates", {"count_n": 0, "bad_n": 1, "coverage": 0.5, **NO_PARTS}, "coverage_out_of_range"),
    ("window_aggregates", {"count_n": 0, "bad_n": 1, "coverage": 0.0, **NO_PARTS, "m2": math.nan}, "spread_negative"),
    ("window_aggregates", {"avg_val": math.nan}, "not_finite"),
    ("window_aggregates", {"p99": math.inf}, "not_finite"),
    ("window_aggregates", {"min_val": None}, "not_finite"),
    ("window_aggregates", {"m2": -0.1}, "spread_negative"),
    ("window_aggregates", {"m2": math.nan}, "spread_negative"),
    ("window_aggregates", {"avg_val": 3.1}, "mean_outside_min_max"),
    ("window_aggregates", {"avg_val": 0.9}, "mean_outside_min_max"),
    ("window_aggregates", {"p50": 3.1}, "percentiles_out_of_order"),
    ("window_aggregates", {"p99": 2.9}, "percentiles_out_of_order"),
    ("window_aggregates", {"coverage": 0.0}, "coverage_out_of_range"),
    ("window_aggregates", {"coverage": 1.1}, "coverage_out_of_range"),
    ("window_aggregates", {"coverage": None}, "coverage_out_of_range"),
    ("anomalies", {"severity": "loud"}, "severity_unknown"),
    ("anomalies", {"severity": None}, "severity_unknown"),
    ("anomalies", {"score": math.nan}, "score_not_finite"),
    ("anomalies", {"value": math.inf}, "value_not_finite"),
    ("kpis", {"value": None}, "null_without_reason"),
    ("kpis", {"reason": "no_data"}, "null_without_reason"),
    ("kpis", {"kpi": "messages", "value": math.nan}, "not_finite"),
    ("kpis", {"kpi": "messages", "value": math.inf}, "not_finite"),
    ("kpis", {"numerator": -1.0}, "part_negative"),
    ("kpis", {"denominator": math.nan}, "part_negative"),
    ("kpis", {"value": 1.01}, "share_out_of_range"),
    ("kpis", {"value": -0.01}, "share_out_of_range"),
]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(_env_file=None)


def frame_of(asset: AssetName, rows: int, changes: dict[int, dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{**GOOD[asset], **changes.get(row, {})} for row in range(rows)], infer_schema_length=None)


@pytest.mark.parametrize("asset", GOOD)
def test_good_rows_pass(asset: AssetName, settings: Settings) -> None:
    result = run_gate(suite_for(asset, SENSOR, settings), frame_of(asset, 5, {}))
    assert result.passed
    assert result.rows == 5
    assert [outcome.failed for outcome in result.outcomes] == [0] * len(result.outcomes)


@pytest.mark.parametrize(("asset", "change", "reason"), BAD)
def test_each_bad_row_is_found_at_its_place_with_its_reason(
    asset: AssetName, change: dict[str, Any], reason: str, settings: Settings
) -> None:
    result = run_gate(suite_for(asset, SENSOR, settings), frame_of(asset, 7, {3: change}))
    assert result.reasons == {3: reason}
    assert result.failed_rows == (3,)
    assert {o.reason: (o.failed, o.sample_rows) for o in result.outcomes if o.failed}[reason] == (1, (3,))


def test_every_expectation_has_a_bad_row_that_only_it_explains(settings: Settings) -> None:
    for asset in GOOD:
        reasons = {expect.reason for expect in suite_for(asset, SENSOR, settings).expectations}
        assert reasons == {reason for bad_asset, _, reason in BAD if bad_asset == asset}, asset


def test_without_an_expectation_its_bad_row_passes(settings: Settings) -> None:
    for asset, change, reason in BAD:
        suite = suite_for(asset, SENSOR, settings)
        without = dataclasses.replace(
            suite, expectations=tuple(expect for expect in suite.expectations if expect.reason != reason)
        )
        assert reason not in run_gate(without, frame_of(asset, 3, {1: change})).reasons.values()


def test_a_row_that_fails_twice_has_the_first_reason_and_counts_in_both(settings: Settings) -> None:
    frame = frame_of("raw_events", 4, {2: {"since_start_s": -1.0, "payload_bytes": 0}})
    result = run_gate(suite_for("raw_events", SENSOR, settings), frame)
    assert result.reasons == {2: "before_partitions_start"}
    assert {outcome.reason: outcome.failed for outcome in result.outcomes if outcome.failed} == {
        "before_partitions_start": 1,
        "payload_size": 1,
    }


def test_all_rows_may_fail_and_the_sample_is_bounded(settings: Settings) -> None:
    frame = frame_of("anomalies", 50, {row: {"score": math.inf} for row in range(50)})
    result = run_gate(suite_for("anomalies", SENSOR, settings), frame)
    assert result.failed_rows == tuple(range(50))
    assert [o.sample_rows for o in result.outcomes if o.failed] == [tuple(range(20))]


def test_a_window_with_only_bad_samples_passes_without_figures(settings: Settings) -> None:
    figures = dict.fromkeys(("avg_val", "min_val", "max_val", "p50", "p95", "p99"), math.nan)
    blank = {"count_n": 0, "bad_n": 2, "coverage": 0.0, "m2": 0.0, **NO_PARTS, "late_n": 2, **figures}
    result = run_gate(
        suite_for("window_aggregates", SENSOR, settings), frame_of("window_aggregates", 3, {1: blank})
    )
    assert result.passed


def test_an_unknown_kpi_with_a_reason_passes(settings: Settings) -> None:
    unknown = {"value": None, "reason": "no_data", "numerator": None, "denominator": None}
    result = run_gate(
        suite_for("kpis", SENSOR, settings), frame_of("kpis", 3, {0: unknown, 1: unknown, 2: unknown})
    )
    assert result.passed


def test_a_share_may_pass_1_where_it_is_not_one(settings: Settings) -> None:
    result = run_gate(suite_for("kpis", SENSOR, settings), frame_of("kpis", 2, {1: {"kpi": "oee", "value": 1.2}}))
    assert result.passed


def test_rounding_of_a_merged_mean_is_no_failure(settings: Settings) -> None:
    change = {"min_val": 0.1, "max_val": 0.1, "avg_val": 0.10000000000000002, "p50": 0.1, "p95": 0.1, "p99": 0.1}
    result = run_gate(
        suite_for("window_aggregates", SENSOR, settings), frame_of("window_aggregates", 2, {0: change})
    )
    assert result.passed


def test_an_empty_frame_passes_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_batch_definition", lambda: pytest.fail("Great Expectations was asked"))
    suite = suite_for("kpis", SENSOR, settings)
    result = run_gate(suite, frame_of("kpis", 1, {}).clear())
    assert result.passed
    assert len(result.outcomes) == len(suite.expectations)


def test_rows_keep_their_numbers_across_slices(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "SLICE_ROWS", 4)
    bad = {row: {"value": math.nan} for row in (0, 3, 4, 9)}
    frame = frame_of("normalized_measurements", 10, bad)
    result = run_gate(suite_for("normalized_measurements", SENSOR, settings), frame)
    assert result.failed_rows == (0, 3, 4, 9)
    assert next(outcome.sample_rows for outcome in result.outcomes) == (0, 3, 4, 9)


def with_expectations(*expectations: Expect) -> Domain:
    return dataclasses.replace(SENSOR, expectations=expectations)


def test_a_domain_adds_its_own_expectations_on_any_column(settings: Settings) -> None:
    domain = with_expectations(
        Expect(
            "normalized_measurements",
            "expect_column_values_to_match_regex",
            "machine_id",
            "machine_name",
            (("regex", "^mc-"),),
        ),
        Expect("kpis", "expect_column_values_to_not_be_null", "value", "kpi_unknown"),
    )
    suite = suite_for("normalized_measurements", domain, settings)
    result = run_gate(suite, frame_of("normalized_measurements", 4, {1: {"machine_id": "press-7"}}))
    assert result.reasons == {1: "machine_name"}


def test_an_expectation_that_cannot_be_evaluated_is_an_error_and_never_passed(settings: Settings) -> None:
    domain = with_expectations(
        Expect(
            "normalized_measurements",
            "expect_column_values_to_be_between",
            "machine_id",
            "nonsense",
            (("min_value", 3),),
        )
    )
    with pytest.raises(GateError, match=r"expect_column_values_to_be_between of machine_id could not be"):
        run_gate(
            suite_for("normalized_measurements", domain, settings),
            frame_of("normalized_measurements", 3, {}),
        )


def test_a_column_that_is_not_there_is_an_error_that_names_it(settings: Settings) -> None:
    domain = with_expectations(
        Expect("anomalies", "expect_column_values_to_not_be_null", "color", "color_missing")
    )
    with pytest.raises(GateError, match=r"no column 'color'; there are severity"):
        run_gate(suite_for("anomalies", domain, settings), frame_of("anomalies", 1, {}))


def test_an_expectation_about_a_whole_column_is_refused(settings: Settings) -> None:
    domain = with_expectations(
        Expect("anomalies", "expect_column_mean_to_be_between", "score", "mean", (("max_value", 1.0),))
    )
    with pytest.raises(GateError, match="not about single rows"):
        run_gate(suite_for("anomalies", domain, settings), frame_of("anomalies", 1, {}))


def test_a_suite_refuses_an_expectation_about_another_asset() -> None:
    expect = Expect("kpis", "expect_column_values_to_not_be_null", "value", "x")
    with pytest.raises(GateError, match="put it into that asset's suite"):
        GateSuite("anomalies", "sensor", (expect,), lambda frame: frame)


@pytest.mark.parametrize(
    ("rows_seen", "rows_failed", "quarantined"),
    [
        (100, 50, False),  # half is the limit, and it is not passed
        (100, 51, True),
        (99, 99, False),  # too few rows to say
        (10_000, 5_001, True),
        (0, 0, False),
    ],
)
def test_a_domain_partition_is_quarantined_above_the_ratio_once_it_has_enough_rows(
    rows_seen: int, rows_failed: int, quarantined: bool
) -> None:
    assert quarantines(SENSOR, rows_seen, rows_failed) is quarantined


EDGES = [0.0, -0.0, 1.0, 0.5, 5e-324, math.nextafter(1.0, 2.0), math.inf, -math.inf, math.nan]
BOUNDS: list[dict[str, float | bool]] = [
    {"min_value": 0.0},
    {"max_value": 1.0},
    {"min_value": 0.0, "max_value": 1.0, "strict_min": True},
    {"min_value": 0.0, "max_value": 1.0, "strict_max": True},
]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("value", EDGES)
def test_ranges_put_together_refuse_what_each_refuses_alone(value: float, bounds: dict[str, float | bool]) -> None:
    asked = Expect("kpis", RANGE, "value", "asked", tuple(bounds.items()))
    other = Expect("kpis", RANGE, "other", "other", (("min_value", 0),))
    frame = pl.DataFrame({"value": [0.5, value], "other": [1, 1]})

    alone = run_gate(GateSuite("kpis", "alone", (asked,), lambda rows: rows), frame)
    together = run_gate(GateSuite("kpis", "together", (asked, other), lambda rows: rows), frame)

    assert together.reasons == alone.reasons
