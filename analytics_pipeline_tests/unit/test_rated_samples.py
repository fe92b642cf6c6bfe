"""Samples with a quality: how they are decoded, and which of them pass the gate."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from analytics_pipeline.assets.measurements.transform import decode_samples
from analytics_pipeline.domains.base import ABOVE, BAD, BELOW, GOOD, QUALITIES, UNCERTAIN, Expect
from analytics_pipeline.domains.sensor import DOMAIN as SENSOR
from analytics_pipeline.quality.gates import run_gate
from analytics_pipeline.quality.suites import suite_for
from analytics_pipeline.settings import load_settings
from analytics_pipeline_tests.domains import rated
from analytics_pipeline_tests.pipeline import reading

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SETTINGS = load_settings(_env_file=None)


def payloads(*values: tuple[Any, str]) -> list[bytes]:
    return [rated.message(NOON, value, quality) for value, quality in values]


def gated(*values: tuple[Any, str]) -> dict[int, str]:
    """Why the gate refuses which of some values."""
    frame = decode_samples(payloads(*values), rated.DOMAIN).gate_frame()
    return dict(run_gate(suite_for("normalized_measurements", rated.DOMAIN, SETTINGS), frame).reasons)


def test_qualities_have_names() -> None:
    assert [QUALITIES[one] for one in (GOOD, UNCERTAIN, BAD, BELOW, ABOVE)] == list(QUALITIES)


def test_each_sample_keeps_its_quality_and_the_value_that_was_given() -> None:
    samples = decode_samples(
        payloads((1.5, "good"), (2.5, "uncertain"), (3.5, "bad"), ("<0.05", "good"), (">9", "good"), (None, "good")),
        rated.DOMAIN,
    )
    assert samples.quality is not None
    assert samples.quality.tolist() == [GOOD, UNCERTAIN, BAD, BELOW, ABOVE, BAD]
    np.testing.assert_array_equal(samples.value, [1.5, 2.5, 3.5, 0.05, 9.0, math.nan])


def test_samples_of_a_domain_without_quality_have_none() -> None:
    assert decode_samples([reading(NOON)], SENSOR).quality is None
    assert decode_samples([], SENSOR).quality is None


def test_nothing_read_has_qualities_all_the_same() -> None:
    quality = decode_samples([b"{}"], rated.DOMAIN).quality
    assert quality is not None
    assert quality.dtype == np.int16
    assert len(quality) == 0


def test_a_quality_that_does_not_exist_rejects_its_payload_alone() -> None:
    samples = decode_samples(payloads((1.0, "good"), (2.0, "nonsense"), (3.0, "bad")), rated.DOMAIN)
    assert samples.row.tolist() == [0, 2]
    assert samples.rejections[1].reason == "domain_error"
    assert "quality 7: takes 0 to 4, good, uncertain, bad, below, above" in samples.rejections[1].error


@pytest.mark.parametrize("is_rated", [True, False])
def test_a_domain_that_says_otherwise_than_its_samples_is_a_domain_error(is_rated: bool) -> None:
    """Three where four are declared, and four where three are: never a value in the wrong place."""
    domain = replace(SENSOR if is_rated else rated.DOMAIN, rated=is_rated)
    payload = reading(NOON) if is_rated else rated.message(NOON, 1.0)
    assert decode_samples([payload], domain).rejections[0].reason == "domain_error"


def test_only_a_bad_sample_may_be_without_a_value() -> None:
    assert gated((None, "good"), (None, "bad"), ("no number", "uncertain"), (1.0, "good")) == {}


def test_a_value_that_is_not_finite_is_refused_also_of_a_bad_sample() -> None:
    values = [("inf", "bad"), ("-inf", "good"), (1e200, "bad"), (2.0, "bad"), ("<inf", "good")]
    assert gated(*values) == {0: "not_finite", 1: "not_finite", 2: "value_out_of_range", 4: "not_finite"}


@pytest.mark.parametrize("quality", [GOOD, UNCERTAIN, BELOW, ABOVE])
def test_nan_is_refused_with_every_other_quality(quality: int) -> None:
    domain = replace(rated.DOMAIN, samples=lambda _: (((None,) * 5 + ("lead", None), math.nan, 0, quality),))
    frame = decode_samples(payloads((1.0, "good")), domain).gate_frame()
    reasons = run_gate(suite_for("normalized_measurements", domain, SETTINGS), frame).reasons
    assert reasons == {0: "not_finite"}


@pytest.mark.parametrize("others", [(), ((SENSOR, 2),)])
def test_a_domains_own_range_of_values_passes_over_a_sample_without_one(others: Any) -> None:
    own = Expect(
        "normalized_measurements", "expect_column_values_to_be_between", "value", "too_much", (("max_value", 9.0),)
    )
    domain = replace(rated.DOMAIN, expectations=(own,))
    frame = decode_samples(payloads((None, "bad"), (10.0, "good"), (8.0, "bad"), (10.0, "bad")), domain).gate_frame()
    frame = frame.with_columns(pl.lit(1, pl.Int64).alias("domain_id"))
    suite = suite_for("normalized_measurements", ((domain, 1), *others), SETTINGS)
    assert run_gate(suite, frame).reasons == {1: "too_much", 3: "too_much"}
