"""Stands in for Great Expectations where it is not what is tested: it takes 50 ms a call."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import structlog

from analytics_pipeline.assets import derive, slice_protocol
from analytics_pipeline.assets.raw_events import classify
from analytics_pipeline.quality.gates import GateError, GateSuite
from analytics_pipeline.records import ExpectationOutcome, GateResult


def quick_gate(suite: GateSuite, frame: pl.DataFrame) -> GateResult:
    """What Great Expectations says of expectations about ranges, which are all that fail here."""
    measured = suite.measures(frame)
    reasons: dict[int, str] = {}
    outcomes = []
    for expect in suite.expectations:
        failing = [] if "value_set" in dict(expect.arguments) else _failing(suite, measured, frame, expect)
        for row in failing:
            reasons.setdefault(row, expect.reason)
        outcomes.append(ExpectationOutcome(
            name=expect.expectation, column=expect.column, reason=expect.reason, failed=len(failing)
        ))
    return GateResult(
        asset=suite.asset, domain=suite.domain, rows=frame.height, reasons=reasons, outcomes=tuple(outcomes)
    )


def _failing(suite: GateSuite, measured: pl.DataFrame, frame: pl.DataFrame, expect: object) -> list[int]:
    name, bounds = expect.column, dict(expect.arguments)  # type: ignore[attr-defined]
    source = measured if name in measured.columns else frame
    if name not in source.columns:
        raise GateError(f"gate of {suite.asset}, {suite.domain}: no column {name!r}")
    values = source[name].cast(pl.Float64).to_numpy()
    with np.errstate(invalid="ignore"):
        fails = (values < bounds.get("min_value", -np.inf)) | (values > bounds.get("max_value", np.inf))
    return [int(row) for row in np.flatnonzero(fails)]


def _drop(*_: object) -> str:
    raise structlog.DropEvent


def use_quick_gates(patch: pytest.MonkeyPatch) -> None:
    """In the drain and in the deriver of this process; and no pages of traceback of errors that a test means."""
    patch.setattr(derive, "log", structlog.wrap_logger(structlog.ReturnLogger(), processors=[_drop]))
    for module in (classify, slice_protocol):
        patch.setattr(module, "run_gate", quick_gate)
