"""Gates of the tables of counters. Each expectation is broken once; and what is declared of counters is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from analytics_pipeline.assets.measurements.series_rows import NOT_INT64, NOT_WHOLE, SOUND, reading_values
from analytics_pipeline.domains.base import CounterLimits
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.records import AssetName
from analytics_pipeline.settings import load_settings
from analytics_pipeline_tests.domains.counters import DOMAIN

ASSETS: dict[str, AssetName] = {
    "counter_readings": "normalized_measurements",
    "counter_increments": "window_aggregates",
}
GOOD: dict[str, dict[str, Any]] = {
    "counter_readings": {"reading": 0, "fault": SOUND, "machine_id": "l-1", "metric": "pieces"},
    "counter_increments": {
        **{"increment": 7, "reason": None, "readings": 4, "resets": 1, "roll_overs": 1, "swaps": 1},
        **{"unknown_n": 2, "gaps_spanned": 4},
    },
}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("counter_readings", {"fault": NOT_WHOLE}, "reading_not_whole"),
    ("counter_readings", {"fault": NOT_INT64}, "reading_out_of_range"),
    ("counter_readings", {"reading": -1}, "reading_negative"),
    ("counter_readings", {"metric": None}, "metric_missing"),
    ("counter_readings", {"machine_id": ""}, "name_empty"),
    ("counter_readings", {"machine_id": "x" * 257}, "name_too_long"),
    ("counter_readings", {"machine_id": "a\0b"}, "nul_character"),
    ("counter_increments", {"readings": 0, "resets": 0, "roll_overs": 0, "swaps": 0, "unknown_n": 0,
                            "gaps_spanned": 0}, "window_empty"),
    ("counter_increments", {"increment": -1}, "increment_negative"),
    ("counter_increments", {"increment": None}, "null_without_reason"),
    ("counter_increments", {"reason": "swap"}, "null_without_reason"),
    ("counter_increments", {"resets": 2}, "more_increments_than_readings"),
    ("counter_increments", {"swaps": 3}, "more_increments_than_readings"),
    ("counter_increments", {"gaps_spanned": 5}, "more_increments_than_readings"),
]  # fmt: skip


def frame_of(table: str, rows: int, changes: dict[int, dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{**GOOD[table], **changes.get(row, {})} for row in range(rows)], infer_schema_length=None)


@pytest.mark.parametrize(("table", "change", "reason"), BAD)
def test_each_bad_row_is_found_at_its_place_with_its_reason(table: str, change: dict[str, Any], reason: str) -> None:
    suite = suite_for(ASSETS[table], DOMAIN, load_settings(_env_file=None), table)
    assert run_gate(suite, frame_of(table, 5, {})).passed
    assert run_gate(suite, frame_of(table, 7, {3: change})).reasons == {3: reason}


@pytest.mark.parametrize("table", ASSETS)
def test_every_expectation_has_a_bad_row(table: str) -> None:
    suite = suite_for(ASSETS[table], DOMAIN, load_settings(_env_file=None), table)
    reasons = {one.reason for one in suite.expectations}
    assert reasons == {reason for name, _, reason in BAD if name == table}


@pytest.mark.parametrize(
    ("told", "reading", "fault"),
    [
        (0, 0, SOUND),
        (2**63 - 1, 2**63 - 1, SOUND),
        (2**63, 0, NOT_INT64),
        (2**128, 0, NOT_INT64),  # beyond any integer of Polars
        (-(2**63), -(2**63), SOUND),
        (-(2**63) - 1, 0, NOT_INT64),
        (-5, -5, SOUND),
        (7.0, 7, SOUND),
        (2.0**53, 2**53, SOUND),
        (2.0**53 + 2, 0, NOT_INT64),
        (7.5, 0, NOT_WHOLE),
        (float("nan"), 0, NOT_WHOLE),
        (float("inf"), 0, NOT_WHOLE),
    ],
)
def test_a_number_is_a_reading_if_it_is_exactly_one_int64(told: float, reading: int, fault: int) -> None:
    assert reading_values([told]).rows() == [(reading, fault)]
    assert reading_values([2**53 + 1, told]).rows() == [(2**53 + 1, SOUND), (reading, fault)]


@pytest.mark.parametrize("told", ["7", None, True, [7]])
def test_what_is_no_number_is_an_error_of_the_domain(told: Any) -> None:
    with pytest.raises(TypeError, match="a reading is a number"):
        reading_values([1, told])


@pytest.mark.parametrize(
    "declared", [{"modulus": 0}, {"modulus": -1}, {"modulus": 2**63}, {"max_rate_per_s": 0.0},
                 {"max_rate_per_s": float("nan")}, {"max_rate_per_s": float("inf")}]
)  # fmt: skip
def test_limits_that_no_counter_has_are_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of 'pieces': above 0"):
        CounterLimits("pieces", **declared)


def test_a_metric_whose_limits_are_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="name a metric twice: pieces, pieces"):
        replace(DOMAIN, counter_limits=(CounterLimits("pieces"), CounterLimits("pieces", 10)))
