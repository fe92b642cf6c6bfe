"""KPIs of machines: numerators and denominators told, unknown kept apart from zero."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_pipeline.detectors import RobustZScore, SpecLimits
from analytics_pipeline.stages.anomalies import detect
from analytics_pipeline.stages.kpis import _COUNTS, _RATIOS, KPI_SCHEMA, machine_kpis
from analytics_pipeline.stages.windows import base_windows
from analytics_pipeline_tests import reference
from analytics_pipeline_tests.reference import Limit, Message, SeriesKey

MINUTE_US = 60 * 1_000_000
HOUR_US = 60 * MINUTE_US
NOON_US = 494_820 * HOUR_US

#: Series 1 and 2 are of one machine, 3 of another, 4 of none.
SERIES = pl.DataFrame(
    [
        (1, "t", "f", "m1", None, "s1", "temp", "C"),
        (2, "t", "f", "m1", None, "s2", "flow", "l/s"),
        (3, "t", "f", "m2", None, "s1", "temp", "C"),
        (4, "t", "f", None, "st", "s1", "temp", "C"),
    ],
    schema={
        "series_id": pl.Int32,
        **dict.fromkeys(
            ("tenant_id", "factory_id", "machine_id", "station_id", "sensor_id", "metric", "unit"), pl.String
        ),
    },
    orient="row",
)
LIMIT_SCHEMA = {
    "series_id": pl.Int32,
    "valid_from_us": pl.Int64,
    "valid_to_us": pl.Int64,
    "lsl": pl.Float64,
    "usl": pl.Float64,
}


def windows(*rows: tuple[int, int, int, float, float]) -> pl.DataFrame:
    """Base windows of (series, minute, samples, least, largest)."""
    return pl.DataFrame(
        [(NOON_US + minute * MINUTE_US, series, n, low, high) for series, minute, n, low, high in rows],
        schema={
            "bucket_start_us": pl.Int64,
            "series_id": pl.Int32,
            "count_n": pl.Int64,
            "min_val": pl.Float64,
            "max_val": pl.Float64,
        },
        orient="row",
    )


def anomalies(*rows: tuple[int, int, str]) -> pl.DataFrame:
    schema = {"bucket_start_us": pl.Int64, "series_id": pl.Int32, "detector": pl.String}
    return pl.DataFrame(
        [(NOON_US + minute * MINUTE_US, series, name) for series, minute, name in rows],
        schema=schema,
        orient="row",
    )


def limits(*rows: tuple[int, int | None, int | None, float | None, float | None]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=LIMIT_SCHEMA, orient="row")


def kpis(
    its: pl.DataFrame, flags: pl.DataFrame | None = None, known: pl.DataFrame | None = None, base_s: int = 60
) -> dict[tuple[str | None, str], tuple[float | None, float | None, float | None, str | None]]:
    """(value, numerator, denominator, reason) by (machine, kpi)."""
    frame = machine_kpis(
        its,
        SERIES,
        anomalies() if flags is None else flags,
        limits() if known is None else known,
        hour_us=NOON_US,
        base_s=base_s,
        domain="sensor",
    )
    assert frame.schema == pl.Schema(KPI_SCHEMA)
    return {
        (row["machine_id"], row["kpi"]): (row["value"], row["numerator"], row["denominator"], row["reason"])
        for row in frame.iter_rows(named=True)
    }


def test_messages_are_summed_over_the_series_of_a_machine() -> None:
    found = kpis(windows((1, 0, 5, 1, 2), (1, 1, 6, 1, 2), (2, 0, 7, 1, 2), (3, 0, 1, 1, 2)))
    assert found["m1", "messages"] == (18.0, 18.0, None, None)
    assert found["m2", "messages"] == (1.0, 1.0, None, None)


def test_coverage_counts_a_base_window_once_however_many_series_fill_it() -> None:
    its = windows((1, 0, 5, 1, 2), (2, 0, 7, 1, 2), (2, 59, 1, 1, 2))
    assert kpis(its)["m1", "coverage"] == (2 / 60, 2.0, 60.0, None)
    assert kpis(windows((1, 0, 5, 1, 2)), base_s=300)["m1", "coverage"] == (1 / 12, 1.0, 12.0, None)


def test_anomalies_are_counted_and_none_is_zero() -> None:
    its = windows((1, 0, 5, 1, 2), (2, 0, 5, 1, 2), (3, 0, 5, 1, 2))
    found = kpis(its, anomalies((1, 0, "spec_limits"), (1, 0, "robust_zscore"), (2, 0, "spec_limits")))
    assert found["m1", "anomalies"] == (3.0, 3.0, None, None)
    assert found["m2", "anomalies"] == (0.0, 0.0, None, None)


def test_share_in_spec_counts_windows_wholly_inside_their_limits() -> None:
    its = windows((1, 0, 5, 10, 20), (1, 1, 5, 9.9, 20), (1, 2, 5, 10, 20.1), (1, 3, 5, 12, 13), (2, 0, 1, 0, 99))
    assert kpis(its, known=limits((1, None, None, 10.0, 20.0)))["m1", "share_in_spec"] == (0.5, 2.0, 4.0, None)
    one_side = limits((1, None, None, None, 20.0))
    assert kpis(its, known=one_side)["m1", "share_in_spec"] == (0.75, 3.0, 4.0, None)


def test_limits_that_begin_within_the_hour_judge_only_what_follows() -> None:
    its = windows((1, 0, 5, 0, 99), (1, 30, 5, 0, 99), (1, 31, 5, 12, 13))
    known = limits((1, NOON_US + 30 * MINUTE_US, None, 10.0, 20.0))
    assert kpis(its, known=known)["m1", "share_in_spec"] == (0.5, 1.0, 2.0, None)


def test_without_limits_the_share_in_spec_is_unknown_and_not_zero() -> None:
    found = kpis(windows((1, 0, 5, 1, 2), (3, 0, 5, 50, 60)), known=limits((3, None, None, 0.0, 1.0)))
    assert found["m1", "share_in_spec"] == (None, 0.0, 0.0, "no_spec_limits")
    assert found["m2", "share_in_spec"] == (0.0, 0.0, 1.0, None)


def test_series_without_a_machine_have_kpis_of_their_own() -> None:
    found = kpis(windows((4, 0, 5, 1, 2)), anomalies((4, 0, "spec_limits")))
    assert found[None, "messages"][0] == 5.0
    assert found[None, "anomalies"][0] == 1.0


def test_rows_say_hour_size_domain_and_machine() -> None:
    frame = machine_kpis(
        windows((1, 7, 5, 1, 2)), SERIES, anomalies(), limits(), hour_us=NOON_US, base_s=60, domain="sensor"
    )
    names = ["bucket_start_us", "window_s", "domain", "tenant_id", "factory_id", "machine_id", "unit"]
    assert frame.select(names).unique().rows() == [(NOON_US, 3600, "sensor", "t", "f", "m1", "1")]
    assert frame["kpi"].to_list() == sorted([*_COUNTS, *_RATIOS])
    assert {"anomalies", "coverage", "messages", "share_in_spec"} <= {*_COUNTS, *_RATIOS}


def test_an_hour_without_windows_has_no_kpis() -> None:
    assert kpis(windows()) == {}


def test_windows_of_another_hour_are_refused() -> None:
    with pytest.raises(ValueError, match=f"1 windows outside the hour of {NOON_US} us"):
        kpis(windows((1, 59, 1, 0, 0), (1, 60, 1, 0, 0)))


def test_windows_of_an_unknown_series_are_refused_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="1 windows of series that are not given, the first of series 9"):
        kpis(windows((1, 0, 1, 0, 0), (9, 0, 1, 0, 0)))


KEYS = [SeriesKey("t", "f", machine, sensor, "temp") for machine in ("m1", None) for sensor in ("s1", "s2")]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 239), st.integers(0, 3), st.sampled_from([19.0, 20.0, 21.0, 90.0])
        ),
        min_size=1,
        max_size=200,
    )
)
def test_kpis_are_those_of_the_naive_reference(stream: list[tuple[int, int, int, float]]) -> None:
    messages = [
        Message(("t", 1, 0, offset, 0), kafka, NOON_US + quarter * MINUTE_US // 4, KEYS[number], value)
        for offset, (number, quarter, kafka, value) in enumerate(stream)
    ]
    half_past = NOON_US + 30 * MINUTE_US
    known = {KEYS[1]: [Limit(None, half_past, 19.5, 25.0), Limit(half_past, None, None, 20.5)]}
    table = limits((1, None, half_past, 19.5, 25.0), (1, half_past, None, None, 20.5))
    kept = [(KEYS.index(of), time, value) for (of, time), value in reference.measurements(messages).items()]
    number, time, value = (np.array(column) for column in zip(*kept, strict=True))
    frame = base_windows(number.astype(np.int32), time, np.zeros_like(time), value, 60)
    series = pl.DataFrame(
        {"series_id": pl.Series(range(4), dtype=pl.Int32)}
        | {name: [getattr(key, name) for key in KEYS] for name in ("tenant_id", "factory_id", "machine_id")}
    )
    flags = detect(frame, frame.clear(), table, (RobustZScore(), SpecLimits()))
    found = machine_kpis(frame, series, flags, table, hour_us=NOON_US, base_s=60, domain="sensor")
    expected = {(*kpi.machine, kpi.kpi): kpi for kpi in reference.kpis(messages, 60, known)}
    assert len(found) == len(expected)
    for row in found.iter_rows(named=True):
        want = expected[row["tenant_id"], row["factory_id"], row["machine_id"], row["kpi"]]
        for name in ("value", "numerator", "denominator", "reason"):
            assert row[name] == getattr(want, name), (name, want)
