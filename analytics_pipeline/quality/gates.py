"""Runs Great Expectations over a frame before it is written: frame in, result out.

What is expected is not said here but in ``suites.py`` and by the domains. No SQL, Kafka, Dagster or clock.

Great Expectations costs about 5 ms an expectation before it looks at a row, and as much again to say which rows
fail. So all ranges of a suite are first put together as one column, which counts the ranges that a row is outside of,
and one expectation about it; each is asked about separately only where that fails. Of the others a gate asks for pass
or fail first, and for the rows only of what failed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.domains.base import Domain, Expect
from analytics_pipeline.errors import PipelineError
from analytics_pipeline.records import SAMPLE_ROWS, AssetName, ExpectationOutcome, GateResult

#: What can be put together: the expectation, and its arguments.
RANGE = "expect_column_values_to_be_between"
RANGE_ARGUMENTS = frozenset({"min_value", "max_value", "strict_min", "strict_max"})
#: The column that counts the ranges that a row is outside of, and the position of the expectation about it.
OUTSIDE, TOGETHER = "ranges that the row is outside of", -1

#: Rows handed to pandas at once: bounds the copy's memory. A slice of this size costs 0.1 s.
SLICE_ROWS = 250_000

# Batches of one asset share an identity inside Great Expectations, and a code server evaluates in threads.
_ONE_AT_A_TIME = threading.Lock()


class GateError(PipelineError):
    """A gate that could not be evaluated. Never the same as a row that fails."""


@dataclass(frozen=True)
class GateSuite:
    """What the rows of one asset must hold to, of one domain or of several together.

    Attributes:
        expectations: in the order in which a row's first reason is chosen.
        measures: from the asset's frame, the columns that the expectations look at, one row for one. Numbers
            derived here with polars are cheaper to validate than texts. Expectations skip what is null, so what
            must be there is measured as infinite where it is missing: see `required`.
    """

    asset: AssetName
    domain: str
    expectations: tuple[Expect, ...]
    measures: Callable[[pl.DataFrame], pl.DataFrame] = field(compare=False)

    def __post_init__(self) -> None:
        for expect in self.expectations:
            if expect.asset != self.asset:
                raise GateError(
                    f"{self.domain}: {expect.expectation} of {expect.column} is about {expect.asset}, "
                    f"not {self.asset}; put it into that asset's suite"
                )


def quarantines(domain: Domain, rows_seen: int, rows_failed: int) -> bool:
    """Whether a domain partition is refused as a whole. Both counts are over its whole content so far."""
    return rows_seen >= domain.min_gate_rows and rows_failed > domain.max_failed_ratio * rows_seen


def required(*columns: str) -> list[pl.Expr]:
    """These number columns, infinite where there is none, so that a range rejects what is missing or NaN."""
    return [pl.col(name).cast(pl.Float64).fill_null(np.inf).fill_nan(np.inf) for name in columns]


def run_gate(suite: GateSuite, frame: pl.DataFrame) -> GateResult:
    """Validate every row of the frame. Row numbers in the result are those of the frame.

    Raises:
        GateError: an expectation could not be evaluated, names a column that there is not, or is not about
            single rows.
    """
    if not frame.height or not suite.expectations:
        return GateResult(
            asset=suite.asset, domain=suite.domain, rows=frame.height, reasons={}, outcomes=_all_passed(suite)
        )
    failed: dict[int, list[int]] = {}
    for start in range(0, frame.height, SLICE_ROWS):
        checked = _to_pandas(suite, frame.slice(start, SLICE_ROWS))
        with _ONE_AT_A_TIME:
            for position, rows in _failing_rows(suite, checked).items():
                failed.setdefault(position, []).extend(start + row for row in rows)
    return _gate_result(suite, frame.height, failed)


def warm_up() -> None:
    """Import Great Expectations and make its context: 3 s that a worker spends before its first run."""
    _batch_definition()


def _all_passed(suite: GateSuite) -> tuple[ExpectationOutcome, ...]:
    return tuple(
        ExpectationOutcome(name=e.expectation, column=e.column, reason=e.reason, failed=0) for e in suite.expectations
    )


def _gate_result(suite: GateSuite, rows: int, failed: dict[int, list[int]]) -> GateResult:
    reasons: dict[int, str] = {}
    outcomes = []
    for position, expect in enumerate(suite.expectations):
        failing = sorted(failed.get(position, ()))
        for row in failing:
            reasons.setdefault(row, expect.reason)
        sample = tuple(failing[:SAMPLE_ROWS])
        outcomes.append(
            ExpectationOutcome(
                name=expect.expectation,
                column=expect.column,
                reason=expect.reason,
                failed=len(failing),
                sample_rows=sample,
            )
        )
    return GateResult(asset=suite.asset, domain=suite.domain, rows=rows, reasons=reasons, outcomes=tuple(outcomes))


def _to_pandas(suite: GateSuite, frame: pl.DataFrame) -> Any:
    import pandas as pd

    measured = suite.measures(frame)
    columns = {}
    for name in dict.fromkeys(expect.column for expect in suite.expectations):
        source = measured if name in measured.columns else frame
        if name not in source.columns:
            raise GateError(
                f"gate of {suite.asset}, {suite.domain}: no column {name!r}; "
                f"there are {', '.join(dict.fromkeys((*measured.columns, *frame.columns)))}"
            )
        columns[name] = _to_numpy(source[name])
    return pd.DataFrame(columns, copy=False)


def _to_numpy(column: pl.Series) -> Any:
    """Through numpy, because polars' own way to pandas needs a further library."""
    if column.dtype.is_numeric():
        # Great Expectations compares whole columns of these two types, of any other value by value.
        column = column.cast(pl.Int64 if column.dtype.is_integer() else pl.Float64)
    return column.to_numpy()


def _failing_rows(suite: GateSuite, checked: Any) -> dict[int, list[int]]:
    """Failing rows by the position of the expectation, for expectations that fail."""
    ranges = _put_together(suite, checked)
    batch = _batch_definition().get_batch({"dataframe": checked})
    others = tuple(position for position in range(len(suite.expectations)) if position not in ranges)
    results = _validate(suite, batch, ((TOGETHER, *others) if ranges else others), "BOOLEAN_ONLY")
    suspects = {position for position in others if not results[position].success}
    if ranges and not results[TOGETHER].success:
        suspects |= {p for p, one in _validate(suite, batch, ranges, "BOOLEAN_ONLY").items() if not one.success}
    if not suspects:
        return {}
    failed = {}
    for position, result in _validate(suite, batch, sorted(suspects), "COMPLETE").items():
        rows = result.result.get("unexpected_index_list")
        if not rows:
            raise GateError(f"{_name(suite, position)} fails but names no row; gates take expectations about rows")
        failed[position] = [int(row) for row in rows]
    return failed


def _put_together(suite: GateSuite, checked: Any) -> tuple[int, ...]:
    """Adds the column `OUTSIDE`; returns the positions of the expectations that it stands for, if they are several.

    As Great Expectations has it, what is NaN is in every range.
    """
    positions = tuple(
        position
        for position, expect in enumerate(suite.expectations)
        if expect.expectation == RANGE
        and dict(expect.arguments).keys() <= RANGE_ARGUMENTS
        and checked[expect.column].dtype.kind in "if"
    )
    if len(positions) < 2:
        return ()
    outside = np.zeros(len(checked), np.int64)
    for position in positions:
        expect = suite.expectations[position]
        outside += _is_outside(checked[expect.column].to_numpy(), **dict(expect.arguments))
    checked[OUTSIDE] = outside
    return positions


def _is_outside(
    values: Any, *, min_value: Any = None, max_value: Any = None, strict_min: bool = False, strict_max: bool = False
) -> Any:
    outside = np.zeros(len(values), np.bool_)
    if min_value is not None:
        outside |= values <= min_value if strict_min else values < min_value
    if max_value is not None:
        outside |= values >= max_value if strict_max else values > max_value
    return outside


def _validate(suite: GateSuite, batch: Any, positions: Sequence[int], detail: str) -> dict[int, Any]:
    outcome = batch.validate(_suite_of(suite, tuple(positions)), result_format={"result_format": detail})
    results: dict[int, Any] = {}
    for result in outcome.results:
        position = result.expectation_config.meta["position"]
        if trouble := _exception_in(result.exception_info):
            raise GateError(f"{_name(suite, position)} could not be evaluated: {trouble}")
        results[position] = result
    if set(results) != set(positions):
        missing = min(set(positions) - set(results))
        raise GateError(f"{_name(suite, missing)} was not evaluated; Great Expectations gave no result for it")
    return dict(sorted(results.items()))


def _exception_in(info: Any) -> str | None:
    """The message of an exception that Great Expectations caught; it nests them by metric, or does not."""
    if not info:
        return None
    if "raised_exception" in info:
        return str(info["exception_message"]) if info["raised_exception"] else None
    return next((text for nested in info.values() if (text := _exception_in(nested))), None)


def _name(suite: GateSuite, position: int) -> str:
    if position == TOGETHER:
        return f"gate of {suite.asset}, {suite.domain}: all ranges together"
    expect = suite.expectations[position]
    return f"gate of {suite.asset}, {suite.domain}: {expect.expectation} of {expect.column}"


@lru_cache(maxsize=256)
def _suite_of(suite: GateSuite, positions: tuple[int, ...]) -> Any:
    import great_expectations as gx

    return gx.ExpectationSuite(
        name=f"{suite.asset}.{suite.domain}",
        expectations=[_expectation(suite, position) for position in positions],
    )


def _expectation(suite: GateSuite, position: int) -> Any:
    from great_expectations.expectations.expectation import ColumnMapExpectation
    from great_expectations.expectations.registry import get_expectation_impl

    if position == TOGETHER:
        together: Any = get_expectation_impl(RANGE)
        return together(column=OUTSIDE, meta={"position": position}, max_value=0)
    expect = suite.expectations[position]
    kind: Any = get_expectation_impl(expect.expectation)
    if not issubclass(kind, ColumnMapExpectation):
        raise GateError(f"{_name(suite, position)} is not about single rows; a gate has no row to refuse")
    # Hashable in a frozen suite, lists where Great Expectations wants them.
    arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in expect.arguments}
    meta = {"reason": expect.reason, "position": position}
    return kind(column=expect.column, meta=meta, **arguments)


@lru_cache(maxsize=1)
def _batch_definition() -> Any:
    """The one context of this process. It writes no files, tells nobody, draws no progress bars."""
    # Read when it is imported and when a context is made; later is too late for some of its versions.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    context.variables.analytics_enabled = False
    asset = context.data_sources.add_pandas("gate").add_dataframe_asset("frame")
    return asset.add_batch_definition_whole_dataframe("whole")
