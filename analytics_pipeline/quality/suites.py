"""What every gate expects, as code: one suite per table. Nothing is evaluated here.

Each table has expectations that hold for every domain; a domain adds its own in ``Domain.expectations``, and
they may name any column of the table's frame or of the measures below. Reasons are stable words: people count
and search dead letters by them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analytics_pipeline.assets.measurements.series_rows import NOT_INT64, NOT_WHOLE
from analytics_pipeline.domains.base import Domain, Expect
from analytics_pipeline.quality.gates import GateError, GateSuite, required
from analytics_pipeline.records import AssetName
from analytics_pipeline.settings import Settings

#: The largest finite double: what lies beyond is infinite.
LARGEST = sys.float_info.max

#: The greatest magnitude of a measurement: beyond, the sum of squared deviations of ten million samples would be
#: infinite, (2e150)² · 1e7 = 4e307. Sentinels such as 1.797e308, with which devices say "invalid", are beyond.
LARGEST_VALUE = 1e150

#: Names of tenants, machines, metrics: longer than any real one, and short enough for an index row.
MAX_NAME_BYTES = 256

#: The text of an event's own id.
MAX_EVENT_ID_BYTES = 200

#: Properties of one event: a quarter of the longest message that Kafka takes by default.
MAX_PROPERTIES_BYTES = 262_144

#: A mean that was merged may leave [min, max] by rounding. Relative to the larger of the two.
ROUNDING = 1e-9

SEVERITIES = ("info", "warning", "critical")

#: KPIs that are a share of something, so that they lie in [0, 1]. Others, such as OEE, may pass 1.
SHARES = ("coverage", "share_in_spec")

#: The text columns of a measurement, those that are in the frame.
NAME_COLUMNS = ("tenant_id", "factory_id", "machine_id", "station_id", "sensor_id", "metric", "unit")

#: The names of an event: each at most `MAX_NAME_BYTES`, none of them empty.
EVENT_NAMES = ("tenant_id", "factory_id", "machine_id", "entity_type", "entity_id", "event_type", "user_id")
#: Those that must be there.
EVENT_REQUIRED = ("entity_type", "entity_id", "event_type", "properties")

#: NUL in JSON text: the escape, but not a backslash that is followed by the same letters.
_ESCAPED_NUL = r"(?:^|[^\\])(?:\\\\)*\\u0000"

#: What is measured of a sample's value.
_OF_VALUE = ("value", "magnitude")

Measures = Callable[[pl.DataFrame], pl.DataFrame]


def suite_for(
    asset: AssetName, domains: Domain | Sequence[tuple[Domain, int]], settings: Settings, table: str = ""
) -> GateSuite:
    """The suite of one table of an asset (empty: of its first one), for the rows of one domain, or of several with
    their numbers.

    Frames, one row for one (further columns are ignored unless a domain's expectation names them). Of several
    domains, the column ``domain_id`` tells whose a row is:

    * raw_events: ``ahead_s, since_start_s, since_floor_s, payload_bytes``
    * normalized_measurements: ``value`` and, of `NAME_COLUMNS`, those that it has; ``metric`` always; and where
      samples may have no value, ``without_value``: such a value is in every range
    * normalized_events: `EVENT_NAMES`, ``event_id, properties, value``
    * state_changes: as normalized_measurements, with ``state`` instead of ``value``
    * counter_readings: as normalized_measurements, with ``reading`` and ``fault`` instead of ``value``
    * window_aggregates: ``count_n, avg_val, m2, min_val, max_val, p50, p95, p99, coverage`` and ``bad_n, uncertain_n,
      censored_n, late_n``
    * event_rollups: ``count_n, value_n, sum_val``
    * state_durations: ``duration_us, window_s``
    * carried_states: ``state``
    * counter_increments: ``increment, reason, readings, resets, roll_overs, swaps, unknown_n, gaps_spanned``
    * anomalies: ``severity, value, score``
    * kpis: ``kpi, value, reason, numerator, denominator``
    """
    known = ((domains, 0),) if isinstance(domains, Domain) else tuple(domains)
    return _suite(asset, table or asset, known, settings.future_tolerance_s, settings.max_message_bytes)


@lru_cache(maxsize=256)
def _suite(
    asset: AssetName,
    table: str,
    domains: tuple[tuple[Domain, int], ...],
    future_tolerance_s: int,
    max_message_bytes: int,
) -> GateSuite:
    if asset == "raw_events":
        common = _raw_events(future_tolerance_s, max_message_bytes)
    elif table in _COMMON:
        common = _COMMON[table]
    else:
        raise GateError(f"no gate for table {table!r}; there are raw_events, {', '.join(_COMMON)}")
    own = [
        (domain, number, expect)
        for domain, number in domains
        for expect in domain.expectations
        if expect.asset == asset and (expect.table or asset) == table
    ]
    names = ", ".join(domain.name for domain, _ in domains)
    if len(domains) == 1:
        return GateSuite(asset, names, common + tuple(expect for *_, expect in own), _MEASURES[table])
    masked = tuple(replace(expect, column=_masked(expect.column, domain)) for domain, _, expect in own)
    return GateSuite(asset, names, common + masked, _with_masks(_MEASURES[table], own))


def _masked(column: str, domain: Domain) -> str:
    return f"{column} of {domain.name}"


def _with_masks(measures: Measures, own: Sequence[tuple[Domain, int, Expect]]) -> Measures:
    """The measures, and for each expectation of a single domain its column: null, so skipped, where a row is
    another domain's; infinite where its own value is missing."""
    if not own:
        return measures

    def measured(frame: pl.DataFrame) -> pl.DataFrame:
        found = measures(frame)
        columns = {}
        for domain, number, expect in own:
            source = found if expect.column in found.columns else frame
            if expect.column not in source.columns:
                raise GateError(f"gate of {expect.asset}, {domain.name}: no column {expect.column!r}")
            column = source[expect.column]
            if column.dtype.is_numeric():
                column = column.cast(pl.Float64).fill_null(np.inf).fill_nan(np.inf)
            mine = frame["domain_id"] == number
            if "without_value" in frame.columns and expect.column in _OF_VALUE:
                mine &= ~frame["without_value"]
            columns[_masked(expect.column, domain)] = pl.select(pl.when(mine).then(column)).to_series()
        return found.with_columns(**columns)

    return measured


def _between(asset: AssetName, column: str, reason: str, **bounds: Any) -> Expect:
    return Expect(asset, "expect_column_values_to_be_between", column, reason, tuple(bounds.items()))


def _raw_events(future_tolerance_s: int, max_message_bytes: int) -> tuple[Expect, ...]:
    return (
        _between("raw_events", "since_start_s", "before_partitions_start", min_value=0, max_value=LARGEST),
        _between("raw_events", "ahead_s", "too_far_ahead", max_value=future_tolerance_s),
        _between("raw_events", "since_floor_s", "after_retention", min_value=0, max_value=LARGEST),
        _between("raw_events", "payload_bytes", "payload_size", min_value=1, max_value=max_message_bytes),
    )


_COMMON: Mapping[str, tuple[Expect, ...]] = {
    "normalized_measurements": (
        _between("normalized_measurements", "value", "not_finite", min_value=-LARGEST, max_value=LARGEST),
        _between("normalized_measurements", "magnitude", "value_out_of_range", max_value=LARGEST_VALUE),
        _between("normalized_measurements", "metric_bytes", "metric_missing", min_value=1),
        _between("normalized_measurements", "shortest_name_bytes", "name_empty", min_value=1),
        _between("normalized_measurements", "longest_name_bytes", "name_too_long", max_value=MAX_NAME_BYTES),
        # PostgreSQL refuses this character in text, and one row of it would stop a whole COPY.
        _between("normalized_measurements", "nul_characters", "nul_character", max_value=0),
    ),
    "normalized_events": (
        _between("normalized_measurements", "missing", "field_missing", max_value=0),
        _between("normalized_measurements", "value", "not_finite", min_value=-LARGEST, max_value=LARGEST),
        _between("normalized_measurements", "magnitude", "value_out_of_range", max_value=LARGEST_VALUE),
        _between("normalized_measurements", "shortest_name_bytes", "name_empty", min_value=1),
        _between("normalized_measurements", "longest_name_bytes", "name_too_long", max_value=MAX_NAME_BYTES),
        _between("normalized_measurements", "event_id_bytes", "event_id_too_long", max_value=MAX_EVENT_ID_BYTES),
        _between(
            "normalized_measurements", "properties_bytes", "properties_too_long", max_value=MAX_PROPERTIES_BYTES
        ),
        _between("normalized_measurements", "nul_characters", "nul_character", max_value=0),
    ),
    "state_changes": (
        _between("normalized_measurements", "state_bytes", "state_missing", min_value=1),
        _between("normalized_measurements", "state_bytes", "state_too_long", max_value=MAX_NAME_BYTES),
        _between("normalized_measurements", "metric_bytes", "metric_missing", min_value=1),
        _between("normalized_measurements", "shortest_name_bytes", "name_empty", min_value=1),
        _between("normalized_measurements", "longest_name_bytes", "name_too_long", max_value=MAX_NAME_BYTES),
        _between("normalized_measurements", "nul_characters", "nul_character", max_value=0),
    ),
    "counter_readings": (
        _between("normalized_measurements", "not_whole", "reading_not_whole", max_value=0),
        _between("normalized_measurements", "not_int64", "reading_out_of_range", max_value=0),
        _between("normalized_measurements", "reading", "reading_negative", min_value=0),
        _between("normalized_measurements", "metric_bytes", "metric_missing", min_value=1),
        _between("normalized_measurements", "shortest_name_bytes", "name_empty", min_value=1),
        _between("normalized_measurements", "longest_name_bytes", "name_too_long", max_value=MAX_NAME_BYTES),
        _between("normalized_measurements", "nul_characters", "nul_character", max_value=0),
    ),
    "event_rollups": (
        _between("window_aggregates", "count_n", "window_empty", min_value=1, max_value=LARGEST),
        _between("window_aggregates", "value_surplus", "more_values_than_events", max_value=0),
        _between("window_aggregates", "unexplained", "sum_without_values", max_value=0),
        _between("window_aggregates", "sum_val", "not_finite", min_value=-LARGEST, max_value=LARGEST),
    ),
    "state_durations": (
        _between("window_aggregates", "duration_us", "duration_not_positive", min_value=1),
        _between("window_aggregates", "surplus_us", "longer_than_its_window", max_value=0),
    ),
    "carried_states": (_between("window_aggregates", "state_bytes", "state_missing", min_value=1),),
    "counter_increments": (
        _between("window_aggregates", "readings", "window_empty", min_value=1),
        _between("window_aggregates", "increment", "increment_negative", min_value=0),
        _between("window_aggregates", "unexplained", "null_without_reason", max_value=0),
        _between("window_aggregates", "surplus", "more_increments_than_readings", max_value=0),
    ),
    "window_aggregates": (
        _between("window_aggregates", "samples", "window_empty", min_value=1, max_value=LARGEST),
        _between("window_aggregates", "smallest_count", "count_negative", min_value=0),
        _between("window_aggregates", "counts_surplus", "parts_exceed_count", max_value=0),
        _between("window_aggregates", "largest_figure", "not_finite", max_value=LARGEST),
        _between("window_aggregates", "m2", "spread_negative", min_value=0, max_value=LARGEST),
        _between("window_aggregates", "mean_outside", "mean_outside_min_max", max_value=ROUNDING),
        _between("window_aggregates", "percentile_disorder", "percentiles_out_of_order", max_value=0),
        _between(
            "window_aggregates", "coverage", "coverage_out_of_range", min_value=0, max_value=1, strict_min=True
        ),
    ),
    "anomalies": (
        Expect(
            "anomalies",
            "expect_column_values_to_be_in_set",
            "severity",
            "severity_unknown",
            (("value_set", SEVERITIES),),
        ),
        _between("anomalies", "score", "score_not_finite", min_value=-LARGEST, max_value=LARGEST),
        _between("anomalies", "value", "value_not_finite", min_value=-LARGEST, max_value=LARGEST),
    ),
    "kpis": (
        _between("kpis", "unexplained", "null_without_reason", max_value=0),
        _between("kpis", "value", "not_finite", min_value=-LARGEST, max_value=LARGEST),
        _between("kpis", "smallest_part", "part_negative", min_value=0),
        _between("kpis", "share", "share_out_of_range", min_value=0, max_value=1),
    ),
}


def _raw_measures(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(required("ahead_s", "since_start_s", "since_floor_s", "payload_bytes"))


def _measurement_measures(frame: pl.DataFrame) -> pl.DataFrame:
    names = frame if "metric_bytes" in frame.columns else name_measures(frame)
    value = frame.select(required("value")).to_series()
    # What is not finite at all has a reason of its own.
    magnitude = pl.select(pl.when(value.is_finite()).then(value.abs()).otherwise(0.0)).to_series()
    if "without_value" in frame.columns and frame["without_value"].any():
        value = value.set(frame["without_value"], None)
    return pl.DataFrame({"value": value, "magnitude": magnitude}).with_columns(
        names[column] for column in ("metric_bytes", "shortest_name_bytes", "longest_name_bytes", "nul_characters")
    )


def name_measures(frame: pl.DataFrame) -> pl.DataFrame:
    """What the gate of measurements looks at of names: a row per series will do, for its many samples."""
    names = [pl.col(name).cast(pl.String) for name in NAME_COLUMNS if name in frame.columns]
    lengths = [name.str.len_bytes() for name in names]
    nul = [name.str.contains("\0", literal=True).fill_null(value=False) for name in names]
    return frame.select(
        pl.col("metric").str.len_bytes().fill_null(0).alias("metric_bytes"),
        # A name may be absent; one that is there may not be empty.
        pl.min_horizontal(lengths).fill_null(1).alias("shortest_name_bytes"),
        pl.max_horizontal(lengths).fill_null(0).alias("longest_name_bytes"),
        pl.sum_horizontal(nul).cast(pl.Int64).alias("nul_characters"),
    )


def _event_measures(frame: pl.DataFrame) -> pl.DataFrame:
    names = [pl.col(name) for name in EVENT_NAMES]
    texts = [*names, pl.col("event_id")]
    value = pl.col("value").fill_nan(np.inf)
    nul = [text.str.contains("\0", literal=True).fill_null(value=False) for text in texts]
    return frame.select(
        pl.sum_horizontal(pl.col(name).is_null() for name in EVENT_REQUIRED).cast(pl.Int64).alias("missing"),
        # An event need not have a value; what is not finite at all has a reason of its own.
        value.alias("value"),
        pl.when(value.is_finite()).then(value.abs()).alias("magnitude"),
        pl.min_horizontal(text.str.len_bytes() for text in texts).fill_null(1).alias("shortest_name_bytes"),
        pl.max_horizontal(name.str.len_bytes() for name in names).fill_null(0).alias("longest_name_bytes"),
        pl.col("event_id").str.len_bytes().fill_null(0).alias("event_id_bytes"),
        pl.col("properties").str.len_bytes().fill_null(0).alias("properties_bytes"),
        pl.sum_horizontal(*nul, pl.col("properties").str.contains(_ESCAPED_NUL).fill_null(value=False))
        .cast(pl.Int64)
        .alias("nul_characters"),
    )


def _state_measures(frame: pl.DataFrame) -> pl.DataFrame:
    state = pl.col("state")
    names = frame if "metric_bytes" in frame.columns else name_measures(frame)
    nul = frame.select(state.str.contains("\0", literal=True).fill_null(value=False).cast(pl.Int64)).to_series()
    return names.select(
        frame.select(state.str.len_bytes().fill_null(0)).to_series().alias("state_bytes"),
        "metric_bytes",
        "shortest_name_bytes",
        "longest_name_bytes",
        (pl.col("nul_characters") + nul).alias("nul_characters"),
    )


def _reading_measures(frame: pl.DataFrame) -> pl.DataFrame:
    names = frame if "metric_bytes" in frame.columns else name_measures(frame)
    faults = (("not_whole", NOT_WHOLE), ("not_int64", NOT_INT64))
    fault = [(frame["fault"] == code).cast(pl.Int64).alias(name) for name, code in faults]
    return names.select("metric_bytes", "shortest_name_bytes", "longest_name_bytes", "nul_characters").with_columns(
        frame["reading"], *fault
    )


def _increment_measures(frame: pl.DataFrame) -> pl.DataFrame:
    """Each reading is counted in one way, and what is unknown has a reason."""
    kinds = pl.col("resets") + pl.col("roll_overs") + pl.col("unknown_n")
    unknown, readings = pl.col("unknown_n"), pl.col("readings")
    surplus = (kinds - readings, pl.col("swaps") - unknown, pl.col("gaps_spanned") - readings)
    return frame.select(
        "readings",
        "increment",
        (pl.col("increment").is_null() == pl.col("reason").is_null()).cast(pl.Int64).alias("unexplained"),
        pl.max_horizontal(surplus).alias("surplus"),
    )


def _rollup_measures(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        *required("count_n"),
        (pl.col("value_n") - pl.col("count_n")).alias("value_surplus"),
        ((pl.col("value_n") == 0) != pl.col("sum_val").is_null()).cast(pl.Int64).alias("unexplained"),
        pl.col("sum_val").fill_nan(np.inf),
    )


def _duration_measures(frame: pl.DataFrame) -> pl.DataFrame:
    surplus_us = pl.col("duration_us") - pl.col("window_s").cast(pl.Int64) * 1_000_000
    return frame.select("duration_us", surplus_us.alias("surplus_us"))


def _carried_measures(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col("state").str.len_bytes().fill_null(0).alias("state_bytes"))


def _window_measures(frame: pl.DataFrame) -> pl.DataFrame:
    figures = ("avg_val", "min_val", "max_val", "p50", "p95", "p99")
    counts = ("count_n", "bad_n", "uncertain_n", "censored_n", "late_n")
    good, bad, uncertain, censored, late = required(*counts)
    # A window with only bad samples has no figures: null is in every range. A count that is missing hides none.
    has_figures = good != 0
    low, mean, high = pl.col("min_val"), pl.col("avg_val"), pl.col("max_val")
    outside = pl.max_horizontal(low - mean, mean - high, 0.0)
    scale = pl.max_horizontal(low.abs(), high.abs())
    disorder = pl.max_horizontal(pl.col("p50") - pl.col("p95"), pl.col("p95") - pl.col("p99"), 0.0)
    # Beyond what a double holds, low minus mean is infinite though both are finite; so divide first.
    outside_share = pl.when(outside == 0.0).then(0.0).otherwise(outside / scale)
    (m2,), (coverage,) = required("m2"), required("coverage")
    return frame.select(
        (good + bad).alias("samples"),
        pl.min_horizontal(required(*counts)).alias("smallest_count"),
        pl.max_horizontal(uncertain + censored - good, late - good - bad).fill_nan(np.inf).alias("counts_surplus"),
        m2.alias("m2"),
        pl.when(has_figures)
        .then(pl.max_horizontal([column.abs() for column in required(*figures)]))
        .alias("largest_figure"),
        pl.when(has_figures).then(outside_share.fill_nan(np.inf)).alias("mean_outside"),
        pl.when(has_figures).then(disorder.fill_nan(np.inf)).alias("percentile_disorder"),
        pl.when(has_figures).then(coverage).otherwise(pl.when(coverage != 0).then(np.inf)).alias("coverage"),
    )


def _anomaly_measures(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col("severity").fill_null(""), *required("score", "value"))


def _kpi_measures(frame: pl.DataFrame) -> pl.DataFrame:
    value, reason = pl.col("value").cast(pl.Float64), pl.col("reason")
    is_share = pl.col("kpi").is_in(SHARES)
    parts = [pl.col(name).cast(pl.Float64).fill_nan(-np.inf) for name in ("numerator", "denominator")]
    return frame.select(
        (value.is_null() == reason.is_null()).cast(pl.Int64).alias("unexplained"),
        # Unknown is not zero: a NULL with a reason is right, NaN never is.
        value.fill_nan(np.inf),
        pl.min_horizontal(parts).alias("smallest_part"),
        pl.when(is_share).then(value.fill_nan(np.inf)).alias("share"),
    )


_MEASURES: Mapping[str, Measures] = {
    "raw_events": _raw_measures,
    "normalized_measurements": _measurement_measures,
    "normalized_events": _event_measures,
    "state_changes": _state_measures,
    "counter_readings": _reading_measures,
    "event_rollups": _rollup_measures,
    "state_durations": _duration_measures,
    "carried_states": _carried_measures,
    "counter_increments": _increment_measures,
    "window_aggregates": _window_measures,
    "anomalies": _anomaly_measures,
    "kpis": _kpi_measures,
}
